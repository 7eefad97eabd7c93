//! A service that is set aside keeps exactly what it had: through every later reading of the table.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::refusals::{V4, assert_serves, cluster, start};
use crate::engine::{Adoption, MOST_ENTRIES};
use crate::kernel::Op;
use crate::model::{Change, Kind, Object, Protocol, SlicePort};
use crate::ruleset::{Element, Key, Name, Rule, Ruleset};
use crate::sync::Synchronizer;
use crate::testing::objects::{name, port, service, slice};
use crate::testing::{FakeKernel, Fault};

/// Refuses every element that leads to this endpoint.
fn refuse_endpoint(kernel: &mut FakeKernel, address: [u8; 4]) {
    kernel.dislike(move |op| {
        let Op::AddElements(_, elements) = op else { return None };
        let address = Key::new().address(address.into());
        let mentions = |e: &Element| match &e.value {
            crate::ruleset::Value::Data(data) => data.as_bytes().starts_with(address.as_bytes()),
            _ => false,
        };
        elements.iter().any(mentions).then_some(libc::EINVAL)
    });
}

/// The slice of a service, with other endpoints.
fn endpoints(of: &str, addresses: &[&str]) -> Object {
    slice(&format!("{of}-x"), of, ("http", Protocol::Tcp, 8080), addresses).into()
}

/// Three services; s1 is of every kind that has something of its own in the kernel: affinity, source
/// ranges, a node port, policy Local, shared endpoints.
fn rich_cluster() -> Vec<Object> {
    let mut objects = cluster(3);
    let mut rich = service("s1", &["10.96.0.1"]);
    rich.ports.push(port("http", Protocol::Tcp, 80, Some(30001)));
    rich.kind = crate::model::ServiceType::LoadBalancer;
    rich.external_policy = crate::model::TrafficPolicy::Local;
    rich.external_ips = vec!["192.0.2.1".parse().unwrap()];
    rich.load_balancer_ips = vec!["203.0.113.1".parse().unwrap()];
    rich.source_ranges = vec!["198.51.100.0/24".parse().unwrap()];
    rich.session_affinity = Some(60);
    objects.retain(|object| *object.name() != name("s1"));
    objects.push(rich.into());
    objects
}

type Content = (BTreeMap<Name, BTreeSet<Key>>, BTreeMap<Name, Vec<Rule>>);

/// Every element and every chain, without what belongs to no service.
fn content(ruleset: &Ruleset) -> Content {
    let sets =
        ruleset.sets.iter().map(|(name, (_, e))| (name.clone(), e.keys().copied().collect()));
    let chains = ruleset.chains.iter().map(|(name, (_, rules))| (name.clone(), rules.clone()));
    (sets.collect(), chains.collect())
}

/// A cluster that is served, in which s1 then changes to something the kernel refuses.
fn with_s1_refused(objects: Vec<Object>, blames: bool) -> (Synchronizer<FakeKernel>, Content) {
    let mut current = start(objects, FakeKernel::new());
    assert!(current.sync(V4, Duration::ZERO).unwrap().result.is_ok());
    let before = content(current.kernel.ruleset(V4));
    current.kernel.blame(blames);
    refuse_endpoint(&mut current.kernel, [10, 244, 0, 99]);
    current.engine.apply(Change::Apply(endpoints("s1", &["10.244.0.99@a", "10.244.1.1@b"])));
    let report = current.sync(V4, Duration::ZERO).unwrap();
    assert!(report.result.is_ok(), "{:?}", report.result);
    assert_eq!(aside(&current), ["default/s1"]);
    (current, before)
}

fn aside(synchronizer: &Synchronizer<FakeKernel>) -> Vec<String> {
    synchronizer.quarantined(V4).keys().map(ToString::to_string).collect()
}

/// What the sources have after the change that is refused.
fn changed(mut objects: Vec<Object>) -> Vec<Object> {
    objects.retain(|object| *object.name() != name("s1-x"));
    objects.push(endpoints("s1", &["10.244.0.99@a", "10.244.1.1@b"]));
    objects
}

