//! Plain HTTP/1.1 servers with bounds: what health, health-check node ports and metrics listen with.
//!
//! Place in the flow: [`crate::health`] and [`crate::metrics`] bring a router; this module binds,
//! accepts, limits and hands over. It must not know what is served.
//!
//! The bounds: a number of connections at a time, a size of the request's head, a short time until it
//! has arrived, and one for the whole exchange. Every connection carries one request, so that nobody
//! holds a place by keeping a connection open; who says nothing loses it to the next ([`Places`]).

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::{Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::future::{AbortHandle, Abortable};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::ServiceExt;
use tracing::{debug, error, warn};

/// Pause before a busy port is tried again (B-240).
pub const BIND_RETRY: Duration = Duration::from_secs(5);

/// Pause after a failed `accept` (out of descriptors, mostly), so that it does not spin.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);

/// Connections the kernel may hold for us.
const BACKLOG: i32 = 1024;

/// What listeners put up with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections served at a time.
    pub connections: usize,
    /// Bytes of the request line and headers; at least 8192, which is hyper's own minimum.
    pub head_bytes: usize,
    /// Time from accept to the last byte of the head.
    pub head_time: Duration,
    /// Time from accept to the last byte of the answer.
    pub time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 256,
            head_bytes: 16 * 1024,
            head_time: Duration::from_secs(2),
            time: Duration::from_secs(10),
        }
    }
}

/// Which sockets an address means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wildcard {
    /// `0.0.0.0` and `[::]` both mean every address of both families (B-239).
    DualStack,
    /// `0.0.0.0` means IPv4 only and `[::]` IPv6 only (B-241).
    OneFamily,
}

/// A listener could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("listening on {address} for {server}")]
pub struct BindError {
    /// What was to be served: `healthz`, `metrics`.
    pub server: &'static str,
    /// The address that was asked for.
    pub address: SocketAddr,
    #[source]
    pub source: io::Error,
}

/// Opens a listening socket once. Must be called inside a tokio runtime.
pub fn listen(address: SocketAddr, wildcard: Wildcard) -> io::Result<TcpListener> {
    if wildcard == Wildcard::DualStack && address.ip().is_unspecified() {
        let both = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), address.port());
        return match open(both, false) {
            // A kernel without IPv6 (EAFNOSUPPORT) or with it disabled (EADDRNOTAVAIL).
            Err(e) if is_without_ipv6(&e) && address.is_ipv4() => open(address, false),
            outcome => outcome,
        };
    }
    open(address, true)
}

