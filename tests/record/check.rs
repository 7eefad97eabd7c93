//! What must hold of a record. Pure: lines in, figures and violations out.
//!
//! A change counts from [`FOLLOW`] after it was written, or after an agent that was down had everything
//! in force again; until then the old state and the new one may both be seen. What a client saw has to
//! fit one of the states that were possible while it waited:
//!
//! 1. a new flow reaches an endpoint that is usable, none that is gone, none that drains while another
//!    one is ready;
//! 2. nothing goes unanswered while each endpoint that it may reach answers;
//! 3. a datagram of a steady sender reaches an endpoint that serves, and gets its answer;
//! 4. an open connection lives as long as its server does, also while that drains and when it is gone;
//! 5. an agent that starts has everything in force within [`START`].
//!
//! Time in which a processor stood still ([`Line::Stall`]) does not count. A datagram that was on its way
//! when an endpoint went may be lost: its flow is deleted, and the answer finds none.

use std::collections::BTreeMap;
use std::fmt;

use crate::lines::{AgentEvent, At, Client, Line, Outcome, Span, State};

/// How long a change may take.
pub const FOLLOW: At = 2_000_000;

/// How long a start may take: a build for development, on a busy machine.
pub const START: At = 20_000_000;

/// How long an answer may take on a machine that runs.
pub const ANSWER: At = 1_000_000;

/// What a record shows.
#[derive(Debug, Default)]
pub struct Verdict {
    pub figures: Figures,
    pub violations: Vec<Violation>,
}

#[derive(Debug)]
pub struct Violation {
    pub rule: &'static str,
    pub line: Line,
    /// The states that were possible.
    pub possible: Vec<State>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Figures {
    pub seconds: u64,
    pub changes: usize,
    pub kills: usize,
    pub terminations: usize,
    pub failures: usize,
    pub dials: usize,
    pub datagrams: usize,
    pub questions: usize,
    /// Outcomes that were no answer, and rightly so.
    pub rightly_unanswered: usize,
    /// Questions on connections to a server that drained.
    pub while_draining: usize,
    /// Questions on connections to a server that no Service had any more.
    pub when_gone: usize,
    /// Observations of a moment at which only one state was possible.
    pub certain: usize,
    /// The last time after its removal was in order that an endpoint was reached by a new flow.
    pub gone_but_dialled: At,
    /// The same for datagrams of steady senders.
    pub gone_but_sent_to: At,
    pub longest_start: At,
    /// Time in which nothing ran on some processor.
    pub stalled: At,
}

/// Spans in which the machine, or a part of it, stood still: in order, and none meets another.
struct Stalls(Vec<Span>);

impl Stalls {
    fn of(lines: &[Line]) -> Stalls {
        let stalls = lines.iter().filter_map(|line| match line {
            Line::Stall { span } => Some(*span),
            _ => None,
        });
        let mut each: Vec<Span> = stalls.collect();
        each.sort_by_key(|span| span.from);
        let mut apart: Vec<Span> = Vec::new();
        for span in each {
            match apart.last_mut().filter(|last| last.meets(span)) {
                Some(last) => last.to = last.to.max(span.to),
                None => apart.push(span),
            }
        }
        Stalls(apart)
    }

    /// When the machine has run for this time.
    fn after(&self, from: At, time: At) -> At {
        self.0.iter().filter(|stall| stall.to > from).fold(
            from.saturating_add(time),
            |end, stall| {
                if stall.from < end {
                    end.saturating_add(stall.to - stall.from.max(from))
                } else {
                    end
                }
            },
        )
    }

    /// How long the machine ran in a span.
    fn ran(&self, span: Span) -> At {
        let within = self
            .0
            .iter()
            .map(|stall| stall.to.min(span.to).saturating_sub(stall.from.max(span.from)));
        (span.to - span.from).saturating_sub(within.sum())
    }
}

/// The lines by what is asked of them.
struct Record<'a> {
    changes: BTreeMap<&'a str, Vec<Change<'a>>>,
    downtimes: BTreeMap<&'a str, Vec<Span>>,
    stalls: Stalls,
}

struct Change<'a> {
    span: Span,
    /// Its time begins: it is written, and an agent is there to see it.
    seen: At,
    /// Only this state or later ones are possible afterwards.
    counts: At,
    state: &'a State,
}

/// A time in which everything was in force and the agent ran.
#[derive(Debug, Clone, Copy)]
struct Run {
    settled: At,
    end: At,
}

pub fn check(lines: &[Line]) -> Verdict {
    let mut verdict = Verdict::default();
    let stalls = Stalls::of(lines);
    let runs = runs(lines, &stalls, &mut verdict);
    let record = Record::of(lines, &runs, stalls);
    for line in lines {
        record.look(line, &mut verdict);
    }
    verdict.figures.stalled = record.stalls.0.iter().map(|stall| stall.to - stall.from).sum();
    verdict.figures.seconds = lines.iter().map(end).max().unwrap_or(0) / 1_000_000;
    verdict
}

