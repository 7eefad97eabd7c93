//! The table of dials.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use comfy_table::{Table, presets};
use kubeweir::model::Protocol;
use kubeweir::model::Protocol::{Tcp, Udp};
use kubeweir::testing::lab::{Answer, Dial, Outcome, PATIENCE, Place, SILENCE};

use super::scene::Scene;

/// So often each address is dialled: that one of two or three endpoints never answers has a chance
/// below one in a million.
const TIMES: usize = 40;

/// What should come of it.
enum Expect {
    /// These servers, seeing the client's own address.
    Kept(&'static [&'static str]),
    /// These servers, seeing an address of the node.
    Masqueraded(&'static [&'static str]),
    /// Always the same one of these.
    Sticky(&'static [&'static str]),
    Refused,
    Dropped,
}

use Expect::{Dropped, Kept, Masqueraded, Refused, Sticky};

struct Row {
    service: &'static str,
    from: Place,
    protocol: Protocol,
    to: &'static str,
    expect: Expect,
}

const fn row(
    service: &'static str,
    from: Place,
    protocol: Protocol,
    to: &'static str,
    expect: Expect,
) -> Row {
    Row { service, from, protocol, to, expect }
}

const POD: Place = Place::Pod(1);
const SELF: Place = Place::Pod(2);
const HOST: Place = Place::Host;
const OUTSIDE: Place = Place::Outside;
/// A client within the source ranges of `shop/frontend`.
const CUSTOMER: Place = Place::OutsideAt(5);

const FRONTEND: &[&str] = &["pod-0", "remote-0", "remote-1"];
const CART: &[&str] = &["pod-1", "remote-0", "remote-1"];
const CHECKOUT: &[&str] = &["pod-1", "remote-0"];

const ROWS: &[Row] = &[
    row("frontend ClusterIP", POD, Tcp, "10.96.179.207:80", Kept(FRONTEND)),
    row("frontend ClusterIP", HOST, Tcp, "10.96.179.207:443", Masqueraded(FRONTEND)),
    row("frontend ClusterIP", POD, Tcp, "[fd00:10:96::64b]:80", Kept(FRONTEND)),
    row("frontend load balancer, Local", CUSTOMER, Tcp, "198.51.100.80:80", Kept(&["pod-0"])),
    row("frontend load balancer, Local", CUSTOMER, Tcp, "[2001:db8:100::50]:80", Kept(&["pod-0"])),
    row("frontend, not in source ranges", OUTSIDE, Tcp, "198.51.100.80:80", Dropped),
    row("frontend NodePort, Local", OUTSIDE, Tcp, "192.168.10.1:31268", Kept(&["pod-0"])),
    row("frontend NodePort, Local", POD, Tcp, "192.168.10.1:31268", Kept(FRONTEND)),
    row("checkout NodePort", OUTSIDE, Tcp, "192.168.10.1:30550", Masqueraded(CHECKOUT)),
    row("checkout NodePort", HOST, Tcp, "192.168.10.1:30550", Masqueraded(CHECKOUT)),
    row("payment, from its own endpoint", SELF, Tcp, "10.107.99.82:50051", Masqueraded(&["pod-2"])),
    row("postgres external IP", OUTSIDE, Tcp, "192.0.2.200:5432", Masqueraded(&["pod-2"])),
    row("cart, session affinity", POD, Tcp, "10.108.171.181:7070", Sticky(CART)),
    row("currency, internal Local", POD, Tcp, "10.111.218.240:7000", Kept(&["pod-2"])),
    row("recommend, same node preferred", POD, Tcp, "10.102.156.89:8080", Kept(&["pod-0"])),
    row(
        "catalog, same zone preferred",
        SELF,
        Tcp,
        "10.106.249.191:3550",
        Kept(&["pod-0", "pod-1"]),
    ),
    row("gateway, host-network backends", POD, Tcp, "10.101.241.15:80", Kept(&["host", "host-b"])),
    row("kube-dns", SELF, Udp, "10.96.0.10:53", Kept(&["pod-1", "remote-0"])),
    row("kube-dns", SELF, Tcp, "10.96.0.10:53", Kept(&["pod-1", "remote-0"])),
    row("email, without pods", POD, Tcp, "10.101.183.11:5000", Refused),
    row("email, without pods", OUTSIDE, Tcp, "10.101.183.11:5000", Refused),
    row("kube-dns, a port it has not", POD, Udp, "10.96.0.10:54", Refused),
    row("no Service's ClusterIP", POD, Tcp, "10.96.99.99:80", Dropped),
];

