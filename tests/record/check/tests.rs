//! Records that lie: each rule finds its lie, and nothing in the truth beside it.

use super::*;
use crate::lines::{Member, Way};

const SECOND: At = 1_000_000;

fn at(seconds: f64) -> At {
    (seconds * 1e6) as At
}

/// A moment, a millisecond long.
fn moment(seconds: f64) -> Span {
    Span { from: at(seconds), to: at(seconds) + 1000 }
}

fn client(way: Way) -> Client {
    Client { name: "client".to_owned(), service: "web".to_owned(), way, udp: false }
}

/// `a` is ready on the node, `B` elsewhere; `a-` drains.
fn state(members: &[&str]) -> State {
    let member = |text: &&str| {
        let name = text.trim_end_matches('-');
        let local = name.chars().all(char::is_lowercase);
        Member { server: name.to_owned(), local, draining: text.ends_with('-') }
    };
    let members = members.iter().map(member).collect();
    State { members, ..State::served() }
}

fn change(seconds: f64, state: State) -> Line {
    Line::Change { span: moment(seconds), service: "web".to_owned(), state }
}

fn agent(seconds: f64, event: AgentEvent) -> Line {
    Line::Agent { at: at(seconds), event }
}

fn answered(server: &str) -> Outcome {
    Outcome::Answered(server.to_owned())
}

fn dial(seconds: f64, outcome: Outcome) -> Line {
    Line::Dial { span: moment(seconds), client: client(Way::ClusterIp), outcome }
}

fn dial_outside(seconds: f64, outcome: Outcome) -> Line {
    Line::Dial { span: moment(seconds), client: client(Way::NodePort), outcome }
}

fn datagram(seconds: f64, outcome: Outcome) -> Line {
    let client = Client { udp: true, ..client(Way::ClusterIp) };
    Line::Datagram { span: moment(seconds), client, outcome }
}

fn question(seconds: f64, outcome: Outcome) -> Line {
    let (opened, server) = (at(1.0), "a".to_owned());
    Line::Question {
        span: moment(seconds),
        client: client(Way::ClusterIp),
        opened,
        server,
        outcome,
    }
}

fn server(seconds: f64, up: bool) -> Line {
    Line::Server { span: moment(seconds), server: "a".to_owned(), up }
}

/// The rules that a record breaks: an agent runs from the start, the Service has `a` and then, after
/// ten seconds, `then`; and these lines.
fn broken(then: &[&str], lines: &[Line]) -> Vec<&'static str> {
    let before = [
        change(0.0, state(&["a"])),
        agent(0.1, AgentEvent::Started),
        agent(0.2, AgentEvent::Settled),
        change(10.0, state(then)),
    ];
    let all: Vec<Line> = before.into_iter().chain(lines.iter().cloned()).collect();
    check(&all).violations.into_iter().map(|violation| violation.rule).collect()
}

const NONE: [&str; 0] = [];
const NEW: &str = "a new flow reached an endpoint that it may not reach";
const GONE: &str = "a datagram reached an endpoint that is gone";
const UNANSWERED: &str = "no answer while endpoints serve";
const BROKE: &str = "an open connection broke";

#[test]
fn a_new_flow_to_an_endpoint_that_is_gone() {
    assert_eq!(broken(&["b"], &[dial(9.0, answered("a")), dial(13.0, answered("b"))]), NONE);
    assert_eq!(broken(&["b"], &[dial(11.9, answered("a"))]), NONE, "a change takes its time");
    assert_eq!(broken(&["b"], &[dial(12.1, answered("a"))]), [NEW]);
    assert_eq!(broken(&["b"], &[dial(9.0, answered("b"))]), [NEW], "and not before it is there");
    assert_eq!(broken(&[], &[dial(12.1, answered("a"))]), [NEW], "none is left");
}

#[test]
fn a_new_flow_to_an_endpoint_that_drains() {
    assert_eq!(broken(&["a-", "b"], &[dial(12.1, answered("a"))]), [NEW]);
    assert_eq!(broken(&["a-"], &[dial(12.1, answered("a"))]), NONE, "it is all there is");
}