fn end(line: &Line) -> At {
    match line {
        Line::Agent { at, .. } => *at,
        Line::Change { span, .. }
        | Line::Server { span, .. }
        | Line::Stall { span }
        | Line::Dial { span, .. }
        | Line::Datagram { span, .. }
        | Line::Question { span, .. } => span.to,
    }
}

fn runs(lines: &[Line], stalls: &Stalls, verdict: &mut Verdict) -> Vec<Run> {
    let (mut runs, mut started, mut settled) = (Vec::new(), None, None);
    for line in lines {
        let Line::Agent { at, event } = line else { continue };
        match event {
            AgentEvent::Started => started = Some(*at),
            AgentEvent::Settled => {
                let from = started.unwrap_or(*at);
                verdict.figures.longest_start = verdict.figures.longest_start.max(at - from);
                if *at > stalls.after(from, START) {
                    verdict.violate("a start takes too long", line, &[]);
                }
                settled = Some(*at);
            }
            AgentEvent::Terminated | AgentEvent::Killed => {
                match event {
                    AgentEvent::Killed => verdict.figures.kills += 1,
                    _ => verdict.figures.terminations += 1,
                }
                runs.extend(settled.take().map(|settled| Run { settled, end: *at }));
            }
        }
    }
    runs.extend(settled.map(|settled| Run { settled, end: At::MAX }));
    runs
}

impl<'a> Record<'a> {
    fn of(lines: &'a [Line], runs: &[Run], stalls: Stalls) -> Self {
        let mut record = Record { changes: BTreeMap::new(), downtimes: BTreeMap::new(), stalls };
        for line in lines {
            match line {
                Line::Change { span, service, state } => {
                    let due = |run: &Run| (span.to.max(run.settled), run.end);
                    let followed = |seen| record.stalls.after(seen, FOLLOW);
                    let mut due =
                        runs.iter().map(due).filter(|(seen, end)| followed(*seen) <= *end);
                    let seen = due.next().map_or(At::MAX, |(seen, _)| seen);
                    let counts = followed(seen);
                    let change = Change { span: *span, seen, counts, state };
                    record.changes.entry(service).or_default().push(change);
                }
                Line::Server { span, server, up: false } => {
                    let down = Span { from: span.from, to: At::MAX };
                    record.downtimes.entry(server).or_default().push(down);
                }
                Line::Server { span, server, up: true } => {
                    let last = record.downtimes.get_mut(server.as_str()).and_then(|d| d.last_mut());
                    if let Some(down) = last {
                        down.to = span.to;
                    }
                }
                _ => {}
            }
        }
        record
    }

