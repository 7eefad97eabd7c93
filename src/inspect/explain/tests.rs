//! Sentences that the tests against a kernel do not reach.

use std::collections::BTreeSet;

use super::*;
use crate::inspect::wanted::{NodeSetup, wanted};
use crate::model::{Families, Family, Object, PerFamily, Service, ServiceType, TrafficPolicy};
use crate::program::{
    Class, CounterId, FrontendSpace, ListScope, LocalPods, NodePortMatch, RuleOptions, SetId,
};
use crate::ruleset::Counter;
use crate::testing::objects::{port, service, slice};
use crate::topology::NodeTopology;

fn web(change: impl FnOnce(&mut Service)) -> Vec<Object> {
    let mut web = service("web", &["10.96.0.1"]);
    web.kind = ServiceType::NodePort;
    web.ports = vec![port("http", Protocol::Tcp, 80, Some(30080))];
    change(&mut web);
    let endpoints = ["10.244.0.5@here", "10.244.1.5@there"];
    vec![web.into(), slice("web-1", "web", ("http", Protocol::Tcp, 8080), &endpoints).into()]
}

fn ask(objects: &[Object], options: RuleOptions, from: &str, to: &str) -> Explanation {
    ask_of(table(objects, options), from, to)
}

fn table(objects: &[Object], options: RuleOptions) -> Ruleset {
    let chosen = |family| match &options.node_ports[family] {
        NodePortMatch::Addresses(addresses) => addresses.clone(),
        NodePortMatch::AnyLocal => Vec::new(),
    };
    let setup = NodeSetup {
        local_addresses: PerFamily::from_fn(chosen),
        options,
        node_topology: NodeTopology { node: "here".into(), zone: None },
        families: Families { v4: true, v6: false },
        owned: false,
    };
    wanted(objects, setup).expect("a sound table").rulesets[Family::V4].clone()
}

fn ask_of(table: Ruleset, from: &str, to: &str) -> Explanation {
    let from: std::net::IpAddr = from.parse().expect("an address");
    let node = Environment { local_addresses: BTreeSet::from([[192, 0, 2, 1].into()]) };
    let question = Question {
        from: SocketAddr::new(from, 0),
        to: to.parse().expect("an address"),
        protocol: Protocol::Tcp,
        input: (!node.is_local(from)).then(|| "eth0".to_owned()),
    };
    Explainer::new(table).explain(&question, &node)
}

fn options() -> RuleOptions {
    let pods = LocalPods::Cidr("10.244.0.0/16".parse().expect("a network"));
    RuleOptions {
        local_pods: PerFamily { v4: pods, v6: LocalPods::Unknown },
        node_ports: PerFamily {
            v4: NodePortMatch::Addresses(vec![[192, 0, 2, 1].into()]),
            v6: NodePortMatch::AnyLocal,
        },
        ..RuleOptions::nftables()
    }
}

const POD: &str = "10.244.0.9";
const STRANGER: &str = "203.0.113.1";

#[test]
fn why_the_source_is_replaced() {
    let local = |web: &mut Service| web.external_policy = TrafficPolicy::Local;
    let all = RuleOptions { masquerade_all: true, ..options() };
    let cases = [
        (web(|_| ()), all, POD, "10.96.0.1:80", "node's: masqueradeAll is set"),
        (web(local), options(), POD, "192.0.2.1:30080", "Local does not bind pods of the cluster"),
        (
            web(local),
            options(),
            "192.0.2.1",
            "192.0.2.1:30080",
            "node's: the node itself dials an external address",
        ),
        (
            web(local),
            options(),
            STRANGER,
            "192.0.2.1:30080",
            "default/web:http: 1 endpoint, those on this node only (policy Local)",
        ),
    ];
    for (objects, options, from, to, sentence) in cases {
        let said = ask(&objects, options, from, to);
        assert_eq!(said.verdict, Verdict::Served, "{said}");
        assert!(said.reasons.iter().any(|r| r.contains(sentence)), "no {sentence:?} in\n{said}");
    }
}

