//! Section 5.3: on which addresses NodePorts are accepted.

use std::net::SocketAddr;
use std::sync::Arc;

use kubeweir::model::{Family, Object, ServiceType};
use kubeweir::testing::lab::{GATEWAY, NODE_IP, Place, PodNetwork, service};

use super::case::{Case, Expect, Source, To, answer, case, check};
use super::rig::{NodePorts, Rig, Settings, both_families, web_slices};

const PORT: u16 = 30_070;
/// The NodePort of a Service without endpoints.
const EMPTY: u16 = 30_071;

fn objects() -> Vec<Object> {
    let mut objects = vec![
        service("web", 70).twins("http", 80, Some(PORT)).object(),
        service("empty", 71).twins("http", 80, Some(EMPTY)).object(),
    ];
    objects.extend(web_slices("web", 8080, &[Place::Pod(0), Place::RemotePod(0)]));
    objects
}

/// A rig with a process of the host behind the NodePorts, which answers what is not translated.
fn rig(node_ports: NodePorts) -> Rig {
    let mut rig = Rig::new(PodNetwork::Routed, Settings { node_ports, ..Settings::default() });
    for family in Family::BOTH {
        for ip in [GATEWAY[family], To::Loopback(0).address(family).ip()] {
            let at = [PORT, EMPTY].map(|port| SocketAddr::new(ip, port));
            rig.lab.serve(Place::Host, "host", &at).unwrap();
        }
    }
    rig.start(objects());
    rig
}

fn accepted(to: fn(u16) -> To, places: &[Place]) -> Vec<Case> {
    let both = || answer(&["pod-0:8080", "remote-0:8080"], Source::Masqueraded);
    let each = |&place| {
        let served = case("accepted", place, to(PORT), both());
        [served, case("refused", place, to(EMPTY), Expect::Refused)]
    };
    places.iter().flat_map(each).collect()
}

fn left_alone(to: fn(u16) -> To, places: &[Place]) -> Vec<Case> {
    let host = |port| answer(&[&format!("host:{port}")], Source::Kept);
    let each = |&place| [PORT, EMPTY].map(|port| case("left alone", place, to(port), host(port)));
    places.iter().flat_map(each).collect()
}

const EVERYBODY: [Place; 4] = [Place::Pod(1), Place::Host, Place::Outside, Place::RemotePod(1)];

// B-152, B-157: with chosen addresses, on each of them and on no other.
#[test]
fn on_chosen_addresses() {
    let rig = rig(NodePorts::Both);
    let mut cases = accepted(To::Node, &EVERYBODY);
    cases.extend(accepted(To::SecondNode, &EVERYBODY));
    cases.extend(left_alone(To::Gateway, &EVERYBODY));
    cases.extend(left_alone(To::Loopback, &[Place::Host]));
    check(&rig.lab, "chosen addresses", &cases);
}

// B-153, B-154: with match-all, on every local address except loopback.
#[test]
fn on_all_addresses() {
    let rig = rig(NodePorts::All);
    let mut cases = accepted(To::Node, &EVERYBODY);
    cases.extend(accepted(To::SecondNode, &EVERYBODY));
    cases.extend(accepted(To::Gateway, &EVERYBODY));
    cases.extend(left_alone(To::Loopback, &[Place::Host]));
    check(&rig.lab, "all addresses", &cases);
}

// B-149, B-151: a load balancer's address may be the node's own; NodePorts stay reachable on it.
#[test]
fn a_load_balancer_on_the_nodes_own_address() {
    for node_ports in [NodePorts::Primary, NodePorts::All] {
        let mut rig = rig(node_ports);
        let built = service("edge", 72).twins("http", 80, Some(30_072)).external_local();
        let built = both_families(built, |built, family| built.load_balancer_ip(NODE_IP[family]));
        let mut objects = vec![built.object()];
        objects.extend(web_slices("edge", 8080, &[Place::Pod(2), Place::RemotePod(2)]));
        rig.set(objects);
        let mut cases = accepted(To::Node, &EVERYBODY);
        for to in [To::Node(80), To::Node(30_072)] {
            let local = answer(&["pod-2:8080"], Source::Kept);
            let both = |source| answer(&["pod-2:8080", "remote-2:8080"], source);
            cases.push(case("outside", Place::Outside, to, local));
            cases.push(case("pod", Place::Pod(1), to, both(Source::Kept)));
            cases.push(case("host", Place::Host, to, both(Source::Masqueraded)));
        }
        check(&rig.lab, &format!("load balancer on the node, {node_ports:?}"), &cases);
    }
}

// B-082: a NodePort counts whatever the type says. B-091: but on a ClusterIP Service without
// external IPs the external policy does not.
#[test]
fn on_a_service_of_type_cluster_ip() {
    let mut rig = rig(NodePorts::Primary);
    let mut odd = service("odd", 73).twins("http", 80, Some(30_073)).external_local().model();
    odd.kind = ServiceType::ClusterIp;
    let mut objects = vec![Object::Service(Arc::new(odd))];
    objects.extend(web_slices("odd", 8080, &[Place::Pod(0), Place::RemotePod(0)]));
    rig.set(objects);
    let both = answer(&["pod-0:8080", "remote-0:8080"], Source::Masqueraded);
    let cases = EVERYBODY.map(|place| case("odd type", place, To::Node(30_073), both.clone()));
    check(&rig.lab, "a NodePort on a ClusterIP Service", &cases);
}