    /// The states that may be in force at some moment of a span.
    fn possible(&self, service: &str, span: Span) -> Vec<&'a State> {
        let changes = self.changes.get(service).map_or(&[][..], Vec::as_slice);
        let replaced = changes.iter().skip(1).map(|next| next.counts).chain([At::MAX]);
        let in_force = changes.iter().zip(replaced).filter(|(change, replaced)| {
            span.meets(Span { from: change.span.from, to: *replaced })
        });
        in_force.map(|(change, _)| change.state).collect()
    }

    fn was_down(&self, server: &str, span: Span) -> bool {
        self.downtimes.get(server).is_some_and(|d| d.iter().any(|down| down.meets(span)))
    }

    fn look(&self, line: &Line, verdict: &mut Verdict) {
        let figures = &mut verdict.figures;
        match line {
            Line::Change { .. } => figures.changes += 1,
            Line::Agent { .. } => {}
            Line::Stall { .. } => {}
            Line::Server { up, .. } => figures.failures += usize::from(!up),
            Line::Dial { span, client, outcome } => {
                figures.dials += 1;
                let lag = self.lag(client, *span, outcome);
                figures.gone_but_dialled = figures.gone_but_dialled.max(lag);
                self.fits(line, *span, client, outcome, false, verdict);
            }
            Line::Datagram { span, client, outcome } => {
                figures.datagrams += 1;
                let lag = self.lag(client, *span, outcome);
                figures.gone_but_sent_to = figures.gone_but_sent_to.max(lag);
                self.fits(line, *span, client, outcome, true, verdict);
            }
            Line::Question { span, client, opened, server, outcome } => {
                figures.questions += 1;
                let states = self.possible(&client.service, *span);
                let member = |state: &&State| state.members.iter().any(|m| m.server == *server);
                let drains = |state: &&State| {
                    state.members.iter().any(|m| m.server == *server && m.draining)
                };
                figures.while_draining += usize::from(states.iter().all(drains));
                figures.when_gone += usize::from(!states.iter().any(member));
                let lived = Span { from: *opened, to: span.to };
                if *outcome != Outcome::Answered(server.clone()) && !self.was_down(server, lived) {
                    verdict.violate("an open connection broke", line, &states);
                }
            }
        }
    }

    /// Whether what a client saw fits a state that was possible meanwhile.
    fn fits(
        &self,
        line: &Line,
        span: Span,
        client: &Client,
        outcome: &Outcome,
        steady: bool,
        verdict: &mut Verdict,
    ) {
        let states = self.possible(&client.service, span);
        verdict.figures.certain += usize::from(states.len() == 1);
        let way = client.way;
        let kept = |state: &'a State| state.serving(way).filter(|_| steady);
        let reached = |state: &'a State| state.usable(way).chain(kept(state));
        match outcome {
            Outcome::Answered(server) => {
                if !states.iter().any(|state| reached(state).any(|reached| reached == server)) {
                    let rule = match steady {
                        true => "a datagram reached an endpoint that is gone",
                        false => "a new flow reached an endpoint that it may not reach",
                    };
                    verdict.violate(rule, line, &states);
                }
            }
            Outcome::Refused | Outcome::Silent | Outcome::Failed(_) => {
                let excused = |state: &&'a State| {
                    state.usable(way).next().is_none()
                        || reached(state).any(|server| self.was_down(server, span))
                };
                let leaves = |states: &[&'a State]| {
                    let after = |server| states[1].serving(way).any(|serving| serving == server);
                    states[0].serving(way).any(|server| !after(server))
                };
                let lost = client.udp && states.windows(2).any(leaves);
                let silent = *outcome == Outcome::Silent;
                if states.iter().any(excused)
                    || silent && (lost || self.stalls.ran(span) < ANSWER.min(span.to - span.from))
                {
                    verdict.figures.rightly_unanswered += 1;
                } else {
                    verdict.violate("no answer while endpoints serve", line, &states);
                }
            }
        }
    }

    /// How long after its removal should have been seen an endpoint was reached; 0 if it is there.
    fn lag(&self, client: &Client, span: Span, outcome: &Outcome) -> At {
        let Outcome::Answered(server) = outcome else { return 0 };
        let changes = self.changes.get(client.service.as_str()).map_or(&[][..], Vec::as_slice);
        let has = |change: &Change<'_>| change.state.serving(client.way).any(|s| s == server);
        let before: Vec<_> =
            changes.iter().take_while(|change| change.span.from <= span.to).collect();
        let since = before.iter().rev().take_while(|change| !has(change)).last();
        since.map_or(0, |change| span.from.saturating_sub(change.seen))
    }
}

impl Verdict {
    fn violate(&mut self, rule: &'static str, line: &Line, possible: &[&State]) {
        let possible = possible.iter().map(|state| (*state).clone()).collect();
        self.violations.push(Violation { rule, line: line.clone(), possible });
    }
}

impl Figures {
    /// What a record has to contain, or it proves nothing; names what is missing.
    pub fn missing(&self) -> Vec<&'static str> {
        let needed = [
            ("changes", self.changes),
            ("SIGKILLs", self.kills),
            ("SIGTERMs", self.terminations),
            ("failures of servers", self.failures),
            ("dials", self.dials),
            ("datagrams", self.datagrams),
            ("questions", self.questions),
            ("refusals that are right", self.rightly_unanswered),
            ("questions while a server drains", self.while_draining),
            ("moments with one possible state", self.certain),
        ];
        needed.into_iter().filter(|(_, count)| *count == 0).map(|(name, _)| name).collect()
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |at: At| at as f64 / 1e6;
        writeln!(
            f,
            "{} s: {} changes of Services, {} SIGKILLs, {} SIGTERMs, {} servers failed",
            self.seconds, self.changes, self.kills, self.terminations, self.failures
        )?;
        writeln!(
            f,
            "{} dials, {} datagrams of steady senders, {} questions on open connections ({} while \
             their server drained, {} when it was gone)",
            self.dials, self.datagrams, self.questions, self.while_draining, self.when_gone
        )?;
        writeln!(
            f,
            "{} rightly without an answer; {} at a moment with one possible state",
            self.rightly_unanswered, self.certain
        )?;
        write!(
            f,
            "an endpoint that is gone was reached for at most {:.3} s by new flows, {:.3} s by steady \
             senders; the longest start took {:.1} s; a processor stood still for {:.1} s",
            seconds(self.gone_but_dialled),
            seconds(self.gone_but_sent_to),
            seconds(self.longest_start),
            seconds(self.stalled)
        )
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.rule, serde_json::to_string(&self.line).unwrap())?;
        for state in &self.possible {
            writeln!(f, "    possible: {}", serde_json::to_string(state).unwrap())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
