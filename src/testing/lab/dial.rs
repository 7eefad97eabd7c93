//! Clients: one question to one address, and what became of it.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, SockAddr, Socket, Type};

use super::{Answer, Netns};
use crate::model::{Family, Protocol};
use crate::testing::slowed;

/// How long an answer or a refusal may take; long, because the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// How long to listen before silence counts as a drop: three SYNs would not fit, one answer does.
pub const SILENCE: Duration = Duration::from_millis(400);

/// What became of a dial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A server answered.
    Answered(Answer),
    /// A TCP reset or an ICMP port-unreachable came back.
    Refused,
    /// Nothing came back in time.
    Silent,
    /// Something else, such as "no route to host".
    Failed(io::ErrorKind),
}

impl Outcome {
    /// The answer, if there was one.
    pub fn answer(&self) -> Option<&Answer> {
        match self {
            Outcome::Answered(answer) => Some(answer),
            _ => None,
        }
    }
}

/// Whom to dial, from where, and how long to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dial {
    /// TCP, UDP, or SCTP if the kernel has it.
    pub protocol: Protocol,
    pub to: SocketAddr,
    /// The source address; `None` lets the routing table choose.
    pub from: Option<IpAddr>,
    /// After how long silence counts; [`slowed`] where it is waited.
    pub timeout: Duration,
}

impl Dial {
    /// Dials with [`PATIENCE`] from the address that routing chooses.
    pub fn new(protocol: Protocol, to: SocketAddr) -> Dial {
        Dial { protocol, to, from: None, timeout: PATIENCE }
    }

    /// From this address of the namespace.
    pub fn from(self, from: IpAddr) -> Dial {
        Dial { from: Some(from), ..self }
    }

    /// Waits no longer than this.
    pub fn timeout(self, timeout: Duration) -> Dial {
        Dial { timeout, ..self }
    }
}

/// A flow that stays open, to see what becomes of it while rules change.
#[derive(Debug)]
pub struct Flow {
    socket: Socket,
    protocol: Protocol,
}

impl Netns {
    /// Dials from this namespace and asks once.
    pub fn dial(&self, dial: Dial) -> Outcome {
        self.dial_times(dial, 1).remove(0)
    }

    /// Dials `times` times in a row, each time as a new flow.
    pub fn dial_times(&self, dial: Dial, times: usize) -> Vec<Outcome> {
        self.run(|| (0..times).map(|_| self.dial_here(dial)).collect())
    }

    /// Opens a flow and keeps it.
    pub fn open(&self, dial: Dial) -> Result<Flow, Outcome> {
        self.run(|| self.open_here(dial)).map_err(|error| outcome(&error))
    }

    fn dial_here(&self, dial: Dial) -> Outcome {
        match self.open_here(dial) {
            Ok(mut flow) => flow.ask(dial.timeout),
            Err(error) => outcome(&error),
        }
    }

    fn open_here(&self, dial: Dial) -> io::Result<Flow> {
        let (kind, protocol) = match dial.protocol {
            Protocol::Tcp => (Type::STREAM, None),
            Protocol::Udp => (Type::DGRAM, None),
            // One-to-one, it takes the calls of a TCP socket.
            Protocol::Sctp => (Type::STREAM, Some(libc::IPPROTO_SCTP.into())),
        };
        let socket = Socket::new(Domain::for_address(dial.to), kind, protocol)?;
        let dial = match dial.protocol {
            Protocol::Sctp => prepared(&socket, dial)?,
            _ => dial,
        };
        self.bind_fresh(&socket, dial)?;
        socket.connect_timeout(&SockAddr::from(dial.to), slowed(dial.timeout))?;
        if dial.protocol != Protocol::Udp {
            // A reset at the end leaves no TIME_WAIT behind, in sockets and in conntrack.
            socket.set_linger(Some(Duration::ZERO))?;
        }
        Ok(Flow { socket, protocol: dial.protocol })
    }

    fn bind_fresh(&self, socket: &Socket, dial: Dial) -> io::Result<()> {
        let any: IpAddr = match Family::of(&dial.to.ip()) {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        let address = dial.from.unwrap_or(any);
        loop {
            let local = SocketAddr::new(address, self.source_port());
            match socket.bind(&SockAddr::from(local)) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => continue,
                other => return other,
            }
        }
    }
}

/// Of an SCTP socket: ICMP errors end a `connect`, as they do for TCP; and it has one address, because an
/// association would tell the other side of all the host has, which no NAT translates.
fn prepared(socket: &Socket, dial: Dial) -> io::Result<Dial> {
    match Family::of(&dial.to.ip()) {
        Family::V4 => setsockopt(socket, sockopt::Ipv4RecvErr, &true)?,
        Family::V6 => setsockopt(socket, sockopt::Ipv6RecvErr, &true)?,
    }
    if dial.from.is_some() {
        return Ok(dial);
    }
    let routed = Socket::new(Domain::for_address(dial.to), Type::DGRAM, None)?;
    routed.connect(&dial.to.into())?;
    Ok(Dial { from: routed.local_addr()?.as_socket().map(|local| local.ip()), ..dial })
}

impl Flow {
    /// The client's end of the flow, as the client sees it.
    pub fn local(&self) -> io::Result<SocketAddr> {
        let address = self.socket.local_addr()?;
        address.as_socket().ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    /// Asks the server for its identity once more; `timeout` is [`slowed`].
    pub fn ask(&mut self, timeout: Duration) -> Outcome {
        self.exchange(timeout).map_or_else(|error| outcome(&error), Outcome::Answered)
    }

    fn exchange(&mut self, timeout: Duration) -> io::Result<Answer> {
        let deadline = Instant::now() + slowed(timeout);
        match self.socket.write(b"?") {
            // A UDP packet that the output hook rejects or drops fails here with EPERM; which of
            // the two it was shows in whether an ICMP error arrived.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            other => drop(other?),
        }
        let mut text = Vec::new();
        let mut buffer = [0; 256];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            self.socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            let read = match self.socket.read(&mut buffer) {
                // A read with a time-out is not restarted after a signal.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read?,
            };
            text.extend_from_slice(&buffer[..read]);
            if text.ends_with(b"\n") {
                return Answer::parse(&text, self.local()?);
            }
            if read == 0 || self.protocol == Protocol::Udp {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

fn outcome(error: &io::Error) -> Outcome {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Outcome::Refused,
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Outcome::Silent,
        other => Outcome::Failed(other),
    }
}
