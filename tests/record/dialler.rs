//! Clients that write down every connection and every datagram.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kubeweir::model::{Family, Protocol};
use kubeweir::testing::lab::{Dial, Flow, Lab, Outcome as Seen, Place};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::lines::{At, Client, Line, Outcome, Pen, Span, Way};

/// How long a new flow may take: a SYN that meets a busy machine is repeated after a second.
const PATIENCE: Duration = Duration::from_secs(3);

/// How long a datagram's answer may take: machines that build something beside were seen to stand still
/// for a second.
const DATAGRAM: Duration = Duration::from_secs(2);

/// How long an answer on an open connection may take: one that is broken is reset, or silent for ever.
const OPEN: Duration = Duration::from_secs(15);

/// Between two dials of one client, two datagrams of one sender, two questions.
const PAUSE: Duration = Duration::from_millis(40);

/// Open connections of one client, and how many questions each is asked.
const CONNECTIONS: usize = 4;
const QUESTIONS: usize = 150;

/// Where a client is and what it dials.
#[derive(Debug, Clone)]
pub struct Target {
    pub place: Place,
    pub to: SocketAddr,
    pub service: String,
    pub way: Way,
}

impl Target {
    fn client(&self, how: &str) -> Client {
        Client {
            name: format!("{:?} {how} {}", self.place, self.to),
            service: self.service.clone(),
            way: self.way,
            udp: how.ends_with("udp"),
        }
    }
}

/// How often the clock is looked at, and how late that may be.
const PULSE: Duration = Duration::from_millis(20);
const LATE: Duration = Duration::from_millis(100);

/// The same for who may not go to another processor: where many wait for one, that is no standing still.
const LATE_ON_ONE: Duration = Duration::from_millis(500);

/// The processors that this process may use. One of them can stand still while the others run, and with it
/// whoever is on it: a client, a server, the agent.
fn processors() -> Vec<CpuSet> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let alone = |at| {
        let mut set = CpuSet::new();
        set.set(at).unwrap();
        set
    };
    (0..CpuSet::count()).filter(|&at| allowed.is_set(at).unwrap()).map(alone).collect()
}

/// Writes down when nothing ran, or nothing on a processor.
fn feel_the_pulse(processor: Option<CpuSet>, pen: &Pen, stop: &AtomicBool) {
    let late = if processor.is_some() { LATE_ON_ONE } else { LATE };
    if let Some(processor) = processor {
        sched_setaffinity(Pid::from_raw(0), &processor).unwrap();
    }
    let mut last = pen.now();
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(PULSE);
        let now = pen.now();
        if u128::from(now - last) > (PULSE + late).as_micros() {
            pen.write(Line::Stall { span: Span { from: last, to: now } });
        }
        last = now;
    }
}

/// Clients that go on until they are stopped.
pub struct Clients {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    /// For each target one that dials over TCP and UDP in turns, a steady sender, and one with open
    /// connections.
    pub fn start(lab: &Arc<Lab>, pen: &Pen, targets: &[Target]) -> Clients {
        let stop = Arc::new(AtomicBool::new(false));
        let pulse = |processor| {
            let (pen, stop) = (pen.clone(), Arc::clone(&stop));
            std::thread::spawn(move || feel_the_pulse(processor, &pen, &stop))
        };
        let each = processors().into_iter().map(Some).chain([None]);
        let mut threads: Vec<_> = each.map(pulse).collect();
        for target in targets {
            for work in [dial, send, ask] {
                let (lab, pen) = (Arc::clone(lab), pen.clone());
                let (target, stop) = (target.clone(), Arc::clone(&stop));
                threads.push(std::thread::spawn(move || work(&lab, &target, &pen, &stop)));
            }
        }
        Clients { stop, threads }
    }

    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
}

fn dial(lab: &Lab, target: &Target, pen: &Pen, stop: &AtomicBool) {
    let kinds = [(Protocol::Tcp, "tcp"), (Protocol::Udp, "udp")];
    for (protocol, how) in kinds.into_iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let timeout = if protocol == Protocol::Tcp { PATIENCE } else { DATAGRAM };
        let dial = Dial::new(protocol, target.to).timeout(timeout);
        let from = pen.now();
        let seen = lab.dial(target.place, dial, 1).remove(0);
        let span = Span { from, to: pen.now() };
        pen.write(Line::Dial { span, client: target.client(how), outcome: outcome(&seen) });
        std::thread::sleep(PAUSE);
    }
}

fn outcome(seen: &Seen) -> Outcome {
    match seen {
        Seen::Answered(answer) => Outcome::Answered(answer.server.clone()),
        Seen::Refused => Outcome::Refused,
        Seen::Silent => Outcome::Silent,
        Seen::Failed(kind) => Outcome::Failed(kind.to_string()),
    }
}

