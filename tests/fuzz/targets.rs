//! What is fuzzed: each takes any bytes and must neither panic nor leave nonsense behind. Shared by
//! the test of the corpus and by cargo-fuzz.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use kubeweir::engine::Engine;
use kubeweir::manifest::{Input, load_all};
use kubeweir::model::{Change, Families, Family, Kind, Object, PerFamily};
use kubeweir::netlink::{Messages, decode};
use kubeweir::program::{LocalPods, NodePortMatch, RuleOptions};
use kubeweir::sync::Synchronizer;
use kubeweir::testing::FakeKernel;
use kubeweir::testing::normal::{assert_alike, normal_form};
use kubeweir::topology::NodeTopology;
use kubeweir::wire::{Decoder, Encoding, Frames, MAX_FRAME};

/// The first byte says what the rest is to be: kind, encoding, list or stream.
pub fn wire(bytes: &[u8]) {
    let Some((choice, body)) = bytes.split_first() else { return };
    let kind = Kind::ALL[usize::from(choice & 3)];
    let encoding = if choice & 4 == 0 { Encoding::Json } else { Encoding::Protobuf };
    let mut decoder = Decoder::new(choice & 16 == 0);
    if choice & 8 == 0 {
        // An error is an answer.
        drop(decoder.list(kind, encoding, &Bytes::copy_from_slice(body)));
        return;
    }
    let mut frames = Frames::new(encoding, MAX_FRAME);
    for chunk in body.chunks(97) {
        frames.push(chunk);
        while let Ok(Some(frame)) = frames.next_frame() {
            drop(decoder.event(kind, encoding, &frame));
        }
    }
}

/// The text of a configuration file, up to what the agent would run with.
pub fn configuration(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let parsed = kubeweir::cli::proxy::parse(&["--hostname-override=a".to_owned()]);
    let parsed = parsed.expect("constant flags are valid");
    if let Ok(completed) = kubeweir::config::complete(&parsed.flags, Some(text)) {
        drop(kubeweir::config::write_config(&completed.object));
        drop(kubeweir::config::resolve(completed));
    }
}

/// An answer of nf_tables: dumps, notifications, elements.
pub fn netlink(bytes: &[u8]) {
    for message in Messages::new(bytes) {
        let Ok(message) = message else { return };
        drop(decode(&message));
    }
}

/// Manifests, through decoder, engine and transactions to a table: at once, one by one, by a new
/// process; and away again.
pub fn engine(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let input = Input::Text { name: "fuzz".to_owned(), text: text.to_owned() };
    let (objects, _) = load_all(&[input], true);
    let fresh = run(&objects, FakeKernel::new());
    let mut changed = run(&[], FakeKernel::new());
    // In the other order; of objects of one name the last counts.
    let mut seen = BTreeSet::new();
    for object in objects.iter().rev() {
        if seen.insert((object.kind(), object.name().clone())) {
            changed.engine.apply(Change::Apply(object.clone()));
            sync(&mut changed);
        }
    }
    same(&changed, &fresh, "one by one");
    changed.kernel.close_socket();
    let mut adopted = run(&objects, changed.kernel);
    same(&adopted, &fresh, "by another process");
    for object in &objects {
        adopted.engine.apply(Change::Delete(object.kind(), object.name().clone()));
        sync(&mut adopted);
    }
    same(&adopted, &run(&[], FakeKernel::new()), "back to nothing");
}

fn same(found: &Synchronizer<FakeKernel>, expected: &Synchronizer<FakeKernel>, way: &str) {
    for family in Family::BOTH {
        let form = |of: &Synchronizer<FakeKernel>| normal_form(of.kernel.ruleset(family));
        assert_alike(&form(found), &form(expected), format!("{family}, {way}"));
    }
}

fn run(objects: &[Object], kernel: FakeKernel) -> Synchronizer<FakeKernel> {
    let address = |text: &str| text.parse().expect("a literal address");
    let options = RuleOptions {
        local_pods: PerFamily {
            v4: LocalPods::Cidr("10.244.0.0/16".parse().expect("a literal network")),
            v6: LocalPods::Interface("cni0".to_owned()),
        },
        node_ports: PerFamily {
            v4: NodePortMatch::Addresses(vec![address("192.168.10.1")]),
            v6: NodePortMatch::AnyLocal,
        },
        ..RuleOptions::nftables()
    };
    let node_topology = NodeTopology { node: "node".into(), zone: None };
    let engine = Engine::new(options, node_topology, Families::DUAL, true);
    let mut synchronizer = Synchronizer::new(engine, kernel);
    for kind in Kind::ALL {
        let of_kind = objects.iter().filter(|object| object.kind() == kind).cloned().collect();
        synchronizer.engine.apply(Change::Replace(kind, of_kind));
    }
    sync(&mut synchronizer);
    synchronizer
}

fn sync(synchronizer: &mut Synchronizer<FakeKernel>) {
    for family in Family::BOTH {
        if let Some(report) = synchronizer.sync(family, Duration::ZERO) {
            assert!(report.result.is_ok() && report.refused.is_empty(), "{report:?}");
            assert!(report.troubles.is_empty(), "{report:?}");
        }
    }
}
