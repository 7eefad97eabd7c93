//! Remains of other kube-proxies in real namespaces, made with Debian's iptables, are removed; and
//! nothing else is.

#![allow(clippy::unwrap_used)] // a test binary, helpers included

mod netns;

use std::path::Path;

use kubeweir::cleanup::{self, Removed};
use kubeweir::model::Family;
use kubeweir::netlink::request::{Request, Requests};
use netns::{in_netns, run};

const FOREIGN: &str = include_str!("data/cleanup/foreign.rules");
const IPTABLES_MODE: &str = include_str!("data/cleanup/iptables-mode.rules");
const IPVS_MODE: &str = include_str!("data/cleanup/ipvs-mode.rules");

/// Fills in a family's addresses and set names.
fn rules(text: &str, family: Family) -> String {
    let [cluster, vip, pod, target, six] = match family {
        Family::V4 => ["10.96.0.1", "198.51.100.1", "10.1.0.2", "10.1.0.2:8080", ""],
        Family::V6 => ["fd96::1", "fd98::1", "fd01::2", "[fd01::2]:8080", "6-"],
    };
    [("@CLUSTER@", cluster), ("@VIP@", vip), ("@POD@", pod), ("@TARGET@", target), ("@SIX@", six)]
        .iter()
        .fold(text.to_owned(), |text, (mark, value)| text.replace(mark, value))
}

fn program(family: Family, what: &str) -> String {
    let name = if family == Family::V4 { "iptables" } else { "ip6tables" };
    format!("{name}-nft-{what}")
}

fn load(family: Family, text: &str) {
    run(&[&program(family, "restore"), "--noflush"], &rules(text, family));
}

/// All rules of a family without counters and comments.
fn saved(family: Family) -> Vec<String> {
    let text = run(&[&program(family, "save")], "");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split(" [").next().unwrap_or(line).to_owned()).collect()
}

fn clean(root: &Path) -> Removed {
    cleanup::other_modes(root)
}

fn clean_here() -> Removed {
    let removed = clean(Path::new("/"));
    assert!(removed.errors.is_empty(), "{:?}", removed.errors);
    removed
}

