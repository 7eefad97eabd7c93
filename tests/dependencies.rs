//! What every build is made of: licences, sources and the oldest toolchain of all dependencies.
//!
//! The same rules as `make deny`, from the same file, without a tool that takes minutes to build and
//! without a network; advisories and duplicates are `make deny`'s alone.

#![allow(clippy::unwrap_used)] // a test binary, helpers included

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;
use spdx::{Expression, Licensee, ParseMode};

const RULES: &str = include_str!("../.cargo/deny.toml");

/// The packages that are compiled on this machine, tests included, and the crate itself.
fn packages() -> Vec<Value> {
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--offline", "--all-features"])
        .args(["--filter-platform", &platform])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap().clone();
    assert!(packages.len() > 100, "only {} packages", packages.len());
    packages
}

/// The packages of `kubectl kubeweir` on any system, each with what it links.
#[test]
fn the_desk_links_no_c_library_and_nothing_of_netlink() {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--locked",
            "--offline",
            "-e",
            "normal",
            "--target",
            "all",
            "--prefix",
            "none",
        ])
        .args(["--no-default-features", "--features", "desk", "--format", "{p}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).unwrap();
    let names: BTreeSet<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(names.contains("kube") && names.contains("tokio-tungstenite"), "{names:?}");
    let of_linux =
        ["nftnl", "mnl", "netlink", "nix", "inotify", "notify", "axum", "procfs", "prometheus"];
    for name in &names {
        assert!(!of_linux.iter().any(|word| name.contains(word)), "{name}");
    }
    // ring brings its own assembly; k8s-openapi's mark lets only one version of it be built.
    let linking = packages().into_iter().filter(|package| {
        names.contains(package["name"].as_str().unwrap()) && !package["links"].is_null()
    });
    let linking: Vec<String> =
        linking.map(|package| package["name"].as_str().unwrap().to_owned()).collect();
    assert_eq!(linking, ["k8s-openapi", "ring"]);
}

/// The first string in quotes on each line between two marks of the rules.
fn quoted_between(start: &str, end: &str) -> Vec<&'static str> {
    let section = RULES.split_once(start).unwrap().1.split_once(end).unwrap().0;
    let found: Vec<_> = section.lines().filter_map(|line| line.split('"').nth(1)).collect();
    assert!(!found.is_empty(), "nothing after {start:?}");
    found
}

fn name(package: &Value) -> String {
    format!("{} {}", package["name"].as_str().unwrap(), package["version"].as_str().unwrap())
}

#[test]
fn every_licence_is_one_that_the_rules_allow() {
    let allowed: Vec<Licensee> = quoted_between("\nallow = [", "\n]")
        .into_iter()
        .map(|text| Licensee::parse(text).unwrap())
        .collect();
    let refused: Vec<_> = packages()
        .iter()
        .filter(|package| {
            let text = package["license"].as_str().unwrap_or_default();
            !Expression::parse_mode(text, ParseMode::LAX).is_ok_and(|expression| {
                expression.evaluate(|needed| allowed.iter().any(|one| one.satisfies(needed)))
            })
        })
        .map(|package| format!("{}: {}", name(package), package["license"]))
        .collect();
    assert!(refused.is_empty(), "{refused:#?}");
}

#[test]
fn every_dependency_is_from_the_registry_and_none_is_banned() {
    let banned = quoted_between("\ndeny = [", "\n]");
    for package in packages() {
        let source = package["source"].as_str();
        let own = package["name"] == env!("CARGO_PKG_NAME");
        assert_eq!(source.is_none(), own, "{}: a path", name(&package));
        let registry = source.is_none_or(|source| source.starts_with("registry+"));
        assert!(registry, "{} is from {source:?}", name(&package));
        assert!(!banned.iter().any(|banned| package["name"] == *banned), "{}", name(&package));
    }
}

#[test]
fn the_oldest_toolchain_that_is_promised_suffices_for_every_dependency() {
    let numbers = |text: &str| text.split('.').map(|n| n.parse().unwrap()).collect::<Vec<u32>>();
    let ours = numbers(env!("CARGO_PKG_RUST_VERSION"));
    for package in packages() {
        let Some(theirs) = package["rust_version"].as_str() else { continue };
        let needed: Vec<u32> = numbers(theirs).into_iter().take(2).collect();
        assert!(needed <= ours, "{} needs Rust {theirs}", name(&package));
    }
}