#[test]
fn a_new_flow_to_a_service_that_is_deleted() {
    let deleted = || change(10.0, State { present: false, ..state(&["a"]) });
    assert_eq!(broken(&["a"], &[deleted(), dial(12.1, answered("a"))]), [NEW]);
    assert_eq!(broken(&["a"], &[deleted(), dial(12.1, Outcome::Silent)]), NONE);
    let closed = || change(10.0, State { node_port: false, ..state(&["a"]) });
    assert_eq!(broken(&["a"], &[closed(), dial_outside(12.1, answered("a"))]), [NEW]);
    assert_eq!(broken(&["a"], &[closed(), dial(12.1, answered("a"))]), NONE, "by ClusterIP");
}

#[test]
fn a_new_flow_that_policy_local_forbids() {
    let local = |members: &[&str]| change(10.0, State { external_local: true, ..state(members) });
    let both = || local(&["a", "B"]);
    assert_eq!(broken(&["a"], &[both(), dial_outside(12.1, answered("B"))]), [NEW]);
    assert_eq!(broken(&["a"], &[both(), dial_outside(12.1, answered("a"))]), NONE);
    assert_eq!(broken(&["a"], &[both(), dial(12.1, answered("B"))]), NONE, "from within");
    let elsewhere = || local(&["B"]);
    assert_eq!(broken(&["a"], &[elsewhere(), dial_outside(12.1, Outcome::Silent)]), NONE);
    assert_eq!(broken(&["a"], &[both(), dial_outside(12.1, Outcome::Silent)]), [UNANSWERED]);
}

#[test]
fn a_new_flow_that_internal_policy_local_forbids() {
    let local = |members: &[&str]| change(10.0, State { internal_local: true, ..state(members) });
    let both = || local(&["a", "B"]);
    assert_eq!(broken(&["a"], &[both(), dial(12.1, answered("B"))]), [NEW]);
    assert_eq!(broken(&["a"], &[both(), dial(12.1, answered("a"))]), NONE);
    assert_eq!(broken(&["a"], &[both(), dial(12.1, Outcome::Silent)]), [UNANSWERED]);
    assert_eq!(broken(&["a"], &[both(), dial_outside(12.1, answered("B"))]), NONE, "by NodePort");
    assert_eq!(broken(&["a"], &[local(&["B"]), dial(12.1, Outcome::Silent)]), NONE);
}

// Who is left out may keep a flow, and begins none.
#[test]
fn a_new_flow_that_source_ranges_forbid() {
    let closed = || change(10.0, State { closed: true, ..state(&["a"]) });
    let by_balancer =
        |outcome| Line::Dial { span: moment(12.1), client: client(Way::Balancer), outcome };
    let steady =
        |outcome| Line::Datagram { span: moment(12.1), client: client(Way::Balancer), outcome };
    assert_eq!(broken(&["a"], &[closed(), by_balancer(answered("a"))]), [NEW]);
    assert_eq!(broken(&["a"], &[closed(), by_balancer(Outcome::Silent)]), NONE);
    assert_eq!(broken(&["a"], &[closed(), steady(answered("a")), steady(Outcome::Silent)]), NONE);
    assert_eq!(broken(&["a"], &[by_balancer(Outcome::Silent)]), [UNANSWERED], "ranges are open");
    for line in [dial(12.1, Outcome::Silent), dial_outside(12.1, Outcome::Silent)] {
        assert_eq!(broken(&["a"], &[closed(), line]), [UNANSWERED], "by other ways");
    }
}

// A flow may stay with an endpoint elsewhere; one that began anew would be dropped.
#[test]
fn a_steady_sender_that_policy_local_turns_away() {
    let from_outside =
        |outcome| Line::Datagram { span: moment(12.1), client: client(Way::NodePort), outcome };
    let elsewhere = || change(10.0, State { external_local: true, ..state(&["B"]) });
    for outcome in [answered("B"), Outcome::Silent] {
        assert_eq!(broken(&["B"], &[elsewhere(), from_outside(outcome)]), NONE);
    }
    assert_eq!(broken(&["B"], &[elsewhere(), from_outside(answered("a"))]), [GONE]);
    assert_eq!(broken(&["B"], &[from_outside(Outcome::Silent)]), [UNANSWERED]);
}

