//! Settings that do not fit the node (section 3.7): warnings, and the two that are fatal.
//!
//! Place in the flow: `main` asks once, as soon as the node's addresses are known. Pure.

use std::net::IpAddr;

use ipnet::IpNet;

use super::address::{parse_cidr, parse_ip, parse_ip_port};
use super::{Config, DetectLocal, Note, ProxyMode};
use crate::model::Family;
use crate::node::nodeport::{NodePortAddress, NodePortAddresses};

/// What of the node matters here.
#[derive(Debug, Clone, Copy)]
pub struct NodeFacts<'a> {
    /// Family of the node's primary IP.
    pub primary: Family,
    /// Whether both families run.
    pub dual_stack: bool,
    /// `spec.podCIDRs`.
    pub pod_cidrs: &'a [IpNet],
}

/// A setting with which this node cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot run in {primary}-only mode: {setting} has only {} values", primary.other())]
pub struct WrongFamily {
    /// The setting as a user knows it.
    pub setting: &'static str,
    /// Family of the node's primary IP.
    pub primary: Family,
}

/// Checks the configuration against the node.
///
/// Returns notes of level error, after which the process goes on.
/// Errors: podCIDRs all of the wrong family in NodeCIDR mode (B-066); clusterCIDRs all of the wrong
/// family in ClusterCIDR mode if only one family runs (B-067).
pub fn check(config: &Config, node: NodeFacts<'_>) -> Result<Vec<Note>, WrongFamily> {
    let primary = node.primary;
    let mut findings = Vec::new();
    nodeport_addresses(config, node, &mut findings);
    let cluster_cidrs: Vec<Family> =
        Family::BOTH.into_iter().filter(|&family| config.cluster_cidrs[family].is_some()).collect();
    if all_other(primary, &cluster_cidrs) {
        if !node.dual_stack && config.detect_local == DetectLocal::ClusterCidr {
            return Err(WrongFamily { setting: "clusterCIDR", primary });
        }
        findings.push(wrong_family("clusterCIDR", primary));
    }
    let pod_cidrs: Vec<Family> = node.pod_cidrs.iter().map(Family::of_net).collect();
    if all_other(primary, &pod_cidrs) {
        if config.detect_local == DetectLocal::NodeCidr {
            return Err(WrongFamily { setting: "podCIDRs of the node", primary });
        }
        findings.push(wrong_family("podCIDRs of the node", primary));
    }
    if let Some(ip) = parse_ip(&config.object.winkernel.source_vip)
        && Family::of(&ip) != primary
    {
        findings.push(wrong_family("winkernel.sourceVip", primary));
    }
    if !node.dual_stack {
        single_stack(config, primary, &mut findings);
    }
    Ok(findings.into_iter().map(Note::error).collect())
}

/// Whether there are values, and every one is of the other family.
fn all_other(primary: Family, families: &[Family]) -> bool {
    !families.is_empty() && families.iter().all(|&family| family != primary)
}

fn wrong_family(setting: &str, primary: Family) -> String {
    format!(
        "Kube-proxy configuration may be incomplete or incorrect: cluster is {primary} but {setting} \
         contains only {} values",
        primary.other()
    )
}

fn nodeport_addresses(config: &Config, node: NodeFacts<'_>, findings: &mut Vec<String>) {
    let primary = node.primary;
    let NodePortAddresses(entries) = &config.nodeport_addresses;
    if entries.is_empty() {
        // B-068
        findings.push(
            "Kube-proxy configuration may be incomplete or incorrect: nodePortAddresses is unset; \
             NodePort connections will be accepted on all local IPs. Consider using \
             `--nodeport-addresses primary`"
                .to_owned(),
        );
        return;
    }
    let family = |entry: &NodePortAddress| match entry {
        NodePortAddress::Cidr(net) => Some(Family::of_net(net)),
        // A keyword speaks of both families.
        _ => None,
    };
    let Some(families) = entries.iter().map(family).collect::<Option<Vec<Family>>>() else {
        return;
    };
    if all_other(primary, &families) {
        findings.push(wrong_family("nodePortAddresses", primary));
    } else if !families.contains(&primary.other())
        && node.dual_stack
        && is_explicitly_dual(config, node)
    {
        findings.push(format!(
            "Kube-proxy configuration may be incomplete or incorrect: cluster appears to be \
             dual-stack but nodePortAddresses contains only {primary} addresses; NodePort \
             connections will be accepted on all local {} IPs",
            primary.other()
        ));
    }
}

/// Whether something written says that both families are wanted.
fn is_explicitly_dual(config: &Config, node: NodeFacts<'_>) -> bool {
    let other = node.primary.other();
    config.cluster_cidrs[other].is_some() && config.cluster_cidrs[node.primary].is_some()
        || Family::BOTH
            .iter()
            .all(|family| node.pod_cidrs.iter().any(|cidr| Family::of_net(cidr) == *family))
}

/// Settings that only matter if the other family does not run.
fn single_stack(config: &Config, primary: Family, findings: &mut Vec<String>) {
    if config.mode == ProxyMode::Ipvs {
        let families: Vec<Family> = config
            .object
            .ipvs
            .exclude_cidrs
            .iter()
            .filter_map(|cidr| parse_cidr(cidr))
            .map(|cidr| Family::of_net(&cidr))
            .collect();
        if all_other(primary, &families) {
            findings.push(wrong_family("ipvs.excludeCIDRs", primary));
        }
    }
    let servers = [
        ("healthzBindAddress", &config.object.healthz_bind_address),
        ("metricsBindAddress", &config.object.metrics_bind_address),
    ];
    for (setting, text) in servers {
        let ip: Option<IpAddr> = parse_ip_port(text).map(|address| address.ip());
        if ip.is_some_and(|ip| !ip.is_unspecified() && Family::of(&ip) != primary) {
            findings.push(wrong_family(setting, primary));
        }
    }
}

#[cfg(test)]
mod tests {
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
            let error =
                check_node(&flags, Family::V4, dual_stack, &["fd00::/64"]).expect_err("fatal");
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
}
