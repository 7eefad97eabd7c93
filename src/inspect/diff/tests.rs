//! What is a difference, and what is not.

use std::collections::BTreeMap;

use super::*;
use crate::engine::Selection;
use crate::inspect::wanted::{NodeSetup, Wanted, wanted};
use crate::model::{Change, Families, Family, Object, PerFamily, Protocol, Service};
use crate::program::RuleOptions;
use crate::ruleset::{Key, Lifetime, Ruleset, apply};
use crate::testing::objects::{port, service, slice};
use crate::topology::NodeTopology;

fn web(change: impl FnOnce(&mut Service)) -> Object {
    let mut web = service("web", &["10.96.0.1"]);
    web.ports = vec![port("http", Protocol::Tcp, 80, None)];
    change(&mut web);
    web.into()
}

fn endpoints(last: std::ops::Range<u8>) -> Object {
    let texts: Vec<String> = last.map(|n| format!("10.244.0.{n}@here")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    slice("web-1", "web", ("http", Protocol::Tcp, 8080), &texts).into()
}

fn build(objects: &[Object], options: RuleOptions) -> Wanted {
    let setup = NodeSetup {
        options,
        node_topology: NodeTopology { node: "here".into(), zone: None },
        families: Families { v4: true, v6: false },
        owned: false,
        local_addresses: PerFamily::default(),
    };
    wanted(objects, setup).expect("a sound table")
}

fn differences(found: &Ruleset, wanted: &Ruleset) -> String {
    let diff = compare("ip", View::of(found).as_ref(), View::of(wanted).as_ref());
    let names = Names { found: "the kernel".into(), wanted: "the objects".into() };
    Words { diffs: &[diff], names: &names }.to_string()
}

fn between(found: &[Object], wanted: &[Object]) -> String {
    let plain = RuleOptions::nftables;
    let (found, wanted) = (build(found, plain()), build(wanted, plain()));
    differences(&found.rulesets.v4, &wanted.rulesets.v4)
}

#[test]
fn history_and_clients_are_no_difference() {
    let sticky = |web: &mut Service| web.session_affinity = Some(60);
    let Wanted { mut rulesets, mut engine } =
        build(&[web(sticky), endpoints(1..40)], RuleOptions::nftables());
    for range in [1..30, 5..30, 5..20, 18..25] {
        engine.apply(Change::Apply(endpoints(range)));
        let plan = engine.plan(Family::V4, Selection::Elements(usize::MAX), &BTreeMap::new());
        apply(&mut rulesets.v4, &plan.transaction).expect("a sound transaction");
        engine.applied(Family::V4, plan);
    }
    let client = Key::new().address([10, 244, 0, 9].into());
    let (_, clients) = rulesets
        .v4
        .sets
        .iter_mut()
        .find(|(name, _)| name.as_str().starts_with("clients"))
        .map(|(_, map)| map)
        .expect("affinity has a map");
    let data = Key::new().address([10, 244, 0, 20].into()).port(8080);
    let lifetime = Some(Lifetime { timeout: 60_000, expires: 5_000 });
    let element =
        crate::ruleset::Element { lifetime, ..crate::ruleset::Element::data(client, data) };
    clients.insert(client, element);

    let fresh = build(&[web(sticky), endpoints(18..25)], RuleOptions::nftables());
    assert_ne!(rulesets.v4, fresh.rulesets.v4, "history left its traces");
    assert_eq!(differences(&rulesets.v4, &fresh.rulesets.v4), "");
}

// A node address that appeared between two of diff's readings was told as a difference (CI saw it).
#[test]
fn what_one_look_alone_tells_is_a_change_on_its_way() {
    let diff = |services: &[(&str, &str)], shared: &[&str]| {
        let difference = |frontend: &str, subject: &str| Difference {
            frontend: frontend.to_owned(),
            subject: subject.to_owned(),
            only: Side::Found,
        };
        let mut diff = compare("ip", None, None);
        for (service, frontend) in services {
            let differences = diff.services.entry((*service).to_owned()).or_default();
            differences.insert(difference(frontend, ""));
        }
        diff.shared = shared.iter().map(|subject| difference("", subject)).collect();
        diff
    };
    let first = diff(&[("a/x", "1"), ("a/x", "2"), ("a/y", "3")], &["fe80::1", "fe80::2"]);
    let later = diff(&[("a/x", "5"), ("a/z", "4")], &["fe80::2", "fe80::3"]);
    assert_eq!(later.after(&first), diff(&[("a/x", "5")], &["fe80::2"]));
    assert!(diff(&[], &[]).after(&first).is_empty());
}

#[test]
fn each_difference_has_its_words() {
    let external = |ip: &'static str| {
        move |web: &mut Service| web.external_ips = vec![ip.parse().expect("an address")]
    };
    let cases: [(&str, Vec<Object>, Vec<Object>, &str); 5] = [
        (
            "a new Service",
            vec![],
            vec![web(|_| ()), endpoints(1..2)],
            "default/web:http (ip)\n  10.96.0.1:80/tcp is missing in the kernel\n",
        ),
        (
            "a Service that went",
            vec![web(|_| ()), endpoints(1..2)],
            vec![],
            "default/web:http (ip)\n  10.96.0.1:80/tcp is in the kernel, but not in the objects\n",
        ),
        (
            "the first endpoint",
            vec![web(|_| ())],
            vec![web(|_| ()), endpoints(1..2)],
            "default/web:http (ip)\n  \
             10.96.0.1:80/tcp: refusal, as without endpoints anywhere is in the kernel, but not in \
             the objects\n  \
             10.96.0.1:80/tcp: endpoint 10.244.0.1:8080 is missing in the kernel\n",
        ),
        (
            "another external IP",
            vec![web(external("192.0.2.1")), endpoints(1..2)],
            vec![web(external("192.0.2.2")), endpoints(1..2)],
            "default/web:http (ip)\n  \
             192.0.2.1:80/tcp is in the kernel, but not in the objects\n  \
             192.0.2.2:80/tcp is missing in the kernel\n",
        ),
        (
            "affinity",
            vec![web(|web| web.session_affinity = Some(60)), endpoints(1..3)],
            vec![web(|web| web.session_affinity = Some(90)), endpoints(1..3)],
            "default/web:http (ip)\n  \
             10.96.0.1:80/tcp: session affinity of 1m is in the kernel, but not in the objects\n  \
             10.96.0.1:80/tcp: session affinity of 1m30s is missing in the kernel\n",
        ),
    ];
    for (name, found, wanted, words) in cases {
        assert_eq!(sorted(&between(&found, &wanted)), sorted(words), "{name}");
    }
}