fn is_without_ipv6(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

fn open(address: SocketAddr, only_v6: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    // Connections in TIME_WAIT of the process before must not keep the port.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Opens a listening socket on both families' wildcard or one address.
///
/// A failure is logged and tried again every [`BIND_RETRY`], for ever; with `hard_fail` the first
/// one is returned, for the caller to post its Event and end the process (B-240).
pub async fn bind(
    server: &'static str,
    address: SocketAddr,
    hard_fail: bool,
) -> Result<TcpListener, BindError> {
    loop {
        match listen(address, Wildcard::DualStack) {
            Ok(listener) => return Ok(listener),
            Err(source) if hard_fail => return Err(BindError { server, address, source }),
            Err(reason) => error!(server, %address, %reason, "Cannot listen, trying again"),
        }
        tokio::time::sleep(BIND_RETRY).await;
    }
}

/// Serves a router for ever; dropping the future closes the listener, exchanges under way end within
/// their time.
pub async fn serve(listener: TcpListener, router: Router, places: Places) -> Infallible {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                // The end of a long answer would wait 40 ms for the acknowledgement of what is before it.
                let _ = stream.set_nodelay(true);
                let (router, limits) = (router.clone(), places.limits);
                let served = |place| async move {
                    let exchange = exchange(stream, router, limits, place);
                    match tokio::time::timeout(limits.time, exchange).await {
                        Ok(Ok(())) => {}
                        Ok(Err(reason)) => debug!(%peer, %reason, "HTTP exchange failed"),
                        Err(_) => debug!(%peer, "HTTP exchange took too long"),
                    }
                };
                places.serve(served).await;
            }
            Err(reason) => {
                warn!(%reason, "Cannot accept connections");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

async fn exchange(
    stream: TcpStream,
    router: Router,
    limits: Limits,
    place: Arc<Place>,
) -> hyper::Result<()> {
    let service = router.map_request(move |request: Request<Incoming>| {
        place.answer();
        request
    });
    http1::Builder::new()
        .keep_alive(false)
        .title_case_headers(true)
        .max_buf_size(limits.head_bytes)
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_time)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
        .await
}

/// A plain-text answer in the form of Go's `http.Error`.
pub fn text(status: StatusCode, body: impl Into<String>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (status, headers, body.into()).into_response()
}

/// The answer to unknown paths, as Go's mux gives it.
pub async fn not_found() -> Response {
    text(StatusCode::NOT_FOUND, "404 page not found\n")
}

// Who is served, and who makes room when everybody's place is taken.

/// How long a connection may be silent even if others want its place.
const FOR_A_REQUEST: Duration = Duration::from_millis(50);

/// How long an answer may take even if others want its place.
const FOR_AN_ANSWER: Duration = Duration::from_secs(1);

/// The places of one listener, or of several that share them.
#[derive(Debug, Clone)]
pub struct Places {
    limits: Limits,
    free: Arc<Semaphore>,
    taken: Arc<Mutex<Taken>>,
}

/// Connections in the order in which they came.
#[derive(Debug, Default)]
struct Taken {
    next: u64,
    /// Whose request has not arrived.
    silent: BTreeMap<u64, Connection>,
    /// Who is being answered.
    answering: BTreeMap<u64, Connection>,
}

#[derive(Debug)]
struct Connection {
    accepted: Instant,
    task: AbortHandle,
}

/// How a newcomer gets a place.
#[derive(Debug)]
enum Room {
    /// This connection goes.
    Of(AbortHandle),
    /// Nobody has to go before then.
    Later(Duration),
}

/// One connection's place, free again when this is dropped.
#[derive(Debug)]
struct Place {
    number: u64,
    taken: Arc<Mutex<Taken>>,
    _permit: OwnedSemaphorePermit,
}

impl Places {
    /// As many as the limits say, all free.
    pub fn new(limits: Limits) -> Self {
        let free = Arc::new(Semaphore::new(limits.connections));
        Places { limits, free, taken: Arc::default() }
    }

    /// Serves a connection in a task of its own. Returns once it has a place.
    async fn serve<F>(&self, connection: impl FnOnce(Arc<Place>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let permit = self.permit().await;
        let (task, registration) = AbortHandle::new_pair();
        let number = lock(&self.taken).silent(task, Instant::now());
        let place = Place { number, taken: Arc::clone(&self.taken), _permit: permit };
        tokio::spawn(Abortable::new(connection(Arc::new(place)), registration));
    }

    async fn permit(&self) -> OwnedSemaphorePermit {
        if let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() {
            return permit;
        }
        let mut permit = std::pin::pin!(Arc::clone(&self.free).acquire_owned());
        loop {
            let room = lock(&self.taken).make_room(Instant::now());
            let timeout = match room {
                Room::Of(task) => {
                    task.abort();
                    FOR_A_REQUEST
                }
                Room::Later(wait) => wait,
            };
            if let Ok(permit) = tokio::time::timeout(timeout, &mut permit).await {
                return permit.expect("the semaphore is never closed");
            }
        }
    }
}

impl Taken {
    /// Notes a newcomer and returns its number.
    fn silent(&mut self, task: AbortHandle, accepted: Instant) -> u64 {
        let number = self.next;
        self.next += 1;
        self.silent.insert(number, Connection { accepted, task });
        number
    }

    /// Takes out who has to go.
    fn make_room(&mut self, now: Instant) -> Room {
        let (oldest, time) = match self.silent.first_entry() {
            Some(oldest) => (oldest, FOR_A_REQUEST),
            None => match self.answering.first_entry() {
                Some(oldest) => (oldest, FOR_AN_ANSWER),
                // All have been told to go.
                None => return Room::Later(FOR_A_REQUEST),
            },
        };
        let left = time.saturating_sub(now.saturating_duration_since(oldest.get().accepted));
        if left.is_zero() { Room::Of(oldest.remove().task) } else { Room::Later(left) }
    }
}

impl Place {
    /// The request has arrived.
    fn answer(&self) {
        let mut taken = lock(&self.taken);
        if let Some(connection) = taken.silent.remove(&self.number) {
            taken.answering.insert(self.number, connection);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = lock(&self.taken);
        taken.silent.remove(&self.number);
        taken.answering.remove(&self.number);
    }
}

fn lock(taken: &Mutex<Taken>) -> MutexGuard<'_, Taken> {
    // Nothing can panic half-way through a change, so it is whole even if poisoned.
    taken.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_silent_one_goes_first_and_then_the_oldest() {
        let (mut taken, start) = (Taken::default(), Instant::now());
        let handles = [(); 4].map(|()| AbortHandle::new_pair().0);
        for (handle, age) in handles.iter().zip(0..) {
            taken.silent(handle.clone(), start + Duration::from_millis(age));
        }
        for number in [0, 2] {
            let connection = taken.silent.remove(&number).expect("noted");
            taken.answering.insert(number, connection);
        }
        let cases = [(51, 1), (53, 3), (1_000, 0), (1_002, 2)];
        for (milliseconds, expected) in cases {
            let due = start + Duration::from_millis(milliseconds);
            let early = taken.make_room(due - Duration::from_millis(1));
            let Room::Later(left) = early else { panic!("{early:?} before {milliseconds} ms") };
            assert_eq!(left, Duration::from_millis(1), "{expected}");
            let room = taken.make_room(due);
            let Room::Of(task) = room else { panic!("{room:?} at {milliseconds} ms") };
            task.abort();
            assert!(handles[expected].is_aborted(), "{expected}");
        }
    }
}