#[test]
fn shares_are_sorted_and_add_up() {
    let said = ask(&web(|_| ()), options(), POD, "10.96.0.1:80");
    let shares: Vec<String> =
        said.endpoints.iter().map(|s| format!("{} {:.2}", s.endpoint, s.probability)).collect();
    assert_eq!(shares, ["10.244.0.5:8080 0.50", "10.244.1.5:8080 0.50"]);
    assert_eq!(said.service.as_deref(), Some("default/web:http"));
}

#[test]
fn how_often_that_happened() {
    let refused = |packets| {
        let mut table = table(&web(|_| ()), options());
        for id in CounterId::REASONS {
            // Another reason's is not told.
            let packets = if id == CounterId::UnusedPort { packets } else { 7 };
            if let Some(counter) = table.counters.get_mut(&id.name()) {
                *counter = Counter { packets, bytes: 60 * packets };
            }
        }
        ask_of(table, POD, "10.96.0.1:81")
    };
    assert_eq!(refused(0).verdict, Verdict::Refused);
    assert_eq!(refused(0).count, None);
    let mut said = refused(412);
    assert!(said.to_string().contains("  refused 412 times so far: packets of all clients"));
    said.count.as_mut().expect("it is counted").last_minute = Some(37);
    let sentence = "  refused 412 times so far, 37 times in the last minute: packets of all clients \
                    to all Services (counter unused-port)\n";
    assert!(said.to_string().contains(sentence), "{said}");
    assert!(said.agrees_with(&refused(7)), "only the count differs");
}

// Upstream's counter of NodePorts on localhost counts what is served, which is no end to tell of.
#[test]
fn what_is_served_is_not_counted() {
    let node_ports =
        PerFamily { v4: NodePortMatch::AnyLocal, v6: NodePortMatch::Addresses(Vec::new()) };
    let options = RuleOptions { localhost_node_ports: true, node_ports, ..options() };
    let mut table = table(&web(|_| ()), options);
    let accepted = CounterId::AcceptedOnLocalhost.name();
    *table.counters.get_mut(&accepted).expect("the counter") = Counter { packets: 5, bytes: 300 };
    let said = ask_of(table, "127.0.0.1", "127.0.0.1:30080");
    assert_eq!(said.verdict, Verdict::Served, "{said}");
    assert!(said.steps.iter().any(|step| step.rule.contains("accepted-on-localhost")), "{said}");
    assert_eq!(said.count, None, "{said}");
}

#[test]
fn node_ports_without_a_known_address() {
    let unknown = PerFamily::from_fn(|_| NodePortMatch::Addresses(Vec::new()));
    let options = RuleOptions { node_ports: unknown, ..options() };
    let said = ask(&web(|_| ()), options, STRANGER, "192.0.2.1:30080");
    assert!(
        said.reasons[0]
            .ends_with("none does, the node's address is not known (see --bind-address)")
    );
}

#[test]
fn without_a_table_or_without_hooks() {
    let question = Question {
        from: SocketAddr::new([203, 0, 113, 1].into(), 0),
        to: SocketAddr::new([10, 96, 0, 1].into(), 80),
        protocol: Protocol::Tcp,
        input: Some("eth0".to_owned()),
    };
    let mut ruleset = Ruleset::empty(Family::V4);
    let said = Explainer::new(ruleset.clone()).explain(&question, &Environment::default());
    assert!(said.reasons[0].starts_with("there is no table kube-proxy"), "{said}");
    ruleset.table = Some(crate::ruleset::Table {
        comment: None,
        owner: crate::ruleset::Ownership::Nobody,
        persist: false,
    });
    let said = Explainer::new(ruleset.clone()).explain(&question, &Environment::default());
    assert!(said.reasons[0].starts_with("the table has no base chains yet"), "{said}");
}

