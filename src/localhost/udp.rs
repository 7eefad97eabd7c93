//! UDP, which upstream refuses: opt-in.
//!
//! Each client has a socket of its own towards its endpoint, so that answers find their way back, and
//! loses it after silence, or when its endpoint no longer serves. What comes when all sockets are in use
//! is dropped and counted, as a full table of connections would.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use socket2::SockRef;
use tokio::net::UdpSocket;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{AbortHandle, JoinHandle, JoinSet};
use tracing::debug;

use super::Shared;
use crate::model::Family;
use crate::topology::Backend;

/// Silence after which a client is forgotten: what conntrack gives a stream.
const IDLE: Duration = Duration::from_secs(120);
/// Longest datagram.
const DATAGRAM: usize = 65_535;

/// One client's socket.
#[derive(Debug)]
struct Session {
    socket: UdpSocket,
    backend: Backend,
    last: Mutex<Instant>,
    _place: OwnedSemaphorePermit,
}

impl Session {
    fn touch(&self) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn idle(&self) -> Duration {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

pub fn start(shared: Arc<Shared>) -> io::Result<JoinHandle<Infallible>> {
    let socket = std::net::UdpSocket::bind(shared.place.address())?;
    socket.set_nonblocking(true)?;
    Ok(tokio::spawn(serve(Arc::new(UdpSocket::from_std(socket)?), shared)))
}

async fn serve(socket: Arc<UdpSocket>, shared: Arc<Shared>) -> Infallible {
    let mut sessions: HashMap<SocketAddr, (Arc<Session>, AbortHandle)> = HashMap::new();
    // Ends with this task: nobody else could answer the clients.
    let mut answering: JoinSet<SocketAddr> = JoinSet::new();
    let mut datagram = vec![0; DATAGRAM];
    loop {
        let (length, client) = tokio::select! {
            received = socket.recv_from(&mut datagram) => match received {
                Ok(received) => received,
                Err(reason) => {
                    debug!(place = %shared.place, %reason, "Receive failed");
                    shared.failed("accept");
                    continue;
                }
            },
            Some(ended) = answering.join_next() => {
                if let Ok(client) = ended
                    && sessions.get(&client).is_some_and(|(_, answering)| answering.is_finished())
                {
                    sessions.remove(&client);
                }
                continue;
            }
        };
        let known = sessions.get(&client).map(|(session, _)| session.clone());
        let session = match known.filter(|known| shared.picker().serves(known.backend)) {
            Some(session) => session,
            None => {
                if let Some((_, answering)) = sessions.remove(&client) {
                    answering.abort();
                }
                let Some(session) = open(&shared) else { continue };
                let handle = answering.spawn(answer(socket.clone(), session.clone(), client));
                sessions.insert(client, (session.clone(), handle));
                session
            }
        };
        session.touch();
        // At once or not at all: one slow endpoint holds up no other client. (A new socket's readiness
        // is not known yet, so the runtime is not asked.) A refusal of an earlier datagram may come out
        // here; the client hears of none.
        let _ = SockRef::from(&session.socket).send(&datagram[..length]);
    }
}

fn open(shared: &Shared) -> Option<Arc<Session>> {
    let Ok(place) = shared.bounds.clients.clone().try_acquire_owned() else {
        shared.failed("limit");
        return None;
    };
    let backend = *shared.candidates().first()?;
    match connect(shared.place.family, backend) {
        Ok(socket) => {
            shared.chosen(backend);
            let last = Mutex::new(Instant::now());
            Some(Arc::new(Session { socket, backend, last, _place: place }))
        }
        Err(reason) => {
            debug!(place = %shared.place, %reason, "Failed to open a socket for a client");
            shared.failed("dial");
            None
        }
    }
}

fn connect(family: Family, backend: Backend) -> io::Result<UdpSocket> {
    let any: IpAddr = match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = std::net::UdpSocket::bind(SocketAddr::new(any, 0))?;
    socket.connect(SocketAddr::new(backend.address, backend.port))?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

/// Takes an endpoint's answers to its client until neither has said anything for long.
async fn answer(listener: Arc<UdpSocket>, session: Arc<Session>, client: SocketAddr) -> SocketAddr {
    loop {
        let left = IDLE.saturating_sub(session.idle());
        if left.is_zero() {
            return client;
        }
        let Ok(ready) = tokio::time::timeout(left, session.socket.readable()).await else {
            continue;
        };
        if ready.is_err() {
            return client;
        }
        // Only while there is something to read: idle clients cost no buffer.
        let mut datagram = vec![0; DATAGRAM];
        match session.socket.try_recv(&mut datagram) {
            Ok(length) => {
                session.touch();
                let _ = listener.send_to(&datagram[..length], client).await;
            }
            Err(reason) if reason.kind() == io::ErrorKind::WouldBlock => {}
            // The endpoint refused: it may be back for the next datagram.
            Err(_) => {}
        }
    }
}
