//! What is written down: one line of JSON for everything that was changed, dialled and answered.
//!
//! Times are microseconds since the record began, all of one clock. What takes time has two: before
//! it began and after it ended.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// Microseconds since the record began.
pub type At = u64;

/// From before it began to after it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    pub from: At,
    pub to: At,
}

impl Span {
    pub fn meets(self, other: Span) -> bool {
        self.from <= other.to && other.from <= self.to
    }
}

/// A line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "kebab-case")]
pub enum Line {
    /// What a Service is from now on: its manifests were written.
    Change { span: Span, service: String, state: State },
    /// Something was done to the agent.
    Agent { at: At, event: AgentEvent },
    /// A server on every address of a pod was started or stopped, whatever the Services say of it.
    Server { span: Span, server: String, up: bool },
    /// Nothing ran on a processor: not even a thread that does nothing but look at the clock.
    Stall { span: Span },
    /// A client dialled as a new flow.
    Dial { span: Span, client: Client, outcome: Outcome },
    /// A steady sender's datagram, always of the same flow.
    Datagram { span: Span, client: Client, outcome: Outcome },
    /// A question on a connection that stays, opened at `opened` and then answered by `server`.
    Question { span: Span, client: Client, opened: At, server: String, outcome: Outcome },
}

/// Who dials what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    /// Where it is, and over what: `Pod(1) tcp 10.96.0.10:80`.
    pub name: String,
    pub service: String,
    pub way: Way,
    /// Whatever is lost of it is not sent again.
    pub udp: bool,
}

/// Over what a client dials: that says which policy counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// From within.
    ClusterIp,
    /// From outside.
    NodePort,
    /// A load balancer's address, from outside.
    Balancer,
}

/// What a client saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// This server answered.
    Answered(String),
    /// A reset, or an ICMP error.
    Refused,
    /// Nothing came in time.
    Silent,
    /// An end in the middle, or no way there.
    Failed(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgentEvent {
    Started,
    /// It said that everything is in force.
    Settled,
    Terminated,
    Killed,
}

/// A Service and its endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct State {
    /// Not deleted.
    pub present: bool,
    pub node_port: bool,
    /// `internalTrafficPolicy: Local`.
    pub internal_local: bool,
    /// `externalTrafficPolicy: Local`.
    pub external_local: bool,
    /// The load balancer's source ranges leave out who dials.
    pub closed: bool,
    pub members: Vec<Member>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub server: String,
    /// On the node that is dialled.
    pub local: bool,
    /// Terminating, and still serving.
    pub draining: bool,
}

impl State {
    /// By everything, for everyone.
    pub fn served() -> State {
        State { present: true, node_port: true, ..State::default() }
    }

    /// The servers that a new flow may reach: ready ones, or, if there is none, those that drain.
    pub fn usable(&self, way: Way) -> impl Iterator<Item = &str> {
        let open = self.has(way) && !(self.closed && way == Way::Balancer);
        let local_only = match way {
            Way::ClusterIp => self.internal_local,
            Way::NodePort | Way::Balancer => self.external_local,
        };
        let reachable = move |member: &&Member| open && (member.local || !local_only);
        let ready = self.members.iter().filter(reachable).any(|member| !member.draining);
        let chosen = self.members.iter().filter(reachable);
        chosen.filter(move |m| !(ready && m.draining)).map(|member| member.server.as_str())
    }

    /// The servers that a flow may stay with once it is there: all that serve.
    pub fn serving(&self, way: Way) -> impl Iterator<Item = &str> {
        let open = self.has(way);
        self.members.iter().filter(move |_| open).map(|member| member.server.as_str())
    }

    fn has(&self, way: Way) -> bool {
        self.present && (self.node_port || way != Way::NodePort)
    }
}

/// Writes lines as they come, from every thread.
pub struct Recorder {
    start: Instant,
    lines: Sender<Line>,
    writer: JoinHandle<()>,
}

/// One thread's end of it.
#[derive(Clone)]
pub struct Pen {
    start: Instant,
    lines: Sender<Line>,
}

impl Recorder {
    pub fn create(path: &Path) -> Recorder {
        let mut file = BufWriter::new(File::create(path).unwrap());
        let (lines, written) = channel::<Line>();
        let writer = std::thread::spawn(move || {
            for line in written {
                serde_json::to_writer(&mut file, &line).unwrap();
                file.write_all(b"\n").unwrap();
            }
            file.flush().unwrap();
        });
        Recorder { start: Instant::now(), lines, writer }
    }

    pub fn pen(&self) -> Pen {
        Pen { start: self.start, lines: self.lines.clone() }
    }

    /// Waits until everything is on disk; every pen has to be gone.
    pub fn close(self) {
        drop(self.lines);
        self.writer.join().unwrap();
    }
}

impl Pen {
    pub fn now(&self) -> At {
        u64::try_from(self.start.elapsed().as_micros()).unwrap()
    }

    pub fn write(&self, line: Line) {
        self.lines.send(line).unwrap();
    }
}

/// The lines of a file.
pub fn read(path: &Path) -> Vec<Line> {
    let file = BufReader::new(File::open(path).unwrap());
    file.lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect()
}