#[test]
fn a_refusal_while_endpoints_serve() {
    for outcome in [Outcome::Refused, Outcome::Silent, Outcome::Failed("reset".to_owned())] {
        assert_eq!(broken(&["b"], &[dial(12.1, outcome.clone())]), [UNANSWERED]);
        assert_eq!(broken(&["b"], &[dial(10.5, outcome.clone())]), [UNANSWERED], "nor in between");
        assert_eq!(broken(&[], &[dial(10.5, outcome.clone())]), NONE, "none is there");
        assert_eq!(broken(&[], &[dial(9.9, outcome)]), [UNANSWERED], "not yet");
    }
}

#[test]
fn a_refusal_excused_by_a_server_that_is_down() {
    let refused = |seconds| dial(seconds, Outcome::Refused);
    assert_eq!(broken(&["b"], &[server(9.0, false), refused(9.1)]), NONE);
    assert_eq!(broken(&["b"], &[server(9.0, false), refused(11.9)]), NONE, "it may still be tried");
    assert_eq!(broken(&["b"], &[server(9.0, false), refused(12.1)]), [UNANSWERED]);
    let restarted = [server(8.0, false), server(9.0, true), refused(9.5)];
    assert_eq!(broken(&["b"], &restarted), [UNANSWERED], "it is back");
}

#[test]
fn a_steady_sender_that_does_not_follow() {
    assert_eq!(
        broken(&["b"], &[datagram(11.9, answered("a")), datagram(12.1, answered("b"))]),
        NONE
    );
    assert_eq!(broken(&["b"], &[datagram(12.1, answered("a"))]), [GONE]);
    assert_eq!(broken(&[], &[datagram(12.1, answered("a"))]), [GONE]);
    assert_eq!(broken(&["b"], &[datagram(12.1, Outcome::Silent)]), [UNANSWERED]);
    assert_eq!(broken(&["a-", "b"], &[datagram(12.1, answered("a"))]), NONE, "it serves on");
}

#[test]
fn an_open_connection_that_breaks() {
    assert_eq!(broken(&["a-", "b"], &[question(13.0, answered("a"))]), NONE);
    assert_eq!(broken(&["a-", "b"], &[question(13.0, Outcome::Silent)]), [BROKE], "it drains");
    assert_eq!(broken(&["b"], &[question(13.0, Outcome::Refused)]), [BROKE], "it is gone");
    assert_eq!(broken(&["b"], &[question(13.0, answered("b"))]), [BROKE], "somebody else answers");
    assert_eq!(broken(&["b"], &[server(9.0, false), question(13.0, Outcome::Refused)]), NONE);
}

#[test]
fn a_change_waits_for_an_agent() {
    let down = [agent(9.0, AgentEvent::Killed), agent(20.0, AgentEvent::Started)];
    let up = agent(20.5, AgentEvent::Settled);
    let with = |line: Line| [&down[..], &[up.clone(), line]].concat();
    assert_eq!(broken(&["b"], &with(dial(19.0, answered("a")))), NONE);
    assert_eq!(broken(&["b"], &with(dial(22.4, answered("a")))), NONE);
    assert_eq!(broken(&["b"], &with(dial(22.6, answered("a")))), [NEW]);
    assert_eq!(broken(&["b"], &with(datagram(22.6, answered("a")))), [GONE]);
    assert_eq!(broken(&["b"], &with(dial(19.0, Outcome::Refused))), [UNANSWERED], "rules stay");
    let late = [agent(9.0, AgentEvent::Killed), agent(20.0, AgentEvent::Started)];
    let settled = agent(20.0 + 21.0, AgentEvent::Settled);
    assert_eq!(broken(&["b"], &[&late[..], &[settled]].concat()), ["a start takes too long"]);
}

// An agent that was ended before a change had its time does not make it count.
#[test]
fn a_change_right_before_the_end_of_an_agent() {
    let lines = [agent(10.5, AgentEvent::Terminated), dial(15.0, answered("a"))];
    assert_eq!(broken(&["b"], &lines), NONE);
}

fn stall(from: f64, to: f64) -> Line {
    Line::Stall { span: Span { from: at(from), to: at(to) } }
}

