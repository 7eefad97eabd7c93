//! `kubeweir render` against the real thing.

use super::listing::sorted;
use super::scene::{Scene, binary, kubeweir};

/// nft 1.0.6 does not know the flag `persist` and leaves it out.
fn shown(listing: &str) -> String {
    listing.replace("flags owner,persist", "flags owner")
}

#[test]
fn what_is_rendered_is_what_the_kernel_gets() {
    let scene = Scene::with_agent(&[]);
    let rendered = scene.render(&[]);
    assert_eq!(rendered.code, 0, "{}", rendered.stderr);
    let listed = scene.lab.node.feed("nft", &["list", "ruleset"], "").unwrap();
    let (ours, nfts) = (sorted(&shown(&rendered.stdout)), sorted(&shown(&listed)));
    for (ours, nfts) in ours.iter().zip(&nfts) {
        assert_eq!(ours, nfts);
    }
    assert_eq!(ours.len(), nfts.len());
}

#[test]
fn renders_are_compared_and_narrowed() {
    let scene = Scene::build();
    let before = scene.file("before", &scene.render(&[]).stdout);
    scene.edit("services.yaml", "port: 80, nodePort: 30080", "port: 81, nodePort: 30080");
    let after = scene.file("after", &scene.render(&[]).stdout);
    assert_eq!(kubeweir(&["diff", &before, &before]).code, 0);
    let diff = kubeweir(&["diff", &before, &after]);
    assert_eq!(diff.code, 1);
    let expected =
        format!("shop/web:http (ip)\n  10.96.0.10:80/tcp is in {before}, but not in {after}\n");
    assert!(diff.stdout.starts_with(&expected), "{}", diff.stdout);

    let narrow = scene.render(&["--service", "shop/cart"]).stdout;
    assert!(narrow.contains("10.96.0.11 . tcp . 80 comment \"shop/cart:http\""), "{narrow}");
    assert!(!narrow.contains("chain") && !narrow.contains("shop/web"), "{narrow}");
    let nothing = kubeweir(&["diff", &before, &scene.file("yaml", "kind: Service\n")]);
    assert_eq!(nothing.code, 2);
    assert!(nothing.stderr.contains("line 1: expected a table"), "{}", nothing.stderr);
}

#[test]
fn no_privilege_is_needed() {
    let manifest = Scene::source().join("services.yaml");
    let output = std::process::Command::new("setpriv")
        .args(["--bounding-set=-all", "--inh-caps=-all", "--"])
        .arg(binary())
        .args(["render", "-f", "-", "--node", "node"])
        .stdin(std::fs::File::open(manifest).unwrap())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("shop/web:http"));
}