#[track_caller]
fn assert_kept(current: &Synchronizer<FakeKernel>, before: &Content, context: &str) {
    let now = content(current.kernel.ruleset(V4));
    for (set, keys) in &before.0 {
        assert_eq!(now.0.get(set), Some(keys), "{context}: set {set}");
    }
    assert_eq!(now.1, before.1, "{context}: chains");
    assert!(!current.is_pending(V4), "{context}: still pending");
}

// B1.
#[test]
fn a_service_that_is_refused_keeps_what_it_had() {
    for (what, objects) in [("plain", cluster(3)), ("rich", rich_cluster())] {
        for blames in [true, false] {
            let context = format!("{what}, blames {blames}");
            let (mut current, before) = with_s1_refused(objects.clone(), blames);
            assert_kept(&current, &before, &context);
            let key = Key::new().address([10, 96, 0, 1].into());
            let (_, ips) = &current.kernel.ruleset(V4).sets["frontend-ips"];
            assert!(ips.contains_key(&key), "{context}: the frontend is gone");
            for round in 0..2 {
                current.distrust(V4);
                current.sync(V4, Duration::ZERO);
                assert_kept(&current, &before, &format!("{context}: audit {round}"));
            }
            current.kernel.fail([Fault::LostAfter]);
            current.engine.apply(Change::Apply(endpoints(
                "s2",
                &["10.244.0.2@a", "10.244.1.2@b", "10.244.2.2@b"],
            )));
            current.sync(V4, Duration::ZERO);
            current.engine.apply(Change::Apply(endpoints("s2", &["10.244.0.2@a", "10.244.1.2@b"])));
            current.sync(V4, Duration::ZERO);
            assert_kept(&current, &before, &format!("{context}: a lost outcome"));
        }
    }
}

// B1: a foreign change takes part of it away, too, and the repair brings it back.
#[test]
fn a_repair_restores_what_a_refused_service_had() {
    for (what, objects) in [("plain", cluster(3)), ("rich", rich_cluster())] {
        let (mut current, before) = with_s1_refused(objects, true);
        let (_, list) = current.kernel.ruleset_mut(V4).sets.get_mut("endpoints-4").unwrap();
        let own = Key::new().address([10, 96, 0, 1].into());
        list.retain(|key, _| !key.as_bytes().starts_with(own.as_bytes()));
        current.distrust(V4);
        assert!(current.sync(V4, Duration::ZERO).unwrap().result.is_ok());
        assert_kept(&current, &before, what);
        *current.kernel.ruleset_mut(V4) = Ruleset::empty(V4);
        current.distrust(V4);
        assert!(current.sync(V4, Duration::ZERO).unwrap().result.is_ok());
        assert_kept(&current, &before, &format!("{what}: the table was gone"));
    }
}

/// The next process, on what this one left.
fn next(before: Synchronizer<FakeKernel>, objects: Vec<Object>) -> Synchronizer<FakeKernel> {
    let mut kernel = before.kernel;
    kernel.close_socket();
    start(objects, kernel)
}

// B1: the next process knows nothing of the service but what is in the kernel.
#[test]
fn a_restart_adopts_what_a_refused_service_has() {
    for (what, objects) in [("plain", cluster(3)), ("rich", rich_cluster())] {
        for blames in [true, false] {
            for batch in [1, 3, 1000] {
                let context = format!("{what}, blames {blames}, batches of {batch}");
                let (current, before) = with_s1_refused(objects.clone(), blames);
                let mut second = next(current, changed(objects.clone())).in_batches_of(batch);
                let report = second.sync(V4, Duration::ZERO).unwrap();
                assert_eq!(report.adoption, Some(Adoption::Adopted), "{context}");
                assert!(report.result.is_ok(), "{context}: {:?}", report.result);
                assert_eq!(aside(&second), ["default/s1"], "{context}");
                assert_kept(&second, &before, &context);
                second.distrust(V4);
                second.sync(V4, Duration::ZERO);
                assert_kept(&second, &before, &format!("{context}: audit"));
            }
        }
    }
}

