//! Every nft an operator may have lists the table as it is rendered.
//!
//! Those of all Debian suites that have one, from 0.9.8 of 2021 on; `make test` unpacks them with
//! `fetch.sh`, without which this fails. (The suites of backports have none at present.)

// Clippy knows tests by their attribute; what they share has none.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use kubeweir::inspect::listing::{Listing, parse};
use kubeweir::inspect::wanted::{NodeSetup, Wanted, wanted};
use kubeweir::kernel::{Kernel, Op, Transaction};
use kubeweir::manifest;
use kubeweir::model::{Families, Family, Object, PerFamily};
use kubeweir::netlink::NetlinkKernel;
use kubeweir::program::{LocalPods, NodePortMatch, RuleOptions};
use kubeweir::ruleset::render;
use kubeweir::testing::lab::Netns;
use kubeweir::topology::NodeTopology;

/// One nft: how to start it.
struct Nft {
    program: PathBuf,
    before: Vec<String>,
}

impl Nft {
    fn system() -> Nft {
        Nft { program: "nft".into(), before: Vec::new() }
    }

    /// With its own dynamic linker and libraries.
    fn unpacked(suite: &str) -> Nft {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/nft").join(suite);
        assert!(root.is_dir(), "no {}: run make nft (needs a network)", root.display());
        let architecture = format!("{}-linux-gnu", std::env::consts::ARCH);
        let libraries = ["lib", "usr/lib"].map(|lib| root.join(lib).join(&architecture));
        let path = libraries.each_ref().map(|lib| lib.display().to_string()).join(":");
        let entries = libraries.iter().filter_map(|lib| std::fs::read_dir(lib).ok()).flatten();
        let names = entries.map(|entry| entry.unwrap().path());
        let is_linker = |path: &PathBuf| path.to_string_lossy().contains("/ld-linux");
        let program = names.into_iter().find(is_linker).expect("libc6 has a dynamic linker");
        let nft = root.join("usr/sbin/nft").display().to_string();
        Nft { program, before: vec!["--library-path".to_owned(), path, nft] }
    }

    fn run(&self, args: &[&str]) -> String {
        let output = Command::new(&self.program).args(&self.before).args(args).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

/// Services of every kind: lists of several classes, affinity, ranges, refusals, drops.
fn tables() -> Wanted {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/inspect/manifests");
    let (mut objects, errors) = manifest::load(&path, true);
    assert!(errors.is_empty(), "{errors:?}");
    for object in &mut objects {
        if let Object::EndpointSlice(slice) = object
            && &*slice.service.name == "session"
        {
            let slice = std::sync::Arc::make_mut(slice);
            let first = slice.endpoints[0].clone();
            slice.endpoints.extend((20..30u8).map(|last| {
                let address = [10, 244, 0, last].into();
                kubeweir::model::Endpoint { address, ..first.clone() }
            }));
        }
    }
    let options = RuleOptions {
        local_pods: PerFamily {
            v4: LocalPods::Cidr("10.244.0.0/16".parse().unwrap()),
            v6: LocalPods::InterfacePrefix("veth".into()),
        },
        node_ports: PerFamily {
            v4: NodePortMatch::Addresses(vec![[192, 168, 10, 1].into()]),
            v6: NodePortMatch::AnyLocal,
        },
        service_counters: true,
        ..RuleOptions::nftables()
    };
    let setup = NodeSetup {
        options,
        node_topology: NodeTopology { node: "node".into(), zone: None },
        families: Families::DUAL,
        owned: false,
        local_addresses: PerFamily { v4: vec![[192, 168, 10, 1].into()], v6: Vec::new() },
    };
    wanted(&objects, setup).unwrap()
}

/// What other versions write otherwise. Newer ones have the name `dstnat` in the output hook too; 0.9.8
/// writes out that an address and a port are meant, leaves the port out where a map is filled, and does
/// not know how to say that a bit is not set.
fn as_1_0_6(listed: &str) -> String {
    let named = |priority: &str| format!("hook output priority {priority};");
    let listed = listed.replace(&named("dstnat - 10"), &named("-110"));
    let listed = listed.replace(&named("dstnat"), &named("-100"));
    let listed = listed.replace("ct status & dnat == 0x0", "ct status ! dnat");
    let listed = listed.replace("dnat ip addr . port to ", "dnat ip to ");
    let listed = listed.replace("dnat ip6 addr . port to ", "dnat ip6 to ");
    listed
        .replace(": ip daddr }", ": ip daddr . th dport }")
        .replace(": ip6 daddr }", ": ip6 daddr . th dport }")
}

/// Versions differ in the order of elements.
fn taken_apart(text: &str) -> Listing {
    let mut table = parse(text).expect("a listing").remove(0);
    for set in table.sets.values_mut() {
        set.elements.sort_by(|a, b| a.key.cmp(&b.key));
    }
    table
}

/// Programs the tables in a namespace of its own and has them listed.
fn lists_as_rendered(nft: &Nft) {
    let netns = Netns::new("nft").unwrap();
    let wanted = tables();
    for family in Family::BOTH {
        let ruleset = &wanted.rulesets[family];
        let listed = netns.run(|| {
            let mut kernel = NetlinkKernel::open().unwrap();
            kernel.commit(&Transaction { family, ops: ops(ruleset) }).unwrap();
            nft.run(&["list", "table", family.nft(), "kube-proxy"])
        });
        let (ours, nfts) = (taken_apart(&render(ruleset)), taken_apart(&as_1_0_6(&listed)));
        for (name, set) in &ours.sets {
            assert_eq!(Some(set), nfts.sets.get(name), "{name}, {}", nft.run(&["--version"]));
        }
        for (name, chain) in &ours.chains {
            assert_eq!(Some(chain), nfts.chains.get(name), "{name}, {}", nft.run(&["--version"]));
        }
        assert_eq!(ours, nfts, "{}", nft.run(&["--version"]));
    }
}

fn ops(ruleset: &kubeweir::ruleset::Ruleset) -> Vec<Op> {
    let mut ops = vec![Op::AddTable(ruleset.table.clone().expect("a table"))];
    ops.extend(ruleset.counters.keys().cloned().map(Op::AddCounter));
    ops.extend(ruleset.sets.values().map(|(set, _)| Op::AddSet(set.clone())));
    ops.extend(ruleset.chains.values().map(|(chain, _)| Op::AddChain(chain.clone())));
    for (set, elements) in ruleset.sets.values().filter(|(_, elements)| !elements.is_empty()) {
        ops.push(Op::AddElements(set.name.clone(), elements.values().cloned().collect()));
    }
    for (chain, rules) in ruleset.chains.values() {
        let rules = rules.iter().map(|rule| Op::AddRule(chain.name.clone(), rule.clone()));
        ops.extend(rules);
    }
    ops
}

#[test]
fn the_system_s() {
    lists_as_rendered(&Nft::system());
}

#[test]
fn debian_11_s() {
    lists_as_rendered(&Nft::unpacked("bullseye"));
}

#[test]
fn debian_12_s() {
    lists_as_rendered(&Nft::unpacked("bookworm"));
}

#[test]
fn debian_13_s() {
    lists_as_rendered(&Nft::unpacked("trixie"));
}

#[test]
fn debian_unstable_s() {
    lists_as_rendered(&Nft::unpacked("sid"));
}