// Programs and people are told the same: the text is made of the structure.
#[test]
fn steps_for_programs_and_for_people() {
    let said = ask(&web(|_| ()), options(), POD, "10.96.0.1:80");
    let json = serde_json::to_value(&said).expect("plain data");
    let steps = json["steps"].as_array().expect("a list");
    let first = steps.iter().position(|step| step["chain"] == "nat-prerouting").expect("a lookup");
    assert_eq!(
        steps[first],
        serde_json::json!({
            "hook": "prerouting",
            "chain": "nat-prerouting",
            "rule": "ip daddr @frontend-ips jump frontends",
            "times": 1,
            "lookups": [
                {"set": "frontend-ips", "key": "10.96.0.1", "found": "member", "comment": null},
            ],
            "effect": "jump",
            "target": "frontends",
        })
    );
    let dnat = steps.iter().find(|step| step["effect"] == "dnat").expect("it is served");
    assert_eq!(dnat["endpoint"], said.endpoints[0].endpoint.to_string());
    let text = said.to_string();
    let expected = "  prerouting, chain nat-prerouting\n    ip daddr @frontend-ips jump frontends\n      \
    10.96.0.1 in frontend-ips: member -> jump frontends\n  prerouting, chain frontends\n";
    assert!(text.contains(expected), "{text}");
    let drawn = "(up to 16 draws)\n      10.96.0.1 . tcp . 80 . random mod 4 in endpoints-4: \
    10.244.0.5 . 8080 -> dnat to 10.244.0.5:8080\n";
    assert!(text.contains(drawn), "{text}");
    assert!(text.contains("    goto choose\n"), "that says all there is to say: {text}");
}

fn dropped_comments(table: &mut Ruleset) {
    let rules = table.chains.values_mut().flat_map(|(_, rules)| rules);
    rules.for_each(|rule| rule.comment = None);
}

// A table that is not owned has what others wrote there.
#[test]
fn foreign_comments_are_text_and_no_more() {
    let mut table = table(&web(|_| ()), options());
    table.table.as_mut().expect("a table").comment = Some("two\nlines }".to_owned());
    for (chain, rules) in table.chains.values_mut() {
        chain.comment = Some("}\n\t}\n}".to_owned());
        rules.iter_mut().for_each(|rule| rule.comment = Some("a \"b\" hook".to_owned()));
    }
    let lists = [SetId::Endpoints(FrontendSpace::Services, ListScope::Cluster, Class::FOUR).name()];
    let members = SetId::Members(FrontendSpace::Services, ListScope::Cluster, Class::FOUR).name();
    for name in lists.iter().chain([&members]) {
        let (set, elements) = table.sets.get_mut(name).expect("a list");
        set.comment = Some("\"\n".to_owned());
        for element in elements.values_mut() {
            element.comment = Some("web, the \"one\" : 8080\n".into());
        }
    }
    let said = ask_of(table, POD, "10.96.0.1:80");
    assert_eq!(said.verdict, Verdict::Served, "{said}");
    assert_eq!(said.service.as_deref(), Some("web, the \"one\" : 8080\n"));
    let endpoints: Vec<String> = said.endpoints.iter().map(|s| s.endpoint.to_string()).collect();
    assert_eq!(endpoints, ["10.244.0.5:8080", "10.244.1.5:8080"]);
}

// Rules are known by what they do: another program's listing may have lost their comments.
#[test]
fn reasons_do_not_hang_on_comments() {
    let local = |web: &mut Service| web.external_policy = TrafficPolicy::Local;
    let all = RuleOptions { masquerade_all: true, ..options() };
    let cases = [
        (web(|_| ()), all, POD, "10.96.0.1:80", "node's: masqueradeAll is set"),
        (web(|_| ()), options(), STRANGER, "10.96.0.1:80", "dialled from outside the pod networks"),
        (web(local), options(), POD, "192.0.2.1:30080", "Local does not bind pods of the cluster"),
        (web(local), options(), "192.0.2.1", "192.0.2.1:30080", "does not bind the node itself"),
    ];
    for (objects, options, from, to, sentence) in cases {
        let mut table = table(&objects, options);
        dropped_comments(&mut table);
        let said = ask_of(table, from, to);
        assert!(said.reasons.iter().any(|r| r.contains(sentence)), "no {sentence:?} in\n{said}");
    }
}
