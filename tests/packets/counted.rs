//! What is not let through is counted by its reason: exactly that, and nothing that is let through.

use std::collections::BTreeMap;

use kubeweir::model::{Family, Kind, Object, Protocol};
use kubeweir::program::CounterId;
use kubeweir::testing::lab::{
    Dial, Outcome, PATIENCE, Place, PodNetwork, SILENCE, external_ip, service,
};

use super::case::To;
use super::rig::{Rig, Settings, both_families, web_slices};

/// No endpoints; endpoints elsewhere under policy Local; source ranges; one that is served.
fn objects() -> Vec<Object> {
    let built = |n: usize, port| {
        let built = service(&format!("svc-{n}"), n).twins("http", 80, port);
        both_families(built, |built, family| built.load_balancer_ip(external_ip(n, family)))
    };
    let ranges = ["203.0.113.0/25", "2001:db8:113::/121"];
    let restricted = ranges
        .into_iter()
        .fold(built(32, Some(30_032)), |built, net| built.source_range(net.parse().unwrap()));
    let mut objects = vec![
        built(30, Some(30_030)).object(),
        built(31, Some(30_031)).external_local().object(),
        restricted.object(),
        built(33, None).object(),
    ];
    objects.extend(web_slices("svc-31", 8080, &[Place::RemotePod(0)]));
    objects.extend(web_slices("svc-32", 8080, &[Place::Pod(0)]));
    objects.extend(web_slices("svc-33", 8080, &[Place::Pod(0), Place::RemotePod(0)]));
    objects
}

/// Who dials what, and what counts it: nothing, if it is served.
fn dials() -> Vec<(Place, To, Option<CounterId>)> {
    let outside = Place::OutsideAt(200);
    let allowed = Place::OutsideAt(5);
    let reason = |place, to, id| (place, to, Some(id));
    vec![
        reason(Place::Pod(1), To::ClusterIp(30, 80), CounterId::NoEndpoints),
        reason(Place::Host, To::ClusterIp(30, 80), CounterId::NoEndpoints),
        reason(outside, To::External(30, 80), CounterId::NoEndpoints),
        reason(outside, To::Node(30_030), CounterId::NoEndpoints),
        reason(outside, To::External(31, 80), CounterId::NoLocalEndpoints),
        reason(outside, To::Node(30_031), CounterId::NoLocalEndpoints),
        reason(outside, To::External(32, 80), CounterId::SourceRanges),
        reason(Place::Pod(1), To::ClusterIp(33, 81), CounterId::UnusedPort),
        reason(Place::Host, To::ClusterIp(33, 81), CounterId::UnusedPort),
        reason(Place::Pod(1), To::ClusterIp(99, 80), CounterId::UnallocatedAddress),
        (Place::Pod(1), To::ClusterIp(31, 80), None),
        (allowed, To::External(32, 80), None),
        (outside, To::Node(30_032), None),
        (Place::Pod(1), To::ClusterIp(33, 80), None),
        (Place::Host, To::ClusterIp(33, 80), None),
    ]
}

type Counts = BTreeMap<(Family, String), u64>;

fn counts(rig: &Rig) -> Counts {
    let (found, _) = rig.dumps();
    let of_family = |family: Family| {
        let counters = found[family].counters.iter();
        counters.map(move |(name, counter)| ((family, name.to_string()), counter.packets))
    };
    Family::BOTH.into_iter().flat_map(of_family).collect()
}

fn is_refused(id: CounterId) -> bool {
    matches!(id, CounterId::NoEndpoints | CounterId::UnusedPort)
}

/// What becomes of a dial, and how it is seen.
fn holds(outcome: &Outcome, reason: Option<CounterId>) -> bool {
    match reason {
        Some(id) if is_refused(id) => *outcome == Outcome::Refused,
        Some(_) => *outcome == Outcome::Silent,
        None => outcome.answer().is_some(),
    }
}

/// Dials everything, each its own number of times, and says by how much each counter has to rise.
fn dial_all(rig: &Rig) -> Counts {
    let mut rise = Counts::new();
    for (index, (place, to, reason)) in dials().into_iter().enumerate() {
        let times = 2 + index % 3;
        let dropped = reason.is_some_and(|id| !is_refused(id));
        // TCP says again what is dropped, and nobody can tell how often.
        let protocols: &[Protocol] =
            if dropped { &[Protocol::Udp] } else { &[Protocol::Tcp, Protocol::Udp] };
        for (family, &protocol) in
            Family::BOTH.into_iter().flat_map(|family| protocols.iter().map(move |p| (family, p)))
        {
            let timeout = if dropped { SILENCE } else { PATIENCE };
            let dial = Dial::new(protocol, to.address(family)).timeout(timeout);
            let outcomes = rig.lab.dial(place, dial, times);
            let held = outcomes.iter().all(|outcome| holds(outcome, reason));
            assert!(held, "{place:?} to {to:?}/{protocol}, {family}: {outcomes:?}");
            if let Some(id) = reason {
                *rise.entry((family, id.to_string())).or_default() += times as u64;
            }
        }
    }
    rise
}

fn added(a: &Counts, b: &Counts) -> Counts {
    let sum = |(key, count): (&_, &u64)| (Clone::clone(key), count + b.get(key).unwrap_or(&0));
    a.iter().map(sum).collect()
}

#[test]
fn each_reason_counts_what_it_did_not_let_through() {
    let mut rig = Rig::new(PodNetwork::Routed, Settings::default());
    rig.start(objects());
    let zero = counts(&rig);
    let names: Vec<&str> = zero.keys().filter(|(f, _)| *f == Family::V4).map(|k| &*k.1).collect();
    let reasons = [
        "no-endpoints",
        "no-local-endpoints",
        "source-ranges",
        "unallocated-address",
        "unused-port",
    ];
    assert_eq!(names, reasons);
    assert!(zero.values().all(|&count| count == 0), "{zero:?}");
    let once = dial_all(&rig);
    assert!(zero.keys().all(|key| once[key] > 0), "every reason is dialled: {once:?}");
    assert_eq!(counts(&rig), once);

    // Changes leave them alone, and so does a process that finds the table as it was left.
    rig.delete(Kind::Service, &["svc-33"]);
    rig.set(objects());
    assert_eq!(counts(&rig), once);
    rig.restart();
    assert_eq!(counts(&rig), once);
    let twice = added(&once, &dial_all(&rig));
    assert_eq!(counts(&rig), twice);

    // The end in order writes another table, and so does the start that finds it.
    rig.end();
    rig.restart();
    assert_eq!(counts(&rig), zero);
    assert_eq!(dial_all(&rig), once);
    assert_eq!(counts(&rig), once);
}
