//! Cases: who dials what, and what has to come of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use kubeweir::model::{Family, Protocol};
use kubeweir::testing::lab::{
    Answer, Dial, GATEWAY, Lab, NODE_IP, Outcome, Place, SECOND_NODE_IP, SILENCE, cluster_ip,
    external_ip, real_external_ip,
};

use super::explained::Explainer;

/// The protocols of every case.
pub const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// For cases of SCTP alone.
pub const SCTP: [Protocol; 1] = [Protocol::Sctp];

/// Dials at the same time: silence costs time, not work.
const DIALLERS: usize = 24;

/// What is dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To {
    /// The n-th ClusterIP and a port.
    ClusterIp(usize, u16),
    /// The n-th address that is routed to the node, and a port.
    External(usize, u16),
    /// The n-th address that a machine outside really has, and a port.
    RealExternal(usize, u16),
    /// A port of the node's first address.
    Node(u16),
    /// A port of the node's second address.
    SecondNode(u16),
    /// A port of the node's address towards its pods.
    Gateway(u16),
    /// A port of 127.0.0.1 or ::1.
    Loopback(u16),
}

impl To {
    pub fn address(self, family: Family) -> SocketAddr {
        let loopback: IpAddr = match family {
            Family::V4 => std::net::Ipv4Addr::LOCALHOST.into(),
            Family::V6 => std::net::Ipv6Addr::LOCALHOST.into(),
        };
        let (ip, port) = match self {
            To::ClusterIp(n, port) => (cluster_ip(n, family), port),
            To::External(n, port) => (external_ip(n, family), port),
            To::RealExternal(n, port) => (real_external_ip(n, family), port),
            To::Node(port) => (NODE_IP[family], port),
            To::SecondNode(port) => (SECOND_NODE_IP[family], port),
            To::Gateway(port) => (GATEWAY[family], port),
            To::Loopback(port) => (loopback, port),
        };
        SocketAddr::new(ip, port)
    }
}

/// Whether the server sees the client's own address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// It does; except for a pod that reached itself, which has to be masqueraded.
    Kept,
    /// It sees an address of the node.
    Masqueraded,
    /// Both are right.
    Either,
}

/// What has to come of a dial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// Exactly these answer, `name:port`, each at least once in many dials.
    Answer(BTreeSet<String>, Source),
    /// A reset or an ICMP port-unreachable.
    Refused,
    /// Silence.
    Dropped,
}

impl Case {
    /// The same for other protocols.
    pub fn over(self, protocols: &'static [Protocol]) -> Case {
        Case { protocols, ..self }
    }
}

/// Exactly these servers.
pub fn answer(servers: &[&str], source: Source) -> Expect {
    Expect::Answer(servers.iter().map(|&s| s.to_owned()).collect(), source)
}

/// One case.
#[derive(Debug, Clone)]
pub struct Case {
    /// What it is about.
    pub name: String,
    pub from: Place,
    pub to: To,
    pub expect: Expect,
    /// The protocols it holds for.
    pub protocols: &'static [Protocol],
}

/// A case for TCP and UDP.
pub fn case(name: impl Into<String>, from: Place, to: To, expect: Expect) -> Case {
    Case { name: name.into(), from, to, expect, protocols: &PROTOCOLS }
}

/// A case for one protocol.
pub fn case_of(protocol: Protocol, name: &str, from: Place, to: To, expect: Expect) -> Case {
    let at = PROTOCOLS.iter().position(|&p| p == protocol).expect("TCP or UDP");
    Case { protocols: &PROTOCOLS[at..=at], ..case(name, from, to, expect) }
}

/// Dials all cases over both families and fails with every case that came out differently, or that
/// `kubeweir explain` explains differently.
pub fn check(lab: &Lab, title: &str, cases: &[Case]) {
    check_families(lab, title, &Family::BOTH, cases);
}