/// A silence of two seconds.
fn silence(seconds: f64, udp: bool) -> Line {
    let span = Span { from: at(seconds), to: at(seconds + 2.0) };
    let client = Client { udp, ..client(Way::ClusterIp) };
    Line::Dial { span, client, outcome: Outcome::Silent }
}

#[test]
fn time_in_which_nothing_runs_does_not_count() {
    let late = || dial(13.0, answered("a"));
    assert_eq!(broken(&["b"], &[stall(10.5, 12.0), late()]), NONE);
    assert_eq!(broken(&["b"], &[stall(9.0, 11.0), stall(11.5, 12.0), late()]), NONE);
    assert_eq!(broken(&["b"], &[stall(10.5, 11.0), late()]), [NEW], "too short");
    let at_once = [stall(10.6, 10.9), stall(10.5, 11.0), stall(10.5, 11.0), late()];
    assert_eq!(broken(&["b"], &at_once), [NEW], "two processors, the same time");
    assert_eq!(broken(&["b"], &[stall(5.0, 9.0), late()]), [NEW], "before");
    assert_eq!(broken(&["b"], &[stall(13.1, 19.0), late()]), [NEW], "after");
    assert_eq!(broken(&["b"], &[silence(15.0, true)]), [UNANSWERED]);
    assert_eq!(broken(&["b"], &[stall(15.1, 16.5), silence(15.0, true)]), NONE);
    let start = |took| [agent(30.0, AgentEvent::Started), agent(30.0 + took, AgentEvent::Settled)];
    assert_eq!(broken(&["b"], &[&[stall(31.0, 33.0)], &start(21.0)[..]].concat()), NONE);
    let slow = [&[stall(31.0, 33.0)], &start(23.0)[..]].concat();
    assert_eq!(broken(&["b"], &slow), ["a start takes too long"]);
}

// The flow of a datagram that is on its way to an endpoint that goes is deleted.
#[test]
fn a_datagram_on_its_way_when_an_endpoint_goes() {
    assert_eq!(broken(&["b"], &[silence(9.0, true)]), NONE);
    assert_eq!(broken(&["b"], &[silence(9.0, false)]), [UNANSWERED], "TCP sends again");
    assert_eq!(broken(&["b"], &[silence(12.5, true)]), [UNANSWERED], "nobody goes any more");
    assert_eq!(broken(&["a", "b"], &[silence(9.0, true)]), [UNANSWERED], "one comes");
}

#[test]
fn figures_are_counted() {
    let lines = [
        change(0.0, state(&["a", "b"])),
        agent(0.1, AgentEvent::Started),
        agent(1.1, AgentEvent::Settled),
        dial(5.0, answered("a")),
        change(10.0, state(&["a-", "b"])),
        question(13.0, answered("a")),
        change(20.0, state(&["a", "b"])),
        change(30.0, state(&["b"])),
        dial(30.5, answered("a")),
        datagram(31.0, answered("a")),
        question(33.0, answered("a")),
        server(34.0, false),
        agent(35.0, AgentEvent::Killed),
        agent(36.0, AgentEvent::Started),
        agent(39.0, AgentEvent::Settled),
        agent(40.0, AgentEvent::Terminated),
    ];
    let verdict = check(&lines);
    assert!(verdict.violations.is_empty(), "{:?}", verdict.violations);
    let figures = verdict.figures;
    let lag = [figures.gone_but_dialled, figures.gone_but_sent_to].map(|lag| lag / 100_000);
    assert_eq!(lag, [4, 9], "tenths of seconds, less the time of the change itself");
    let expected = Figures {
        seconds: 40,
        changes: 4,
        kills: 1,
        terminations: 1,
        failures: 1,
        dials: 2,
        datagrams: 1,
        questions: 2,
        rightly_unanswered: 0,
        while_draining: 1,
        when_gone: 1,
        certain: 1,
        gone_but_dialled: figures.gone_but_dialled,
        gone_but_sent_to: figures.gone_but_sent_to,
        longest_start: 3 * SECOND,
        stalled: 0,
    };
    assert_eq!(figures, expected);
}

#[test]
fn a_record_of_nothing_proves_nothing() {
    let verdict = check(&[]);
    assert!(verdict.violations.is_empty());
    assert_eq!(verdict.figures.missing().len(), 10);
}
