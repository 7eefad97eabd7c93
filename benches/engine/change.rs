//! One change, at clusters of several sizes.

use std::time::Duration;

use kubeweir::model::{Change, Kind, Object};

use crate::cluster::{self, Size};
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
    for services in SIZES {
        let size = Size { services, endpoints: 10 };
        let (mut rig, _) = Rig::loaded(size);
        for (name, pair) in KINDS {
            let samples = if name.starts_with("1 000") { SAMPLES / 20 } else { SAMPLES };
            measure(&mut rig, size, pair, samples / 10);
            let samples = measure(&mut rig, size, pair, samples);
            table.row(&row(name, services, &samples));
        }
    }
    table.print();
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

fn row(name: &str, services: u32, samples: &[Sample]) -> Vec<String> {
    let times = |of: fn(&Sample) -> Duration| samples.iter().map(of).collect::<Vec<Duration>>();
    let (mut total, mut floor) = (times(|s| s.total), times(|s| s.floor));
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

/// From 10 to 17 endpoints and back to 10; the list keeps its 64 slots until it is less than a
/// quarter full, so it goes through 3 on its way.
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
