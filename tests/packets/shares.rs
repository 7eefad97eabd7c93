//! Every endpoint of a list gets its share, whatever the list's length.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use kubeweir::model::{Family, Protocol};
use kubeweir::testing::lab::{Dial, Outcome, Place, PodNetwork, endpoint, remote_pod_ip, service};

use super::case::To;
use super::explained::Explainer;
use super::rig::{Rig, Settings, web_slices_of};

/// Lengths on both sides of the borders between classes, and the first port of their services.
const LENGTHS: [usize; 8] = [1, 2, 3, 4, 5, 16, 17, 100];

/// The port that the many servers listen on.
const PORT: u16 = 7000;

/// Dials for each endpoint of a list.
const DIALS_EACH: usize = 60;

/// How far a count may be off, in standard deviations. The chance of one count to be farther off is
/// below 1e-9 (of a Poisson variable of mean 60 to exceed 115), and there are about 1200.
const DEVIATIONS: f64 = 7.0;

fn rig() -> Rig {
    let mut rig = Rig::new(PodNetwork::Routed, Settings::default());
    let longest = LENGTHS[LENGTHS.len() - 1];
    for family in Family::BOTH {
        let at = |n| SocketAddr::new(remote_pod_ip(n, family), PORT);
        let all: Vec<SocketAddr> = (0..longest).map(at).collect();
        rig.lab.serve(Place::RemotePod(0), "many", &all).unwrap();
    }
    let mut objects = Vec::new();
    for length in LENGTHS {
        let name = format!("list-{length}");
        let node_port = 31_000 + u16::try_from(length).unwrap();
        let built = service(&name, 1000 + length).twins("http", 80, Some(node_port));
        objects.push(built.object());
        objects.extend(web_slices_of(&name, PORT, |family| {
            (0..length).map(|n| endpoint(Place::RemotePod(n), family)).collect()
        }));
    }
    rig.start(objects);
    rig
}

fn check_shares(rig: &Rig, to: To, from: Place, length: usize, protocol: Protocol, family: Family) {
    let title = format!("{to:?} from {from:?}, {length} endpoints, {protocol}, {family}");
    let dials = length * DIALS_EACH;
    let outcomes = rig.lab.dial(from, Dial::new(protocol, to.address(family)), dials);
    let mut counts: BTreeMap<IpAddr, usize> = BTreeMap::new();
    for outcome in &outcomes {
        let answer = outcome.answer().unwrap_or_else(|| panic!("{title}: {outcome:?}"));
        *counts.entry(answer.endpoint.ip()).or_default() += 1;
    }
    let share = 1.0 / length as f64;
    let mean = DIALS_EACH as f64;
    // Draws may favour slots by one part in a hundred.
    let slack = DEVIATIONS * (mean * (1.0 - share)).sqrt() + mean * 0.01;
    for n in 0..length {
        let count = counts.remove(&remote_pod_ip(n, family)).unwrap_or(0) as f64;
        let off = (count - mean).abs();
        assert!(off <= slack, "{title}: endpoint {n} was chosen {count} times, not {mean}");
    }
    assert!(counts.is_empty(), "{title}: {counts:?}");
    let dialled = (to.address(family), protocol);
    let said = Explainer::of(&rig.lab).judge(&rig.lab, from, dialled, &outcomes).unwrap();
    // Slots that are filled twice favour their endpoints a little.
    let told = said.endpoints.iter().all(|told| (told.probability - share).abs() <= share * 0.01);
    assert!(told, "{title}: {said}");
}

// B-140: uniformly at random, for lists on both sides of every class border, by ClusterIP and
// NodePort.
#[test]
fn each_endpoint_gets_its_share() {
    let rig = rig();
    std::thread::scope(|scope| {
        let rig = &rig;
        for (family, pod) in Family::BOTH.into_iter().zip([Place::Pod(0), Place::Pod(1)]) {
            for (protocol, outside) in [(Protocol::Tcp, 1), (Protocol::Udp, 2)] {
                scope.spawn(move || {
                    for length in LENGTHS {
                        let to = To::ClusterIp(1000 + length, 80);
                        check_shares(rig, to, pod, length, protocol, family);
                        let to = To::Node(31_000 + u16::try_from(length).unwrap());
                        let outside = Place::OutsideAt(outside);
                        check_shares(rig, to, outside, length, protocol, family);
                    }
                });
            }
        }
    });
}

// B-140: one flow stays with one endpoint, however often it is used.
#[test]
fn a_flow_keeps_its_endpoint() {
    let rig = rig();
    for family in Family::BOTH {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let to = To::ClusterIp(1100, 80).address(family);
            let said = Explainer::of(&rig.lab).explain(&rig.lab, Place::Pod(0), (to, protocol));
            let mut flow = rig.lab.open(Place::Pod(0), protocol, to).expect("opens");
            let asked: Vec<Outcome> =
                (0..20).map(|_| flow.ask(kubeweir::testing::lab::PATIENCE)).collect();
            let endpoint = asked[0].answer().map(|answer| answer.endpoint);
            assert!(said.endpoints.iter().any(|told| Some(told.endpoint) == endpoint), "{asked:?}");
            assert!(asked.iter().all(|outcome| *outcome == asked[0]), "{asked:?}");
        }
    }
}
