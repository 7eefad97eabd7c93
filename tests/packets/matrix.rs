//! Table 5.4: every kind of destination from every kind of source, under every policy, detector
//! and `masqueradeAll`.

use kubeweir::model::{Object, Protocol};
use kubeweir::testing::lab::{Place, PodNetwork, service};

use super::case::{Case, Expect, PROTOCOLS, SCTP, Source, To, answer, case, check};
use super::rig::{Detector, Rig, Settings, both_families, web_slices};

const LOCAL: &str = "pod-0:8080";
const REMOTE: &str = "remote-0:8080";

/// Which Service of the fixture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Policy {
    Cluster,
    ExternalLocal,
    InternalLocal,
}

/// Which address of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Destination {
    ClusterIp,
    ExternalIp,
    LoadBalancer,
    NodePort,
}

/// How the node sees who dials (section 5.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Pod,
    Host,
    External,
}

const POLICIES: [(Policy, usize); 3] =
    [(Policy::Cluster, 20), (Policy::ExternalLocal, 21), (Policy::InternalLocal, 22)];

const DESTINATIONS: [Destination; 4] = [
    Destination::ClusterIp,
    Destination::ExternalIp,
    Destination::LoadBalancer,
    Destination::NodePort,
];

/// One endpoint here, one elsewhere, and every kind of address.
fn objects(protocols: &[Protocol]) -> Vec<Object> {
    let mut objects = Vec::new();
    for (policy, n) in POLICIES {
        let name = format!("{policy:?}").to_lowercase();
        let port = 30_000 + u16::try_from(n).unwrap();
        let built = service(&name, n).each(protocols, "http", 80, Some(port));
        let built = both_families(built, |built, family| {
            let ip = |n| kubeweir::testing::lab::external_ip(n, family);
            built.external_ip(ip(n)).load_balancer_ip(ip(n + 20))
        });
        let built = match policy {
            Policy::Cluster => built,
            Policy::ExternalLocal => built.external_local(),
            Policy::InternalLocal => built.internal_local(),
        };
        objects.push(built.object());
        objects.extend(web_slices(&name, 8080, &[Place::Pod(0), Place::RemotePod(0)]));
    }
    objects
}

/// Table 5.4 and its modifiers.
fn expected(
    settings: &Settings,
    policy: Policy,
    destination: Destination,
    class: Class,
) -> (Vec<&'static str>, Source) {
    let (both, local) = (vec![LOCAL, REMOTE], vec![LOCAL]);
    if destination == Destination::ClusterIp {
        let set = if policy == Policy::InternalLocal { local } else { both };
        let kept = class == Class::Pod || settings.detector == Detector::None;
        let kept = kept && !settings.masquerade_all;
        return (set, if kept { Source::Kept } else { Source::Masqueraded });
    }
    match (policy, class) {
        (Policy::ExternalLocal, Class::External) => (local, Source::Kept),
        (Policy::ExternalLocal, Class::Pod) => (both, Source::Kept),
        _ => (both, Source::Masqueraded),
    }
}

fn class_of(place: Place, detector: Detector) -> Class {
    match place {
        Place::Host => Class::Host,
        Place::Pod(_) if detector != Detector::None => Class::Pod,
        Place::RemotePod(_) if detector == Detector::ClusterCidr => Class::Pod,
        _ => Class::External,
    }
}

fn cases(settings: &Settings) -> Vec<Case> {
    let places = [Place::Pod(0), Place::Pod(1), Place::Host, Place::Outside, Place::RemotePod(1)];
    let mut cases = Vec::new();
    for (policy, n) in POLICIES {
        for destination in DESTINATIONS {
            for place in places {
                let class = class_of(place, settings.detector);
                let (set, source) = expected(settings, policy, destination, class);
                let elsewhere = matches!(place, Place::RemotePod(_));
                if elsewhere && source == Source::Kept && set.contains(&REMOTE) {
                    // The answer would go from one pod of the second node to another, past the
                    // node under test: upstream's quirk Q-21, not a matter of its rules.
                    continue;
                }
                let to = match destination {
                    Destination::ClusterIp => To::ClusterIp(n, 80),
                    Destination::ExternalIp => To::External(n, 80),
                    Destination::LoadBalancer => To::External(n + 20, 80),
                    Destination::NodePort => To::Node(30_000 + u16::try_from(n).unwrap()),
                };
                let name = format!("{policy:?} {destination:?}");
                cases.push(case(name, place, to, answer(&set, source)));
            }
        }
    }
    cases
}

fn run(network: PodNetwork, settings: Settings) {
    let mut rig = Rig::new(network, settings);
    rig.start(objects(&PROTOCOLS));
    check(&rig.lab, &format!("table 5.4, {network:?} {settings:?}"), &cases(&settings));
}