/// One flow for all datagrams, whatever becomes of them.
fn send(lab: &Lab, target: &Target, pen: &Pen, stop: &AtomicBool) {
    let client = target.client("steady udp");
    let socket = lab.netns(target.place).run(|| {
        let from = target.place.source(Family::of(&target.to.ip()));
        let any = if target.to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let local = from.map_or_else(|| any.parse().unwrap(), |ip| SocketAddr::new(ip, 0));
        let socket = UdpSocket::bind(local).unwrap();
        socket.connect(target.to).unwrap();
        socket
    });
    // What arrives late belongs to some datagram since the last one that was answered in time.
    let mut since = pen.now();
    while !stop.load(Ordering::Relaxed) {
        for late in drain(&socket) {
            let (span, outcome) = (Span { from: since, to: pen.now() }, Outcome::Answered(late));
            pen.write(Line::Datagram { span, client: client.clone(), outcome });
        }
        let from = pen.now();
        let outcome = exchange(&socket);
        let answered = matches!(outcome, Outcome::Answered(_));
        let span = Span { from: if answered { from } else { since }, to: pen.now() };
        pen.write(Line::Datagram { span, client: client.clone(), outcome });
        // An ICMP error may be about the datagram before.
        since = from;
        std::thread::sleep(PAUSE);
    }
}

/// Takes what arrived too late, errors included.
fn drain(socket: &UdpSocket) -> Vec<String> {
    let mut late = Vec::new();
    socket.set_nonblocking(true).unwrap();
    let mut buffer = [0; 256];
    loop {
        match socket.recv(&mut buffer) {
            Ok(length) => late.push(server(&buffer[..length])),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(_) => {}
        }
    }
    socket.set_nonblocking(false).unwrap();
    late
}

fn exchange(socket: &UdpSocket) -> Outcome {
    let end = Instant::now() + DATAGRAM;
    match socket.send(b"?") {
        // Refused or dropped on the way out of the host: an ICMP error says which.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Outcome::Refused,
        Err(error) => return Outcome::Failed(error.to_string()),
        Ok(_) => {}
    }
    let mut buffer = [0; 256];
    loop {
        let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        socket.set_read_timeout(Some(left)).unwrap();
        match socket.recv(&mut buffer) {
            Ok(length) => return Outcome::Answered(server(&buffer[..length])),
            Err(error) => match error.kind() {
                io::ErrorKind::Interrupted => {}
                io::ErrorKind::ConnectionRefused => return Outcome::Refused,
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => return Outcome::Silent,
                _ => return Outcome::Failed(error.to_string()),
            },
        }
    }
}

/// The first word of an answer.
fn server(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.split_whitespace().next().unwrap_or_default().to_owned()
}

/// A connection that stays.
struct Open {
    flow: Flow,
    opened: At,
    server: String,
    asked: usize,
}

fn ask(lab: &Lab, target: &Target, pen: &Pen, stop: &AtomicBool) {
    let client = target.client("open tcp");
    let mut connections: Vec<Open> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        if connections.len() < CONNECTIONS {
            connections.extend(open(lab, target, pen));
        }
        connections.retain_mut(|connection| {
            let from = pen.now();
            let seen = outcome(&connection.flow.ask(OPEN));
            connection.asked += 1;
            let lives = matches!(seen, Outcome::Answered(_));
            let (opened, server) = (connection.opened, connection.server.clone());
            let span = Span { from, to: pen.now() };
            pen.write(Line::Question {
                span,
                client: client.clone(),
                opened,
                server,
                outcome: seen,
            });
            lives && connection.asked < QUESTIONS
        });
        std::thread::sleep(PAUSE);
    }
}

/// Opens a connection and asks once; what comes of it is judged where new flows are.
fn open(lab: &Lab, target: &Target, pen: &Pen) -> Option<Open> {
    let opened = pen.now();
    let from = target.place.source(Family::of(&target.to.ip()));
    let dial = Dial { from, ..Dial::new(Protocol::Tcp, target.to).timeout(PATIENCE) };
    let dialled = lab.netns(target.place).open(dial);
    let (seen, flow) = match dialled {
        Ok(mut flow) => (outcome(&flow.ask(PATIENCE)), Some(flow)),
        Err(seen) => (outcome(&seen), None),
    };
    let span = Span { from: opened, to: pen.now() };
    let client = target.client("tcp");
    pen.write(Line::Dial { span, client, outcome: seen.clone() });
    match (flow, seen) {
        (Some(flow), Outcome::Answered(server)) => Some(Open { flow, opened, server, asked: 1 }),
        _ => None,
    }
}
