//! Packets through the program that the engine writes, without a kernel: upstream's packet-flow
//! cases (section 5.11 of the behaviour reference), walked by `ruleset::walk_flow`.

#![allow(clippy::unwrap_used)] // a test binary, helpers included

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use kubeweir::engine::Engine;
use kubeweir::model::{
    Change, Families, Family, Kind, Object, PerFamily, Protocol, Service, ServiceType,
    TrafficPolicy,
};
use kubeweir::program::{LocalPods, NodePortMatch, RuleOptions};
use kubeweir::ruleset::{Environment, Flow, FlowState, Outcome, Packet, Ruleset, walk_flow};
use kubeweir::sync::Synchronizer;
use kubeweir::testing::FakeKernel;
use kubeweir::testing::objects::{port, service, service_cidr, slice};
use kubeweir::topology::NodeTopology;

/// A pod on this node, the node itself, a client outside, and one outside the source ranges.
const POD: &str = "10.180.0.99";
const NODE: &str = "192.168.0.2";
const OUTSIDE: &str = "203.0.113.9";
const BLOCKED: &str = "203.0.113.200";
/// A second address of the node, not for NodePorts.
const NODE_TOO: &str = "192.168.9.2";
const NODE_V6: &str = "fd00:192::2";

const LOCAL: &str = "10.180.0.1:8080";
const BOTH: &str = "10.180.0.1:8080, 10.180.1.1:8080";
const BOTH_MASQUERADED: &str = "10.180.0.1:8080 masq, 10.180.1.1:8080 masq";
const REMOTE: &str = "10.180.1.1:8080";
const REMOTE_MASQUERADED: &str = "10.180.1.1:8080 masq";

fn options() -> RuleOptions {
    RuleOptions {
        local_pods: PerFamily {
            v4: LocalPods::Cidr("10.180.0.0/16".parse().unwrap()),
            v6: LocalPods::Cidr("fd00:180::/64".parse().unwrap()),
        },
        node_ports: PerFamily {
            v4: NodePortMatch::Addresses(vec![NODE.parse().unwrap()]),
            v6: NodePortMatch::AnyLocal,
        },
        node_ips: PerFamily { v4: Some(NODE.parse().unwrap()), v6: None },
        ..RuleOptions::nftables()
    }
}

/// A load balancer on 10.96.0.N, node port 30000 + N, 5.5.5.N and 7.7.7.N, with HTTP on port 80.
fn balancer(name: &str, n: u16) -> Service {
    let mut balancer = service(&format!("test/{name}"), &[&format!("10.96.0.{n}")]);
    balancer.kind = ServiceType::LoadBalancer;
    balancer.ports.push(port("http", Protocol::Tcp, 80, Some(30000 + n)));
    balancer.load_balancer_ips = vec![format!("5.5.5.{n}").parse().unwrap()];
    balancer.external_ips = vec![format!("7.7.7.{n}").parse().unwrap()];
    balancer
}

fn endpoints(name: &str, addresses: &[&str]) -> Object {
    let http = ("http", Protocol::Tcp, 8080);
    slice(name, &format!("test/{name}"), http, addresses).into()
}

fn cluster() -> Vec<Object> {
    let mut external = balancer("external", 2);
    external.external_policy = TrafficPolicy::Local;
    let mut internal = balancer("internal", 3);
    internal.internal_policy = TrafficPolicy::Local;
    let mut remote = balancer("remote", 4);
    remote.external_policy = TrafficPolicy::Local;
    remote.internal_policy = TrafficPolicy::Local;
    let ranges = ["192.168.0.0/24", "203.0.113.0/25"].map(|net| net.parse().unwrap());
    let mut ranged = balancer("ranged", 6);
    ranged.source_ranges = ranges.to_vec();
    let mut ranged_empty = balancer("ranged-empty", 7);
    ranged_empty.source_ranges = ranges.to_vec();
    let both = ["10.180.0.1@a", "10.180.1.1@b"];
    vec![
        balancer("plain", 1).into(),
        external.into(),
        internal.into(),
        remote.into(),
        balancer("empty", 5).into(),
        ranged.into(),
        ranged_empty.into(),
        endpoints("plain", &both),
        endpoints("external", &both),
        endpoints("internal", &both),
        endpoints("remote", &both[1..]),
        endpoints("ranged", &both),
        service_cidr("kubernetes", &["10.96.0.0/16"]).into(),
    ]
}