/// The same for some families only.
pub fn check_families(lab: &Lab, title: &str, families: &[Family], cases: &[Case]) {
    let mut work = Vec::new();
    for &family in families {
        for case in cases {
            work.extend(case.protocols.iter().map(|&protocol| (family, protocol, case)));
        }
    }
    let next = AtomicUsize::new(0);
    let explainer = Explainer::of(lab);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..DIALLERS.min(work.len()) {
            scope.spawn(|| {
                while let Some(&(family, protocol, case)) =
                    work.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    if let Err(failure) = run(lab, &explainer, (family, protocol), case) {
                        failures.lock().expect("no dialler panics").push(failure);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("no dialler panics");
    assert!(
        failures.is_empty(),
        "{title}: {} of {} cases failed; look with {}\n{}",
        failures.len(),
        work.len(),
        lab.node.hint(),
        failures.join("\n")
    );
}

fn run(
    lab: &Lab,
    explainer: &Explainer,
    (family, protocol): (Family, Protocol),
    case: &Case,
) -> Result<(), String> {
    let to = case.to.address(family);
    let dial = Dial::new(protocol, to);
    let (dial, times) = match &case.expect {
        Expect::Answer(servers, _) => (dial, dials_to_see_all(servers.len())),
        Expect::Refused => (dial, 2),
        Expect::Dropped => (dial.timeout(SILENCE), 1),
    };
    let outcomes = lab.dial(case.from, dial, times);
    let verdict = match &case.expect {
        Expect::Answer(servers, source) => judge(case.from, &outcomes, servers, *source),
        Expect::Refused => all_are(&outcomes, &Outcome::Refused),
        Expect::Dropped => all_are(&outcomes, &Outcome::Silent),
    };
    verdict.map_err(|why| {
        format!(
            "  {}: {:?} -> {to}/{protocol}: expected {:?}: {why}",
            case.name, case.from, case.expect
        )
    })?;
    let agreed = explainer.judge(lab, case.from, (to, protocol), &outcomes);
    agreed.map(drop).map_err(|why| format!("  {}: {why}", case.name))
}

/// After this many dials the chance that one of `n` equally likely servers was missed is below
/// 1e-9.
pub fn dials_to_see_all(n: usize) -> usize {
    if n < 2 {
        return 4;
    }
    let n = n as f64;
    let dials = (n * 1e9).ln() / -(1.0 - 1.0 / n).ln();
    dials.ceil() as usize
}

fn all_are(outcomes: &[Outcome], expected: &Outcome) -> Result<(), String> {
    if outcomes.iter().all(|outcome| outcome == expected) {
        return Ok(());
    }
    Err(summary(outcomes))
}

fn judge(
    from: Place,
    outcomes: &[Outcome],
    servers: &BTreeSet<String>,
    source: Source,
) -> Result<(), String> {
    let answers: Vec<&Answer> = outcomes.iter().filter_map(Outcome::answer).collect();
    let seen: BTreeSet<String> = answers.iter().map(|answer| label(answer)).collect();
    if answers.len() != outcomes.len() || seen != *servers {
        return Err(summary(outcomes));
    }
    let wrong = answers.iter().find(|answer| !source_is_right(from, answer, source));
    if let Some(answer) = wrong {
        return Err(format!("wrong source: {answer:?}"));
    }
    // The host can be masqueraded to the address it has already. Its port shows it, but may come
    // out the same by chance; nor is a port always kept, if another flow has it already.
    let masqueraded = source == Source::Masqueraded;
    let never = |server: &&String| {
        !answers.iter().any(|a| label(a) == **server && a.masqueraded() == masqueraded)
    };
    match servers.iter().find(never) {
        Some(server) if from == Place::Host && source != Source::Either => {
            Err(format!("{server} always saw a wrong source: {:?}", answers[0]))
        }
        _ => Ok(()),
    }
}

/// `name:port` of the server.
pub fn label(answer: &Answer) -> String {
    format!("{}:{}", answer.server, answer.endpoint.port())
}

fn source_is_right(from: Place, answer: &Answer, source: Source) -> bool {
    let hairpin = from.source(Family::of(&answer.seen.ip())) == Some(answer.endpoint.ip());
    let family = Family::of(&answer.seen.ip());
    let nodes = [NODE_IP[family], SECOND_NODE_IP[family], GATEWAY[family]];
    let masqueraded = answer.masqueraded() && nodes.contains(&answer.seen.ip());
    match source {
        Source::Kept if hairpin => masqueraded,
        Source::Kept if from == Place::Host => answer.seen.ip() == answer.client.ip(),
        Source::Kept => !answer.masqueraded(),
        Source::Masqueraded if from == Place::Host => nodes.contains(&answer.seen.ip()),
        Source::Masqueraded => masqueraded,
        Source::Either => true,
    }
}

/// How often each thing happened.
pub fn summary(outcomes: &[Outcome]) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for outcome in outcomes {
        let what = outcome.answer().map_or_else(|| format!("{outcome:?}"), label);
        *counts.entry(what).or_default() += 1;
    }
    let mut text = String::from("got");
    for (what, count) in counts {
        write!(text, " {count} x {what}").expect("a String takes everything");
    }
    text
}