/// The order within a service says nothing.
fn sorted(words: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = words.lines().collect();
    lines.sort_unstable();
    lines
}

#[test]
fn another_program_is_told_by_its_rules() {
    let objects = [web(|_| ()), endpoints(1..2)];
    let all = RuleOptions { masquerade_all: true, ..RuleOptions::nftables() };
    let (found, wanted) = (build(&objects, RuleOptions::nftables()), build(&objects, all));
    let words = differences(&found.rulesets.v4, &wanted.rulesets.v4);
    assert!(words.starts_with("no single service (ip)\n  rule of chain masquerading: "), "{words}");
    assert!(words.contains("masquerade all clusterIP traffic"), "{words}");
}

// A table that is not owned has what others wrote there.
#[test]
fn foreign_comments_are_text_and_no_more() {
    let Wanted { rulesets, .. } = build(&[web(|_| ()), endpoints(1..2)], RuleOptions::nftables());
    let (mut found, wanted) = (rulesets.v4.clone(), rulesets.v4);
    found.table.as_mut().expect("a table").comment = Some("two\nlines }".to_owned());
    found.chains.values_mut().for_each(|(chain, _)| chain.comment = Some("}\n\t}\n}".to_owned()));
    for (set, elements) in found.sets.values_mut() {
        set.comment = Some("a \"set\"\n".to_owned());
        for element in elements.values_mut().filter(|element| element.comment.is_some()) {
            element.comment = Some("web, the \"one\" : 8080".into());
        }
    }
    assert_eq!(
        sorted(&differences(&found, &wanted)),
        sorted(
            "default/web:http (ip)\n  \
             10.96.0.1:80/tcp: owner default/web:http is missing in the kernel\n  \
             10.96.0.1:80/tcp: owner web, the \"one\" : 8080 is in the kernel, but not in the objects\n"
        )
    );
}
