//! One change, at clusters of several sizes.

use std::time::Duration;

use kubeweir::model::{Change, Kind, Object, PerFamily};

use crate::cluster::{self, Size};
use crate::plot;
use crate::report::{Table, percentile, ratio, us};
use crate::rig::{Rig, Sample};

const SIZES: [u32; 4] = [100, 1_000, 10_000, 100_000];

/// Samples of each kind of change at each size.
const SAMPLES: u32 = 1_000;

/// A change under measurement: the change of a service, and the one that undoes it.
type Pair = fn(Size, u32) -> [Vec<Change>; 2];

const KINDS: [(&str, Pair); 5] = [
    ("endpoint replaced", replaced),
    ("endpoint removed, added", removed_and_added),
    ("class crossed (16 to 64 slots, back)", class_crossed),
    ("service removed, added", service_removed),
    ("1 000 endpoints replaced at once", thousand),
];

/// Prints the table.
pub fn run() {
    let mut table = Table::new(
        "One change, 10 endpoints a service",
        &[
            "change",
            "services",
            "total p50 us",
            "p99 us",
            "floor p50 us",
            "p99 us",
            "p50 / floor",
            "messages",
            "elements",
        ],
    );
    let mut curves: [Vec<(f64, f64)>; 3] = Default::default();
    for services in SIZES {
        let size = Size { services, endpoints: 10 };
        let (mut rig, _) = Rig::loaded(size);
        for (name, pair) in KINDS {
            let samples = if name.starts_with("1 000") { SAMPLES / 20 } else { SAMPLES };
            measure(&mut rig, size, pair, samples / 10);
            let samples = measure(&mut rig, size, pair, samples);
            if name == KINDS[0].0 {
                let points = [(total as Of, 50), (total, 99), (floor, 50)];
                for (curve, (of, hundredths)) in curves.iter_mut().zip(points) {
                    let mut times: Vec<Duration> = samples.iter().map(of).collect();
                    let time = percentile(&mut times, hundredths).as_secs_f64() * 1e6;
                    curve.push((f64::from(services), time));
                }
            }
            table.row(&row(name, services, &samples));
        }
        let samples = node_address(&mut rig);
        table.row(&row("node address added, removed", services, &samples));
    }
    table.print();
    draw(curves);
}

/// A figure of a sample.
type Of = fn(&Sample) -> Duration;

fn total(sample: &Sample) -> Duration {
    sample.total
}

fn floor(sample: &Sample) -> Duration {
    sample.floor
}

/// Writes the plot of the first kind of change.
fn draw([p50, p99, floor]: [Vec<(f64, f64)>; 3]) {
    let series = [
        ("Kubeweir, p99", "#7fb0e6", p99),
        ("Kubeweir, p50", "#1f5fa8", p50),
        ("the kernel alone, p50", "#888888", floor),
        // One figure, measured apart from this run: see benches/README.md.
        ("kube-proxy 1.36, nftables", "#c0392b", vec![(10_000.0, 5.5e6)]),
    ];
    let svg = plot::latency("One changed endpoint: event in hand to commit acknowledged", &series);
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/change-latency.svg");
    std::fs::write(path, svg).expect("the repository is writable");
}

/// Walks through the cluster in big steps, so that nothing is warm that would not be.
fn measure(rig: &mut Rig, size: Size, pair: Pair, samples: u32) -> Vec<Sample> {
    let mut all = Vec::with_capacity(samples as usize);
    for i in 0..samples / 2 {
        let index = (u64::from(i) * 7_919 % u64::from(size.services)) as u32;
        for changes in pair(size, index) {
            all.push(rig.step(changes));
        }
    }
    all
}

/// The node's second NodePort address comes and goes.
fn node_address(rig: &mut Rig) -> Vec<Sample> {
    let addresses = ["192.168.0.1", "192.168.0.2"].map(|text| text.parse().expect("an address"));
    let turn = |i: u32| {
        let v4 = addresses[..1 + (i as usize + 1) % 2].to_vec();
        let both = PerFamily { v4, v6: Vec::new() };
        rig.step_with(|engine| {
            engine.set_local_addresses(&both);
        })
    };
    (0..SAMPLES).map(turn).collect()
}

fn row(name: &str, services: u32, samples: &[Sample]) -> Vec<String> {
    let times = |of: Of| samples.iter().map(of).collect::<Vec<Duration>>();
    let (mut total, mut floor) = (times(total), times(floor));
    let p50 = percentile(&mut total, 50);
    vec![
        name.to_owned(),
        services.to_string(),
        us(p50),
        us(percentile(&mut total, 99)),
        us(percentile(&mut floor, 50)),
        us(percentile(&mut floor, 99)),
        ratio(p50, percentile(&mut floor, 50)),
        samples[0].messages.to_string(),
        samples[0].elements.to_string(),
    ]
}

fn apply(slice: kubeweir::model::EndpointSlice) -> Change {
    Change::Apply(slice.into())
}

/// The last endpoint is another one, then the old one again.
fn replaced(size: Size, index: u32) -> [Vec<Change>; 2] {
    let [before, mut after] = [(), ()].map(|()| size.slices(index).remove(0));
    let last = after.endpoints.last_mut().expect("services have endpoints");
    *last = cluster::pod(4_000_000 + index);
    [vec![apply(after)], vec![apply(before)]]
}

fn removed_and_added(size: Size, index: u32) -> [Vec<Change>; 2] {
    let [before, mut after] = [(), ()].map(|()| size.slices(index).remove(0));
    after.endpoints.pop();
    [vec![apply(after)], vec![apply(before)]]
}

/// From 10 to 17 endpoints and back, which is less than a quarter of 64 slots.
fn class_crossed(size: Size, index: u32) -> [Vec<Change>; 2] {
    let [before, mut more] = [(), ()].map(|()| size.slices(index).remove(0));
    more.endpoints.extend((0..7).map(|j| cluster::pod(4_000_000 + index * 7 + j)));
    [vec![apply(more)], vec![apply(before)]]
}

fn service_removed(_size: Size, index: u32) -> [Vec<Change>; 2] {
    let removed = Change::Delete(Kind::Service, cluster::name(index));
    [vec![removed], vec![Change::Apply(Object::from(cluster::service(index)))]]
}

fn thousand(size: Size, index: u32) -> [Vec<Change>; 2] {
    let mut both = [Vec::new(), Vec::new()];
    for i in 0..1_000.min(size.services) {
        for (all, one) in both.iter_mut().zip(replaced(size, (index + i) % size.services)) {
            all.extend(one);
        }
    }
    both
}