/// Netlink attributes, one after the other.
fn attributes(all: &[(u16, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, value) in all {
        bytes.extend_from_slice(&(value.len() as u16 + 4).to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes
}

/// A set of type hash:ip,port, as ipvs mode has it.
fn create_ipset(name: &str, family: Family) {
    let number = if family == Family::V4 { 2 } else { 10 };
    let name = format!("{name}\0");
    let attributes = attributes(&[
        (1, &[6]),
        (2, name.as_bytes()),
        (3, b"hash:ip,port\0"),
        (4, &[5]),
        (5, &[number]),
        (7 | 0x8000, &[]),
    ]);
    let mut netlink = Requests::to_netfilter().expect("a netlink socket");
    let request = Request::nfnetlink(6, 2, number, attributes);
    netlink.execute(&request, |_| {}).unwrap_or_else(|error| panic!("ipset {name}: {error}"));
}

fn ipset_exists(name: &str) -> bool {
    let attributes = attributes(&[(1, &[6]), (2, format!("{name}\0").as_bytes())]);
    let mut netlink = Requests::to_netfilter().expect("a netlink socket");
    netlink.execute(&Request::nfnetlink(6, 12, 2, attributes), |_| {}).is_ok()
}

// B-203, B-204, B-205: both families, among rules of others that look alike.
#[test]
fn iptables_mode() {
    let alone = Family::BOTH.map(|family| {
        in_netns(|| {
            load(family, FOREIGN);
            saved(family)
        })
    });
    in_netns(|| {
        for family in Family::BOTH {
            load(family, FOREIGN);
            load(family, IPTABLES_MODE);
            assert!(saved(family).len() > alone[0].len() + 50, "the fixture is loaded");
        }
        let removed = clean_here();
        assert_eq!((removed.jumps, removed.chains), (2 * 12, 2 * 17));
        assert_eq!(saved(Family::V4), alone[0]);
        assert_eq!(saved(Family::V6), alone[1]);
        let again = clean_here();
        assert_eq!((again.jumps, again.chains), (0, 0), "nothing left to remove");
    });
}

// B-206, Q-20: chains, ipsets of both families, the link; others' sets stay.
#[test]
fn ipvs_mode() {
    let alone = in_netns(|| {
        load(Family::V4, FOREIGN);
        saved(Family::V4)
    });
    in_netns(|| {
        let sets = ["KUBE-CLUSTER-IP", "KUBE-LOOP-BACK", "KUBE-6-CLUSTER-IP", "KUBE-6-IPVS-IPS"];
        for set in sets.iter().chain(["KUBE-ROUTER", "MINE"].iter()) {
            let v6 = set.starts_with("KUBE-6-");
            create_ipset(set, if v6 { Family::V6 } else { Family::V4 });
        }
        for family in Family::BOTH {
            load(family, FOREIGN);
            load(family, IPVS_MODE);
        }
        assert!(sets.iter().all(|set| ipset_exists(set)));
        // This kernel may have no dummy links; the name is what counts.
        run(&["ip", "link", "add", "kube-ipvs0", "type", "veth", "peer", "name", "other"], "");
        run(&["ip", "address", "add", "10.96.0.1/32", "dev", "kube-ipvs0"], "");

        let removed = clean_here();
        assert_eq!((removed.jumps, removed.chains, removed.sets), (2 * 9, 2 * 11, 4));
        assert!(removed.link);
        assert_eq!(saved(Family::V4), alone);
        let left: Vec<&str> = sets.into_iter().filter(|set| ipset_exists(set)).collect();
        assert_eq!(left, Vec::<&str>::new());
        assert!(ipset_exists("KUBE-ROUTER") && ipset_exists("MINE"));
        assert!(!run(&["ip", "link"], "").contains("kube-ipvs0"));
    });
}

// B-023: an empty namespace is no error, twice.
#[test]
fn nothing_to_clean() {
    in_netns(|| {
        for _ in 0..2 {
            let removed = clean_here();
            assert_eq!((removed.jumps, removed.chains, removed.sets), (0, 0, 0));
            assert!(!removed.link);
        }
        assert_eq!(run(&["nft", "list", "ruleset"], ""), "", "no table appears");
    });
}

// B-208, B-205: a chain that a foreign rule uses stays empty and is named; the rest goes.
#[test]
fn a_chain_in_foreign_use() {
    in_netns(|| {
        load(Family::V4, FOREIGN);
        load(Family::V4, IPTABLES_MODE);
        load(Family::V4, "*nat\n-A CNI-HOSTPORT-DNAT -s 10.2.0.0/16 -j KUBE-MARK-MASQ\nCOMMIT\n");
        let removed = clean(Path::new("/"));
        let errors: Vec<String> = removed.errors.iter().map(ToString::to_string).collect();
        let used = "chain KUBE-MARK-MASQ of ip table nat stays: chain CNI-HOSTPORT-DNAT uses it";
        assert_eq!(errors, [used]);
        let saved = saved(Family::V4);
        let kube = |line: &&String| line.contains("KUBE-") && !line.contains("KUBE-FIREWALL");
        let mut left: Vec<&String> = saved.iter().filter(kube).collect();
        left.sort();
        let expected = [
            "-A CNI-HOSTPORT-DNAT -s 10.2.0.0/16 -j KUBE-MARK-MASQ",
            ":KUBE-IPTABLES-HINT -",
            ":KUBE-KUBELET-CANARY -",
            ":KUBE-KUBELET-CANARY -",
            ":KUBE-KUBELET-CANARY -",
            ":KUBE-MARK-MASQ -",
            ":KUBE-ROUTER-X -",
        ];
        assert_eq!(left, expected);
    });
}

// B-208: use that cannot be seen in a rule, here a verdict map, keeps only the chain in question.
#[test]
fn a_chain_in_a_verdict_map() {
    in_netns(|| {
        load(Family::V4, FOREIGN);
        load(Family::V4, IPTABLES_MODE);
        let rule = "add rule ip nat CNI-HOSTPORT-DNAT tcp dport vmap { 80 : jump KUBE-MARK-MASQ }";
        run(&["nft", "-f", "-"], rule);
        let removed = clean(Path::new("/"));
        let errors: Vec<String> = removed.errors.iter().map(ToString::to_string).collect();
        assert_eq!(errors, ["deleting chain KUBE-MARK-MASQ of ip table nat"]);
        assert_eq!((removed.jumps, removed.chains), (12, 16));
        let left = run(&["nft", "list", "table", "ip", "nat"], "");
        assert!(!left.contains("KUBE-SERVICES") && !left.contains("0x00004000"), "{left}");
    });
}

// B-203: more chains than one transaction takes, which refer to each other across transactions.
#[test]
fn ten_thousand_chains() {
    const SERVICES: usize = 5_000;
    in_netns(|| {
        let mut text = String::from("*nat\n:KUBE-SERVICES - [0:0]\n");
        for n in 0..SERVICES {
            text += &format!(":KUBE-SVC-{n} - [0:0]\n:KUBE-SEP-{n} - [0:0]\n");
        }
        text +=
            "-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n";
        for n in 0..SERVICES {
            text += &format!("-A KUBE-SERVICES -p tcp --dport {} -j KUBE-SVC-{n}\n", n + 1);
            text += &format!("-A KUBE-SVC-{n} -j KUBE-SEP-{n}\n");
        }
        load(Family::V4, &(text + "COMMIT\n"));
        let started = std::time::Instant::now();
        let removed = clean_here();
        println!("{} chains removed in {:?}", removed.chains, started.elapsed());
        assert_eq!((removed.jumps, removed.chains), (1, 2 * SERVICES + 1));
        assert!(!saved(Family::V4).iter().any(|line| line.contains("KUBE-")));
    });
}

/// All rules of a family in iptables-legacy.
fn saved_legacy(family: Family) -> Vec<String> {
    let name = if family == Family::V4 { "iptables" } else { "ip6tables" };
    let text = run(&[&format!("{name}-legacy-save")], "");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split(" [").next().unwrap_or(line).to_owned()).collect()
}

fn load_legacy(family: Family, text: &str) {
    let name = if family == Family::V4 { "iptables" } else { "ip6tables" };
    run(&[&format!("{name}-legacy-restore"), "--noflush"], &rules(text, family));
}

// B-203, B-204, B-205: the same in the tables of iptables-legacy, jumps among the rest intact.
#[test]
fn iptables_legacy() {
    let alone = Family::BOTH.map(|family| {
        in_netns(|| {
            load_legacy(family, FOREIGN);
            saved_legacy(family)
        })
    });
    in_netns(|| {
        for family in Family::BOTH {
            load_legacy(family, FOREIGN);
            load_legacy(family, IPTABLES_MODE);
            assert!(saved_legacy(family).len() > alone[0].len() + 50, "the fixture is loaded");
        }
        let removed = clean(Path::new("/"));
        assert!(removed.errors.is_empty(), "{:?}", removed.errors);
        assert_eq!((removed.jumps, removed.chains), (2 * 12, 2 * 17));
        assert_eq!(saved_legacy(Family::V4), alone[0]);
        assert_eq!(saved_legacy(Family::V6), alone[1]);
        let again = clean(Path::new("/"));
        assert_eq!((again.jumps, again.chains), (0, 0), "nothing left to remove");
        // The table is still one that iptables can change.
        run(
            &["iptables-legacy", "-t", "nat", "-A", "CNI-HOSTPORT-DNAT", "-j", "KUBE-ROUTER-X"],
            "",
        );
    });
}

// B-208, B-205: a legacy chain that a foreign rule uses stays, empty, and is named.
#[test]
fn a_legacy_chain_in_foreign_use() {
    let use_it = "*nat\n-A CNI-HOSTPORT-DNAT -s 10.2.0.0/16 -j KUBE-MARK-MASQ\nCOMMIT\n";
    let alone = in_netns(|| {
        load_legacy(Family::V4, FOREIGN);
        load_legacy(Family::V4, "*nat\n:KUBE-MARK-MASQ - [0:0]\nCOMMIT\n");
        load_legacy(Family::V4, use_it);
        saved_legacy(Family::V4)
    });
    in_netns(|| {
        load_legacy(Family::V4, FOREIGN);
        load_legacy(Family::V4, IPTABLES_MODE);
        load_legacy(Family::V4, use_it);
        let removed = clean(Path::new("/"));
        let errors: Vec<String> = removed.errors.iter().map(ToString::to_string).collect();
        let used = "chain KUBE-MARK-MASQ of ip table nat stays: chain CNI-HOSTPORT-DNAT uses it";
        assert_eq!(errors, [used]);
        assert_eq!(saved_legacy(Family::V4), alone);
    });
}

// B-205: looking does not create tables.
#[test]
fn legacy_tables_are_not_created() {
    in_netns(|| {
        clean(Path::new("/"));
        let names = std::fs::read_to_string("/proc/thread-self/net/ip_tables_names");
        assert_eq!(names.unwrap_or_default(), "");
    });
}