/// The same for SCTP, on a lab whose pods serve it.
pub fn run_sctp(rig: &mut Rig, settings: &Settings) {
    rig.start(objects(&SCTP));
    let cases: Vec<Case> = cases(settings).into_iter().map(|case| case.over(&SCTP)).collect();
    check(&rig.lab, &format!("table 5.4 over SCTP, {settings:?}"), &cases);
}

fn run_both_networks(detector: Detector) {
    for masquerade_all in [false, true] {
        for network in [PodNetwork::Routed, PodNetwork::Bridge] {
            if detector != Detector::Bridge || network == PodNetwork::Bridge {
                run(network, Settings { detector, masquerade_all, ..Settings::default() });
            }
        }
    }
}

// B-125, B-126, B-127, B-129, B-130, B-131, B-133, B-134, B-141, B-142, B-143, B-144, B-148, B-149,
// B-151: table 5.4 with pods recognised by the cluster's CIDR.
#[test]
fn with_the_cluster_cidr() {
    run_both_networks(Detector::ClusterCidr);
}

// B-125, B-126, B-127, B-129, B-141, B-142, B-143, B-144: table 5.4 with pods recognised by the
// node's CIDR; pods of other nodes are external.
#[test]
fn with_the_node_cidr() {
    run_both_networks(Detector::NodeCidr);
}

// B-125, B-126, B-127, B-129, B-141, B-142, B-143, B-144: table 5.4 with pods recognised by their
// bridge, also where br_netfilter translates before the bridge forwards.
#[test]
fn with_the_bridge() {
    run_both_networks(Detector::Bridge);
}

// B-125, B-126, B-127, B-129, B-141, B-142, B-143, B-144: table 5.4 with pods recognised by the
// start of their interface's name.
#[test]
fn with_an_interface_prefix() {
    run_both_networks(Detector::Prefix);
}

// B-128, B-129, B-130, B-145: table 5.4 without a detector.
#[test]
fn without_a_detector() {
    run_both_networks(Detector::None);
}

// B-125, B-143: with the cluster's CIDR a pod of another node counts as a pod.
#[test]
fn a_pod_elsewhere_is_a_pod_with_the_cluster_cidr() {
    let mut rig = Rig::new(PodNetwork::Routed, Settings::default());
    let built = service("near", 23).twins("http", 80, Some(30_023)).external_local();
    let mut objects = vec![built.object()];
    objects.extend(web_slices("near", 8080, &[Place::Pod(0)]));
    rig.start(objects);
    let kept = |name, to| case(name, Place::RemotePod(1), to, answer(&[LOCAL], Source::Kept));
    let cases = [kept("ClusterIP", To::ClusterIp(23, 80)), kept("NodePort", To::Node(30_023))];
    check(&rig.lab, "a pod elsewhere", &cases);
}

// B-139: a port number means its own targets for each protocol; others of the address are refused.
// B-136: so is the protocol that a port does not have.
#[test]
fn protocol_twins_have_their_own_targets() {
    use kubeweir::model::Family;
    use kubeweir::testing::lab::{endpoint, slice};

    use super::case::case_of;

    let mut rig = Rig::new(PodNetwork::Routed, Settings::default());
    let twins = service("dns", 24).node_port("dns", Protocol::Udp, 53, 30_053).node_port(
        "dns-tcp",
        Protocol::Tcp,
        53,
        30_053,
    );
    let single = service("single", 25).port("only-tcp", Protocol::Tcp, 53);
    let mut objects = vec![twins.object(), single.object()];
    for family in Family::BOTH {
        let pods = |n| [endpoint(Place::Pod(n), family)];
        let ports = [("dns", Protocol::Udp, 5353), ("dns-tcp", Protocol::Tcp, 8443)];
        objects.push(super::rig::slice_object(slice("dns", family, &ports, pods(0))));
        let ports = [("only-tcp", Protocol::Tcp, 5353)];
        objects.push(super::rig::slice_object(slice("single", family, &ports, pods(1))));
    }
    rig.start(objects);
    let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
    let pod = Place::Pod(2);
    let kept = |server| answer(&[server], Source::Kept);
    let seen = |server| answer(&[server], Source::Masqueraded);
    let cases = [
        case_of(tcp, "TCP twin", pod, To::ClusterIp(24, 53), kept("pod-0:8443")),
        case_of(udp, "UDP twin", pod, To::ClusterIp(24, 53), kept("pod-0:5353")),
        case_of(tcp, "TCP twin", Place::Outside, To::Node(30_053), seen("pod-0:8443")),
        case_of(udp, "UDP twin", Place::Outside, To::Node(30_053), seen("pod-0:5353")),
        case_of(tcp, "TCP alone", pod, To::ClusterIp(25, 53), kept("pod-1:5353")),
        case_of(udp, "no UDP", pod, To::ClusterIp(25, 53), Expect::Refused),
    ];
    check(&rig.lab, "protocol twins", &cases);
}
