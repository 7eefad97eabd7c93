//! The listings under `rules/`: documentation and goldens at once.
//!
//! `base-*.nft` is the program as `nft list table` prints it on a node without Services. Every other
//! file shows what one shape of Service adds: elements and chains. Each is held twice: rendered
//! without a kernel it must be the file's text, and listed by stock nft from the real kernel it must
//! be the same apart from the order of blocks. `UPDATE_GOLDEN=1 cargo test --test golden` rewrites.

#![allow(clippy::unwrap_used)] // a test binary, helpers included

#[path = "golden/listing.rs"]
mod listing;
mod netns;
#[path = "golden/shapes.rs"]
mod shapes;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use kubeweir::engine::Engine;
use kubeweir::kernel::Kernel;
use kubeweir::model::{Change, Families, Family, Kind, Object};
use kubeweir::netlink::NetlinkKernel;
use kubeweir::program::RuleOptions;
use kubeweir::ruleset::{Ownership, Ruleset, Table, render, render_part};
use kubeweir::sync::Synchronizer;
use kubeweir::testing::FakeKernel;
use kubeweir::topology::NodeTopology;
use listing::sorted_blocks;
use netns::{in_netns, run};

fn synced<K: Kernel>(kernel: K, options: &RuleOptions, objects: &[Object]) -> Synchronizer<K> {
    let node_topology = NodeTopology { node: "node-a".into(), zone: None };
    let mut engine = Engine::new(options.clone(), node_topology, Families::DUAL, false);
    for kind in Kind::ALL {
        let of_kind = objects.iter().filter(|o| o.kind() == kind).cloned().collect();
        engine.apply(Change::Replace(kind, of_kind));
    }
    let mut synchronizer = Synchronizer::new(engine, kernel);
    for family in Family::BOTH {
        let report = synchronizer.sync(family, Duration::ZERO).unwrap();
        assert!(report.result.is_ok() && report.refused.is_empty(), "{report:?}");
    }
    synchronizer
}

/// What a table has that the base has not.
fn added(table: &Ruleset, base: &Ruleset) -> Ruleset {
    let plain = Table { comment: None, owner: Ownership::Nobody, persist: false };
    let mut added = Ruleset { table: Some(plain), ..Ruleset::empty(table.family) };
    for (name, (set, elements)) in &table.sets {
        let known = base.sets.get(name);
        let new: BTreeMap<_, _> = elements
            .iter()
            .filter(|(key, _)| known.is_none_or(|(_, known)| !known.contains_key(key)))
            .map(|(key, element)| (*key, element.clone()))
            .collect();
        if !new.is_empty() || known.is_none() {
            added.sets.insert(name.clone(), (set.clone(), new));
        }
    }
    for (name, (chain, rules)) in &table.chains {
        let known = base.chains.get(name);
        let own = known.map_or(&[][..], |(_, rules)| rules);
        if known.is_none() || rules.len() > own.len() {
            // They come before those of the base, or after.
            let more = rules.strip_suffix(own).or(rules.strip_prefix(own)).unwrap();
            added.chains.insert(name.clone(), (chain.clone(), more.to_vec()));
        }
    }
    added
}

fn hold(file: &str, text: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("rules").join(file);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(golden, text, "rules/{file} differs; UPDATE_GOLDEN=1 rewrites it");
}

/// Compares a family's table in the real kernel, listed by stock nft, with the rendered one.
fn assert_listed(name: &str, options: &RuleOptions, objects: &[Object], family: Family) {
    let fake = synced(FakeKernel::new(), options, objects);
    let rendered = render(fake.kernel.ruleset(family));
    let listed = in_netns(|| {
        let _kernel = synced(NetlinkKernel::open().unwrap(), options, objects);
        run(&["nft", "list", "table", family.nft(), "kube-proxy"], "")
    });
    let (rendered, listed) = (sorted_blocks(&rendered), sorted_blocks(&listed));
    for (rendered, listed) in rendered.iter().zip(&listed) {
        assert_eq!(rendered, listed, "{name}");
    }
    assert_eq!(rendered.len(), listed.len(), "{name}");
}

#[test]
fn base_programs() {
    for (file, options, family) in shapes::bases() {
        let synced = synced(FakeKernel::new(), &options, &[]);
        hold(file, &render(synced.kernel.ruleset(family)));
        assert_listed(file, &options, &[], family);
    }
}

// B-178, B-179: one table per family; base chains as upstream's.
#[test]
fn shapes_of_services() {
    let (_, options, _) = shapes::bases().swap_remove(0);
    let base = synced(FakeKernel::new(), &options, &[]);
    for (file, words, objects) in shapes::all() {
        let table = synced(FakeKernel::new(), &options, &objects);
        let mut text = String::new();
        for line in words.lines() {
            text.push_str(&format!("# {}\n", line.trim()));
        }
        for family in Family::BOTH {
            let added = added(table.kernel.ruleset(family), base.kernel.ruleset(family));
            if !added.sets.is_empty() {
                text.push_str(&render_part(&added, table.kernel.ruleset(family)));
            }
            assert_listed(file, &options, &objects, family);
        }
        hold(file, &text);
    }
}
