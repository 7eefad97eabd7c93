//! Completions, the manual page, and the check of the kernel.

use super::scene::kubeweir;
use kubeweir::testing::lab::Netns;

#[test]
fn every_sub_command_is_in_completions_and_manual() {
    let commands = kubeweir::cli::command();
    let names: Vec<&str> = commands.get_subcommands().map(clap::Command::get_name).collect();
    assert!(names.contains(&"explain"), "{names:?}");
    for args in
        [&["man"][..], &["completions", "bash"], &["completions", "zsh"], &["completions", "fish"]]
    {
        let said = kubeweir(args);
        assert_eq!((said.code, said.stderr.as_str()), (0, ""), "{args:?}");
        for name in &names {
            assert!(said.stdout.contains(name), "{name} is not in {args:?}");
        }
    }
}

#[test]
fn the_manual_names_the_version() {
    let said = kubeweir(&["man"]);
    assert!(said.stdout.contains(kubeweir::config::version::VERSION), "{}", said.stdout);
}

#[test]
fn check_finds_what_this_kernel_has_and_leaves_nothing() {
    let netns = Netns::new("check").unwrap();
    let said = netns.run(|| kubeweir(&["check", "-o", "json"]));
    let findings: Vec<serde_json::Value> = serde_json::from_str(&said.stdout).expect("JSON");
    assert!(findings.len() > 20, "{findings:?}");
    let missing = findings.iter().any(|f| f["ok"] == false && f["required"] == true);
    assert_eq!(said.code, i32::from(missing), "{findings:?}");
    assert!(!missing, "the other tests of this machine need all of it: {findings:?}");
    assert_eq!(netns.feed("nft", &["list", "ruleset"], "").unwrap(), "");
}
