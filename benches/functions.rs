//! Functions on their own, with criterion: decoding, desired state, diff, encoding.
//!
//! `cargo bench --bench functions`; nothing here touches the kernel.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kubeweir::engine::{Engine, Selection};
use kubeweir::model::{Change, Families, Family, Kind};
use kubeweir::netlink::Batch;
use kubeweir::program::{RuleOptions, elements};
use kubeweir::ruleset::Table;
use kubeweir::sync::Synchronizer;
use kubeweir::testing::FakeKernel;
use kubeweir::topology::{Needs, NodeTopology, merge, usable};
use kubeweir::wire::{Decoder, Encoding};

#[path = "engine/cluster.rs"]
#[allow(dead_code)] // the other harness uses the rest
mod cluster;

use cluster::{NODE, Size};

/// Lists of a real API server, repeated until they are worth measuring.
const LISTS: [(Kind, Encoding, &[u8]); 4] = [
    (Kind::Service, Encoding::Protobuf, include_bytes!("../tests/data/wire/list-services.pb")),
    (Kind::Service, Encoding::Json, include_bytes!("../tests/data/wire/list-services.json")),
    (
        Kind::EndpointSlice,
        Encoding::Protobuf,
        include_bytes!("../tests/data/wire/list-endpointslices.pb"),
    ),
    (
        Kind::EndpointSlice,
        Encoding::Json,
        include_bytes!("../tests/data/wire/list-endpointslices.json"),
    ),
];

fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    for (kind, encoding, body) in LISTS {
        let body = Bytes::from_static(body);
        let mut decoder = Decoder::new(true);
        let objects = decoder.list(kind, encoding, &body).expect("a real list").objects.len();
        let counted = allocation_counter::measure(|| {
            drop(decoder.list(kind, encoding, &body).expect("a real list"));
        });
        let each = |count: u64| count as f64 / objects as f64;
        println!(
            "decode {kind} {encoding:?}: {:.1} allocations and {:.0} bytes an object",
            each(counted.count_total),
            each(counted.bytes_total),
        );
        group.throughput(Throughput::Bytes(body.len() as u64));
        let name = BenchmarkId::new(format!("{kind} {encoding:?}"), format!("{objects} objects"));
        group.bench_function(name, |bencher| {
            bencher.iter(|| decoder.list(kind, encoding, black_box(&body)).expect("a real list"));
        });
    }
    group.finish();
}

/// The steps of a change on their own, for a service of ten endpoints.
fn steps(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("steps");
    let size = Size { services: 1_000, endpoints: 10 };
    let mut engine = engine();
    for change in size.lists() {
        engine.apply(change);
    }
    let clients = BTreeMap::new();
    let plan = engine.plan(Family::V4, Selection::Elements(usize::MAX), &clients);
    let whole = plan.transaction.clone();
    engine.applied(Family::V4, plan);

    let slices = size.slices(7);
    let node_topology = engine.node_topology().clone();
    let name = cluster::name(7);
    let placement = engine.applied_placements(Family::V4, &name)[0].clone();
    let needs = Needs { cluster: true, local: false };
    group.bench_function("desired state", |bencher| {
        bencher.iter(|| {
            let port = &placement.name;
            let merged = merge(slices.iter(), Family::V4, &port.port, port.protocol);
            black_box(usable(&merged, &node_topology, needs));
            elements(black_box(&placement), Family::V4, engine.options())
        });
    });

    let mut fewer = slices[0].clone();
    fewer.endpoints.pop();
    engine.apply(Change::Apply(fewer.into()));
    group.bench_function("desired state and diff", |bencher| {
        bencher.iter(|| engine.plan(Family::V4, Selection::Elements(10_000), &clients));
    });

    let one = engine.plan(Family::V4, Selection::Elements(10_000), &clients).transaction;
    let mut batch = Batch::new(Table::NAME);
    for (name, transaction) in [("encode one endpoint", one), ("encode 1 000 services", whole)] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                batch.encode(black_box(&transaction), 1).expect("it was encoded before");
                batch.bytes().len()
            });
        });
    }
    group.finish();
}

fn engine() -> Engine {
    let node_topology = NodeTopology { node: NODE.into(), zone: None };
    Engine::new(RuleOptions::nftables(), node_topology, Families::DUAL, true)
}

/// Everything but the kernel: an endpoint comes or goes, its service is planned.
fn plan(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("apply and plan one endpoint");
    for services in [100, 10_000] {
        let size = Size { services, endpoints: 10 };
        let mut synchronizer = Synchronizer::new(engine(), FakeKernel::new());
        for change in size.lists() {
            synchronizer.engine.apply(change);
        }
        for family in Family::BOTH {
            synchronizer.sync(family, Duration::ZERO);
        }
        let engine = &mut synchronizer.engine;
        let whole = size.slices(7).remove(0);
        let mut fewer = whole.clone();
        fewer.endpoints.pop();
        let mut turns = [whole, fewer].map(|slice| Change::Apply(slice.into())).into_iter().cycle();
        group.bench_function(BenchmarkId::from_parameter(services), |bencher| {
            bencher.iter(|| {
                engine.apply(turns.next().expect("endless"));
                let clients = BTreeMap::new();
                let plan = engine.plan(Family::V4, Selection::Elements(10_000), &clients);
                engine.applied(Family::V4, plan);
            });
        });
    }
    group.finish();
}

criterion_group!(functions, decode, steps, plan);
criterion_main!(functions);