// B1: a program of another version replaces the table, and takes over what the service had.
#[test]
fn an_upgrade_of_the_program_carries_what_a_refused_service_has() {
    for (what, objects) in [("plain", cluster(3)), ("rich", rich_cluster())] {
        for blames in [true, false] {
            let context = format!("{what}, blames {blames}");
            let (mut current, before) = with_s1_refused(objects.clone(), blames);
            let older = |current: &mut Synchronizer<FakeKernel>| {
                let table = current.kernel.ruleset_mut(V4).table.as_mut().unwrap();
                table.comment = Some("an older program".into());
            };
            older(&mut current);
            current.distrust(V4);
            let report = current.sync(V4, Duration::ZERO).unwrap();
            assert_eq!(report.adoption, Some(Adoption::Replace));
            assert_kept(&current, &before, &format!("{context}: same process"));
            older(&mut current);
            let mut second = next(current, changed(objects.clone()));
            let report = second.sync(V4, Duration::ZERO).unwrap();
            assert_eq!(report.adoption, Some(Adoption::Replace), "{context}");
            assert!(report.result.is_ok(), "{context}: {:?}", report.result);
            assert_eq!(aside(&second), ["default/s1"], "{context}");
            assert_kept(&second, &before, &context);
        }
    }
}

// B1: in the end the service is as after a fresh start, or gone.
#[test]
fn a_refused_service_that_fits_again_or_is_deleted_is_as_after_a_fresh_start() {
    for (what, objects) in [("plain", cluster(3)), ("rich", rich_cluster())] {
        for restarted in [false, true] {
            let context = format!("{what}, restarted {restarted}");
            let refused = || {
                let (mut current, _) = with_s1_refused(objects.clone(), true);
                if restarted {
                    current = next(current, changed(objects.clone()));
                    current.sync(V4, Duration::ZERO);
                }
                current
            };
            let fits = endpoints("s1", &["10.244.0.7@a"]);
            let mut current = refused();
            current.engine.apply(Change::Apply(fits.clone()));
            assert!(current.sync(V4, Duration::ZERO).unwrap().refused.is_empty());
            assert!(current.quarantined(V4).is_empty(), "{context}");
            let mut wanted = objects.clone();
            wanted.retain(|object| *object.name() != name("s1-x"));
            wanted.push(fits);
            assert_serves(&current.kernel, wanted, format!("{context}: it fits"));

            let mut current = refused();
            current.engine.apply(Change::Delete(Kind::Service, name("s1")));
            assert!(current.sync(V4, Duration::ZERO).unwrap().result.is_ok());
            assert!(current.quarantined(V4).is_empty(), "{context}");
            let wanted = objects.iter().filter(|object| *object.name() != name("s1"));
            assert_serves(
                &current.kernel,
                wanted.cloned().collect(),
                format!("{context}: deleted"),
            );

            let mut current = refused();
            current.kernel.like_everything();
            let now = current.next_retry(V4).unwrap();
            assert!(current.sync(V4, now).unwrap().result.is_ok());
            assert!(current.quarantined(V4).is_empty(), "{context}");
            assert_serves(&current.kernel, changed(objects.clone()), format!("{context}: a retry"));
        }
    }
}

// B1.
#[test]
fn a_service_that_grows_too_large_keeps_what_it_had() {
    let mut large = service("s1", &["10.96.0.1"]);
    let ports = 100;
    large.ports.extend((0..ports).map(|n| port("http", Protocol::Tcp, 80 + n, None)));
    for (n, port) in large.ports.iter_mut().enumerate().skip(1) {
        port.name = format!("p{n}").into();
    }
    let endpoints: Vec<String> = (0..MOST_ENTRIES / usize::from(ports) + 1)
        .map(|n| std::net::Ipv4Addr::from(0x0af4_0000 + n as u32).to_string())
        .collect();
    let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
    let mut many = slice("s1-x", "s1", ("http", Protocol::Tcp, 8080), &endpoints);
    many.ports = large
        .ports
        .iter()
        .map(|p| SlicePort { name: p.name.clone(), protocol: p.protocol, port: 8080 })
        .collect();
    let mut current = start(cluster(3), FakeKernel::new());
    current.sync(V4, Duration::ZERO);
    let before = content(current.kernel.ruleset(V4));
    current.engine.apply(Change::Apply(large.clone().into()));
    current.engine.apply(Change::Apply(many.clone().into()));
    assert!(current.sync(V4, Duration::ZERO).unwrap().result.is_ok());
    assert_eq!(aside(&current), ["default/s1"]);
    assert_kept(&current, &before, "too large");
    current.distrust(V4);
    current.sync(V4, Duration::ZERO);
    assert_kept(&current, &before, "too large: audit");
    let mut objects = cluster(3);
    objects.retain(|object| !object.name().name.starts_with("s1"));
    objects.extend([large.into(), many.into()]);
    let mut second = next(current, objects);
    second.sync(V4, Duration::ZERO);
    assert_eq!(aside(&second), ["default/s1"]);
    assert_kept(&second, &before, "too large: restart");
}