/// Prints the table; how many rows were not as expected.
pub fn show(scene: &Scene) -> usize {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["SERVICE", "FROM", "DIALS", "ANSWERED BY", "WHICH SEES", ""]);
    let mut wrong = 0;
    for row in ROWS {
        let to: SocketAddr = row.to.parse().expect("a literal address");
        let (times, timeout) = match row.expect {
            Dropped => (1, SILENCE),
            _ => (TIMES, PATIENCE),
        };
        let dial = Dial::new(row.protocol, to).timeout(timeout);
        let outcomes = scene.lab.dial(row.from, dial, times);
        let right = is_right(&row.expect, &outcomes);
        wrong += usize::from(!right);
        table.add_row([
            row.service.to_owned(),
            place(row.from),
            format!("{} {}", row.protocol, row.to),
            answered(&outcomes),
            seen(&outcomes),
            if right { "ok" } else { "WRONG" }.to_owned(),
        ]);
    }
    println!("{table}");
    wrong
}

fn is_right(expect: &Expect, outcomes: &[Outcome]) -> bool {
    let answers: Vec<&Answer> = outcomes.iter().filter_map(Outcome::answer).collect();
    let servers: BTreeSet<&str> = answers.iter().map(|answer| answer.server.as_str()).collect();
    let all = |expected: &[&str]| {
        answers.len() == outcomes.len() && servers == expected.iter().copied().collect()
    };
    let seen = |masqueraded| answers.iter().any(|answer| answer.masqueraded() == masqueraded);
    match expect {
        Kept(expected) => all(expected) && !seen(true),
        Masqueraded(expected) => all(expected) && seen(true),
        Sticky(expected) => servers.len() == 1 && servers.iter().all(|s| expected.contains(s)),
        Refused => outcomes.iter().all(|outcome| *outcome == Outcome::Refused),
        Dropped => outcomes.iter().all(|outcome| *outcome == Outcome::Silent),
    }
}

fn place(place: Place) -> String {
    match place {
        Place::Pod(n) => format!("pod-{n}"),
        Place::RemotePod(n) => format!("remote-{n}"),
        Place::Host => "node-a".to_owned(),
        Place::Outside => "172.20.0.2".to_owned(),
        Place::OutsideAt(n) => format!("203.0.113.{n}"),
    }
}

fn answered(outcomes: &[Outcome]) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for outcome in outcomes {
        let what = match outcome {
            Outcome::Answered(answer) => answer.server.clone(),
            Outcome::Refused => "refused".to_owned(),
            Outcome::Silent => "silence".to_owned(),
            Outcome::Failed(kind) => kind.to_string(),
        };
        *counts.entry(what).or_default() += 1;
    }
    let counted: Vec<String> = counts.iter().map(|(what, n)| format!("{what} x{n}")).collect();
    counted.join(", ")
}

fn seen(outcomes: &[Outcome]) -> String {
    let answers = outcomes.iter().filter_map(Outcome::answer);
    let seen: BTreeSet<String> = answers
        .map(|answer| {
            let how = if answer.masqueraded() { "masqueraded" } else { "itself" };
            format!("{} ({how})", answer.seen.ip())
        })
        .collect();
    seen.into_iter().collect::<Vec<_>>().join(", ")
}