fn programmed(options: RuleOptions, objects: &[Object], family: Family) -> Ruleset {
    let node_topology = NodeTopology { node: "a".into(), zone: None };
    let chosen = |all: &[&str], family: Family| match &options.node_ports[family] {
        NodePortMatch::Addresses(addresses) => addresses.clone(),
        NodePortMatch::AnyLocal => all.iter().map(|ip| ip.parse().unwrap()).collect(),
    };
    let addresses =
        PerFamily { v4: chosen(&[NODE, NODE_TOO], Family::V4), v6: chosen(&[NODE_V6], Family::V6) };
    let mut engine = Engine::new(options, node_topology, Families::DUAL, true);
    engine.set_local_addresses(&addresses);
    for kind in Kind::ALL {
        let of_kind = objects.iter().filter(|o| o.kind() == kind).cloned().collect();
        engine.apply(Change::Replace(kind, of_kind));
    }
    let mut synchronizer = Synchronizer::new(engine, FakeKernel::new());
    let report = synchronizer.sync(family, Duration::ZERO).expect("there is much to do");
    assert!(report.result.is_ok(), "{report:?}");
    synchronizer.kernel.ruleset(family).clone()
}

fn walk(ruleset: &Ruleset, from: &str, to: &str, protocol: Protocol) -> Flow {
    let source: IpAddr = from.parse().unwrap();
    let locals = [NODE, NODE_TOO, NODE_V6].map(|ip| ip.parse().unwrap());
    let environment = Environment { local_addresses: locals.into() };
    let input = match environment.is_local(source) {
        true => None,
        false if from.contains("180") => Some("veth0".to_owned()),
        false => Some("eth0".to_owned()),
    };
    let packet = Packet {
        source: SocketAddr::new(source, 40000),
        destination: to.parse().unwrap(),
        protocol: protocol.number(),
        input,
        state: FlowState::New,
    };
    walk_flow(ruleset, &packet, &environment)
}

/// The outcomes in a fixed order, without their probabilities.
fn summary(flow: &Flow) -> String {
    let mut texts: Vec<String> = flow
        .branches
        .iter()
        .map(|branch| {
            let text = match branch.outcome {
                Outcome::Untouched => "untouched".into(),
                Outcome::Dnat(endpoint) => endpoint.to_string(),
                Outcome::Drop => "drop".into(),
                Outcome::Reject(_) => "reject".into(),
            };
            if branch.masquerade { text + " masq" } else { text }
        })
        .collect();
    texts.sort();
    texts.join(", ")
}