// A retry costs what the one service costs: no dump, and no look at the others.
#[test]
fn a_retry_of_a_refused_service_reads_no_table() {
    for blames in [true, false] {
        let (mut current, before) = with_s1_refused(cluster(40), blames);
        let dumps = current.kernel.dumps();
        for _ in 0..3 {
            let now = current.next_retry(V4).unwrap();
            let report = current.sync(V4, now).unwrap();
            assert_eq!((report.refused.len(), report.full), (1, false), "blames {blames}");
            assert!(report.adoption.is_none() && report.services.is_empty());
        }
        // Nor does another change that is refused in the same way.
        current.engine.apply(Change::Apply(endpoints("s1", &["10.244.0.99@a", "10.244.1.8@b"])));
        assert_eq!(current.sync(V4, Duration::ZERO).unwrap().refused.len(), 1);
        assert_eq!(current.kernel.dumps(), dumps, "blames {blames}");
        assert_kept(&current, &before, &format!("blames {blames}"));
    }
}

// Its object asks for an address no more, and the one that asks for it now is refused, too.
#[test]
fn what_others_ask_for_stays_until_they_have_it() {
    let with_address = |of: &str, addresses: &[&str]| -> Object {
        let mut object = service(of, &[&format!("10.96.0.{}", &of[1..])]);
        object.ports.push(port("http", Protocol::Tcp, 80, None));
        object.external_ips = addresses.iter().map(|a| a.parse().unwrap()).collect();
        object.into()
    };
    let mut objects = cluster(3);
    objects.retain(|object| *object.name() != name("s1"));
    objects.push(with_address("s1", &["192.0.2.1"]));
    let (mut current, before) = with_s1_refused(objects, false);
    for change in [
        with_address("s1", &[]),
        with_address("s2", &["192.0.2.1"]),
        endpoints("s2", &["10.244.0.99@a"]),
    ] {
        current.engine.apply(Change::Apply(change));
    }
    current.distrust(V4);
    assert!(current.sync(V4, Duration::ZERO).unwrap().result.is_ok());
    assert_eq!(aside(&current), ["default/s1", "default/s2"]);
    assert_kept(&current, &before, "both are refused");

    let owner = |current: &Synchronizer<FakeKernel>| {
        let claimed = Key::new().address([192, 0, 2, 1].into());
        let sets = current.kernel.ruleset(V4).sets.values();
        let mut elements = sets.flat_map(|(_, elements)| elements.values());
        let labelled = elements
            .find(|e| e.key.as_bytes().starts_with(claimed.as_bytes()) && e.comment.is_some());
        labelled.and_then(|element| element.comment.as_deref().map(str::to_owned))
    };
    assert_eq!(owner(&current).as_deref(), Some("default/s1:http"));
    current.engine.apply(Change::Apply(endpoints("s2", &["10.244.0.2@a"])));
    current.sync(V4, Duration::ZERO);
    assert_eq!(owner(&current).as_deref(), Some("default/s2:http"));
    // What another had meanwhile does not come back.
    current.engine.apply(Change::Apply(with_address("s2", &[])));
    current.sync(V4, Duration::ZERO);
    assert_eq!(aside(&current), ["default/s1"]);
    assert_eq!(owner(&current), None);
}
