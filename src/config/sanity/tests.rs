//! Settings against nodes, as a table.

use super::*;
use crate::config::{complete, resolve};

fn config(flags: &[&str]) -> Config {
    let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
    let parsed = crate::cli::proxy::parse(&flags).expect("flags");
    resolve(complete(&parsed.flags, None).expect("complete")).expect("valid")
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().map(|text| text.parse().expect("CIDR")).collect()
}

fn check_node(
    flags: &[&str],
    primary: Family,
    dual_stack: bool,
    pod_cidrs: &[&str],
) -> Result<Vec<Note>, WrongFamily> {
    let pod_cidrs = nets(pod_cidrs);
    check(&config(flags), NodeFacts { primary, dual_stack, pod_cidrs: &pod_cidrs })
}

/// A setting that silences the suggestion of B-068.
const PRIMARY: &str = "--nodeport-addresses=primary";

// B-066: podCIDRs of the wrong family are fatal in NodeCIDR mode, with one family or both.
#[test]
fn pod_cidrs_of_the_wrong_family() {
    let flags = [PRIMARY, "--detect-local-mode=NodeCIDR"];
    for dual_stack in [false, true] {
        let error = check_node(&flags, Family::V4, dual_stack, &["fd00::/64"]).expect_err("fatal");
        assert_eq!(error.primary, Family::V4);
        assert!(error.to_string().contains("podCIDRs"), "{error}");
        let right = check_node(&flags, Family::V4, dual_stack, &["fd00::/64", "10.0.0.0/24"]);
        assert_eq!(right, Ok(Vec::new()));
        let none = check_node(&flags, Family::V4, dual_stack, &[]);
        assert!(none.is_ok(), "none at all is not a contradiction");
        let other_mode = check_node(&[PRIMARY], Family::V4, dual_stack, &["fd00::/64"]);
        assert_eq!(other_mode.expect("only a note").len(), 1);
    }
}

// B-067: clusterCIDRs of the wrong family are fatal only in ClusterCIDR mode with one family.
#[test]
fn cluster_cidrs_of_the_wrong_family() {
    let flags = [PRIMARY, "--cluster-cidr=fd00::/64"];
    assert!(check_node(&flags, Family::V4, false, &[]).is_err());
    let right = [PRIMARY, "--cluster-cidr=10.0.0.0/8"];
    assert!(check_node(&right, Family::V4, false, &[]).is_ok());
    assert_eq!(check_node(&flags, Family::V4, true, &[]).expect("only a note").len(), 1);
    assert_eq!(
        check_node(&flags, Family::V6, false, &[]).expect("right family").len(),
        1,
        "metrics"
    );
    let bridge = [
        PRIMARY,
        "--cluster-cidr=fd00::/64",
        "--detect-local-mode=BridgeInterface",
        "--pod-bridge-interface=cbr0",
    ];
    assert_eq!(check_node(&bridge, Family::V4, false, &[]).expect("only a note").len(), 1);
}

// B-068: unset nodePortAddresses suggest `primary`.
#[test]
fn unset_nodeport_addresses() {
    for (flags, expected) in [(&[][..], 1), (&["--proxy-mode=nftables"], 0), (&[PRIMARY], 0)] {
        let notes = check_node(flags, Family::V4, true, &[]).expect("no error");
        assert_eq!(notes.len(), expected, "{flags:?}: {notes:?}");
        for note in notes {
            assert!(note.text.contains("--nodeport-addresses primary"), "{note}");
        }
    }
}

#[test]
fn the_other_warnings() {
    let cases: [(&str, &[&str], Family, bool, &str); 5] = [
        (
            "only the other family",
            &["--nodeport-addresses=fd00::/8"],
            Family::V4,
            true,
            "nodePortAddresses contains only IPv6",
        ),
        (
            "half of a dual-stack cluster",
            &["--nodeport-addresses=10.0.0.0/8", "--cluster-cidr=10.0.0.0/8,fd00::/64"],
            Family::V4,
            true,
            "nodePortAddresses contains only IPv4",
        ),
        (
            "health server",
            &[PRIMARY, "--healthz-bind-address=[fd00::1]:1"],
            Family::V4,
            false,
            "healthzBindAddress",
        ),
        ("metrics server", &[PRIMARY], Family::V6, false, "metricsBindAddress"),
        (
            "excluded CIDRs",
            &[PRIMARY, "--proxy-mode=ipvs", "--ipvs-exclude-cidrs=fd00::/64"],
            Family::V4,
            false,
            "ipvs.excludeCIDRs",
        ),
    ];
    for (name, flags, primary, dual_stack, expected) in cases {
        let notes = check_node(flags, primary, dual_stack, &[]).expect(name);
        assert_eq!(notes.len(), 1, "{name}: {notes:?}");
        assert!(notes[0].text.contains(expected), "{name}: {}", notes[0]);
    }
    let quiet = ["--nodeport-addresses=10.0.0.0/8"];
    assert_eq!(
        check_node(&quiet, Family::V4, true, &[]),
        Ok(Vec::new()),
        "nothing says dual-stack"
    );
}