type Case = (&'static str, &'static str, &'static str);

fn check(options: RuleOptions, cases: &[Case]) {
    let ruleset = programmed(options, &cluster(), Family::V4);
    for (from, to, expected) in cases {
        let flow = walk(&ruleset, from, to, Protocol::Tcp);
        assert_eq!(summary(&flow), *expected, "{from} to {to}: {:#?}", flow.branches);
    }
}

// B-125, B-126, B-127, B-130, B-131, B-133, B-134, B-135, B-139: ClusterIPs from every source.
#[test]
fn cluster_ips() {
    check(
        options(),
        &[
            (POD, "10.96.0.1:80", BOTH),
            (NODE, "10.96.0.1:80", BOTH_MASQUERADED),
            (OUTSIDE, "10.96.0.1:80", BOTH_MASQUERADED),
            ("10.180.0.1", "10.96.0.1:80", "10.180.0.1:8080 masq, 10.180.1.1:8080"),
            (POD, "10.96.0.2:80", BOTH),
            (POD, "10.96.0.3:80", LOCAL),
            (NODE, "10.96.0.3:80", "10.180.0.1:8080 masq"),
            (OUTSIDE, "10.96.0.3:80", "10.180.0.1:8080 masq"),
            (POD, "5.5.5.3:80", BOTH_MASQUERADED),
            (OUTSIDE, "192.168.0.2:30003", BOTH_MASQUERADED),
            (POD, "10.96.0.5:80", "reject"),
            (NODE, "10.96.0.5:80", "reject"),
        ],
    );
}

// B-132, B-136, B-137, B-138, B-150, B-166: what is not served is dropped, refused or left alone.
#[test]
fn addresses_without_service() {
    check(
        options(),
        &[
            (POD, "10.96.0.4:80", "drop"),
            (NODE, "10.96.0.4:80", "drop"),
            (OUTSIDE, "10.96.0.4:80", "drop"),
            (POD, "10.96.0.1:81", "reject"),
            (NODE, "10.96.0.1:81", "reject"),
            (POD, "10.96.77.1:80", "drop"),
            (NODE, "10.96.77.1:80", "drop"),
            (POD, "10.97.0.1:80", "untouched"),
            (OUTSIDE, "5.5.5.1:81", "untouched"),
            (OUTSIDE, "7.7.7.1:81", "untouched"),
        ],
    );
}

// B-136: the wrong protocol counts as a wrong port.
#[test]
fn another_protocol_is_another_port() {
    let ruleset = programmed(options(), &cluster(), Family::V4);
    let flow = walk(&ruleset, POD, "10.96.0.1:80", Protocol::Udp);
    assert_eq!(summary(&flow), "reject");
}

// B-141, B-142, B-143, B-144, B-146, B-147: external destinations under both policies.
#[test]
fn external_destinations() {
    let mut cases = Vec::new();
    for to in ["5.5.5.1:80", "7.7.7.1:80", "192.168.0.2:30001"] {
        cases.extend([POD, NODE, OUTSIDE].map(|from| (from, to, BOTH_MASQUERADED)));
    }
    for to in ["5.5.5.2:80", "7.7.7.2:80", "192.168.0.2:30002"] {
        cases.extend([(POD, to, BOTH), (NODE, to, BOTH_MASQUERADED), (OUTSIDE, to, LOCAL)]);
    }
    for to in ["5.5.5.4:80", "7.7.7.4:80", "192.168.0.2:30004"] {
        cases.extend([(POD, to, REMOTE), (NODE, to, REMOTE_MASQUERADED), (OUTSIDE, to, "drop")]);
    }
    for to in ["5.5.5.5:80", "7.7.7.5:80", "192.168.0.2:30005"] {
        cases.extend([POD, NODE, OUTSIDE].map(|from| (from, to, "reject")));
    }
    check(options(), &cases);
}

// B-152, B-154, B-157: NodePorts answer on the chosen addresses and nowhere else.
#[test]
fn node_ports_on_chosen_addresses() {
    check(
        options(),
        &[
            (OUTSIDE, "192.168.0.2:30001", BOTH_MASQUERADED),
            (OUTSIDE, "192.168.9.2:30001", "untouched"),
            (OUTSIDE, "192.168.9.2:30005", "untouched"),
            (NODE, "127.0.0.1:30001", "untouched"),
        ],
    );
}

// B-153, B-154: match-all takes every local address except loopback.
#[test]
fn node_ports_on_any_local_address() {
    let any =
        RuleOptions { node_ports: PerFamily::from_fn(|_| NodePortMatch::AnyLocal), ..options() };
    check(
        any,
        &[
            (OUTSIDE, "192.168.0.2:30001", BOTH_MASQUERADED),
            (OUTSIDE, "192.168.9.2:30001", BOTH_MASQUERADED),
            (OUTSIDE, "192.168.9.2:30005", "reject"),
            ("127.0.0.1", "127.0.0.1:30001", "untouched"),
            ("127.0.0.1", "127.0.0.1:30005", "untouched"),
        ],
    );
}

// B-158, B-159, B-160, B-161, B-162: source ranges guard the load-balancer addresses only.
#[test]
fn source_ranges() {
    check(
        options(),
        &[
            (OUTSIDE, "5.5.5.6:80", BOTH_MASQUERADED),
            (BLOCKED, "5.5.5.6:80", "drop"),
            (POD, "5.5.5.6:80", "drop"),
            (NODE, "5.5.5.6:80", BOTH_MASQUERADED),
            ("5.5.5.6", "5.5.5.6:80", BOTH_MASQUERADED),
            (NODE_TOO, "5.5.5.6:80", "drop"),
            (POD, "10.96.0.6:80", BOTH),
            (BLOCKED, "192.168.0.2:30006", BOTH_MASQUERADED),
            (BLOCKED, "7.7.7.6:80", BOTH_MASQUERADED),
            (BLOCKED, "5.5.5.7:80", "drop"),
            (OUTSIDE, "5.5.5.7:80", "reject"),
        ],
    );
}

// B-128, B-129, B-145: the masquerade matrix without detector, with masqueradeAll, and with both.
#[test]
fn masquerade_matrix() {
    let no_detector = RuleOptions { local_pods: PerFamily::default(), ..options() };
    check(
        no_detector.clone(),
        &[
            (POD, "10.96.0.1:80", BOTH),
            (NODE, "10.96.0.1:80", BOTH),
            (OUTSIDE, "10.96.0.1:80", BOTH),
            ("10.180.0.1", "10.96.0.1:80", "10.180.0.1:8080 masq, 10.180.1.1:8080"),
            (POD, "5.5.5.2:80", LOCAL),
            (NODE, "5.5.5.2:80", BOTH_MASQUERADED),
            (POD, "5.5.5.4:80", "drop"),
            (POD, "5.5.5.1:80", BOTH_MASQUERADED),
        ],
    );
    let all = RuleOptions { masquerade_all: true, ..options() };
    check(
        all,
        &[
            (POD, "10.96.0.1:80", BOTH_MASQUERADED),
            (POD, "10.96.0.2:80", BOTH_MASQUERADED),
            (POD, "10.96.0.3:80", "10.180.0.1:8080 masq"),
            (POD, "5.5.5.2:80", BOTH),
            (OUTSIDE, "5.5.5.2:80", LOCAL),
        ],
    );
    let neither = RuleOptions { masquerade_all: true, ..no_detector };
    check(
        neither,
        &[
            (POD, "10.96.0.1:80", BOTH_MASQUERADED),
            (OUTSIDE, "10.96.0.1:80", BOTH_MASQUERADED),
            (POD, "5.5.5.2:80", LOCAL),
            (POD, "192.168.0.2:30002", LOCAL),
        ],
    );
}

// B-125, B-126, B-141, B-153, B-154: the same program in IPv6.
#[test]
fn ipv6() {
    let mut plain = service("test/plain", &["fd00:96::1"]);
    plain.kind = ServiceType::NodePort;
    plain.ports.push(port("http", Protocol::Tcp, 80, Some(30001)));
    let objects = [plain.into(), endpoints("plain", &["fd00:180::1@a", "fd00:181::1@b"])];
    let ruleset = programmed(options(), &objects, Family::V6);
    let both = "[fd00:180::1]:8080, [fd00:181::1]:8080";
    let masqueraded = "[fd00:180::1]:8080 masq, [fd00:181::1]:8080 masq";
    for (from, to, expected) in [
        ("fd00:180::99", "[fd00:96::1]:80", both),
        (NODE_V6, "[fd00:96::1]:80", masqueraded),
        ("2001:db8::9", "[fd00:192::2]:30001", masqueraded),
        ("::1", "[::1]:30001", "untouched"),
    ] {
        let flow = walk(&ruleset, from, to, Protocol::Tcp);
        assert_eq!(summary(&flow), expected, "{from} to {to}");
    }
}

// B-140: every endpoint's share is within one in a hundred of the even share.
#[test]
fn shares_are_even() {
    for count in [1, 2, 3, 4, 5, 16, 17, 100] {
        let addresses: Vec<String> = (1..=count).map(|n| format!("10.180.1.{n}@b")).collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        let objects = [balancer("plain", 1).into(), endpoints("plain", &addresses)];
        let ruleset = programmed(options(), &objects, Family::V4);
        let flow = walk(&ruleset, POD, "10.96.0.1:80", Protocol::Tcp);
        assert_eq!(flow.branches.len(), count, "{count} endpoints");
        for branch in &flow.branches {
            let share = branch.probability * count as f64;
            assert!((share - 1.0).abs() < 0.01, "{count} endpoints: {share}");
        }
    }
}
