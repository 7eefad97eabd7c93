//! One connection to the API server, shared by watches and Events.
//!
//! Place in the flow: [`super::watch`], [`super::node`] and [`super::events`] send through it. It
//! limits the rate, adds headers, measures, and renews credentials; it decides nothing about
//! retries.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use kube::client::Body;
use tokio::time::error::Elapsed;
use tower::{BoxError, ServiceExt};
use tracing::{info, warn};

use super::access::{ConnectionError, Files};
use super::connection::{Connected, Options, Transport};

/// How long an answer may take to begin, and each part of a body to follow.
const PATIENCE: Duration = Duration::from_secs(60);

/// For how long one request looks for a server that was away, and the others wait for what it finds.
const DIALLING: Duration = Duration::from_secs(3);

/// How often credentials are looked for in their files, if there are requests.
const READ_EVERY: Duration = Duration::from_secs(10);

/// What is known of one request after its answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Exchange {
    /// HTTP method: the label `verb` of duration and sizes, `method` of the counter.
    pub method: Method,
    /// HTTP status; `None` when there was no answer (label `<error>` upstream).
    pub code: Option<u16>,
    /// `host:port` of the API server.
    pub host: String,
    /// From sending to the answer's head, for a body read as a whole to its end.
    pub duration: Duration,
    /// How long the rate limit held the request back.
    pub throttled: Duration,
    /// Bytes of the request's body.
    pub request_bytes: usize,
    /// Bytes of the answer's body; `None` for streams.
    pub response_bytes: Option<usize>,
}

/// Called once per request.
pub type Observe = Arc<dyn Fn(&Exchange) + Send + Sync>;

/// Why a request did not bring an answer. Refusals by status are answers.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error("{method} {path} failed")]
    Send {
        method: Method,
        /// Path without query.
        path: String,
        #[source]
        source: BoxError,
    },
    #[error("the answer to {method} {path} broke off")]
    Receive {
        method: Method,
        /// Path without query.
        path: String,
        #[source]
        source: hyper::Error,
    },
    #[error("no answer to {method} {path} in time")]
    TooSlow {
        method: Method,
        /// Path without query.
        path: String,
    },
}

impl RequestError {
    /// The request reached a server, as far as is known.
    pub(super) fn was_sent(&self) -> bool {
        match self {
            RequestError::Send { source, .. } => broke_after_connecting(source.as_ref()),
            RequestError::Receive { .. } | RequestError::TooSlow { .. } => true,
        }
    }

    /// Nobody took the connection: neither server nor proxy.
    pub(super) fn is_absence(&self) -> bool {
        match self {
            RequestError::Send { source, .. } => {
                let before_dialling = source.is::<ConnectionError>();
                !before_dialling && !self.was_sent() && !is_tls_failure(source.as_ref())
            }
            RequestError::Receive { .. } | RequestError::TooSlow { .. } => false,
        }
    }
}

fn broke_after_connecting(error: &(dyn std::error::Error + 'static)) -> bool {
    match error.downcast_ref::<hyper_util::client::legacy::Error>() {
        Some(error) => !error.is_connect(),
        None => error.source().is_some_and(broke_after_connecting),
    }
}

/// A client of the API server. Clones share everything.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    options: Options,
    accept: HeaderValue,
    user_agent: HeaderValue,
    observe: Observe,
    bucket: Mutex<TokenBucket>,
    connection: Mutex<Connection>,
    renewing: tokio::sync::Mutex<()>,
    /// Whether the last that was heard of the server is that it is not there.
    absent: AtomicBool,
    dialling: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Connection {
    transport: Transport,
    host: String,
    authorization: Option<HeaderValue>,
    files: Arc<Files>,
    /// When the files were last looked at.
    read_at: Instant,
    /// Counts renewals, so that requests that fail together renew once.
    generation: u64,
    /// See [`Connected`].
    awaits_plugin: bool,
}

impl Connection {
    fn new(connected: Connected, generation: u64) -> Connection {
        let Connected { transport, host, authorization, files, awaits_plugin } = connected;
        let (files, read_at) = (Arc::new(files), Instant::now());
        Connection { transport, host, authorization, files, read_at, generation, awaits_plugin }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("options", &self.0.options).finish_non_exhaustive()
    }
}

/// `User-Agent` in upstream's shape: `kube-proxy/v1.37.0 (linux/amd64) kubernetes/<commit>`.
pub fn user_agent(version: &str, commit: &str) -> String {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("kube-proxy/{version} (linux/{arch}) kubernetes/{commit}")
}

/// A header's value from configuration, in which only visible characters make sense.
fn header(text: &str) -> HeaderValue {
    let visible: String = text.chars().filter(|c| (' '..='~').contains(c)).collect();
    HeaderValue::from_str(&visible).expect("visible ASCII is a valid header value")
}

impl Client {
    /// Reads configuration and credentials; opens no connection and runs no exec plugin yet.
    /// Blocks for the files.
    pub fn new(options: Options, observe: Observe) -> Result<Client, ConnectionError> {
        if options.kubeconfig.is_none() {
            let master = options.master.as_deref();
            info!(master, "no kubeconfig given: using the master alone or the in-cluster one");
        }
        let connection = Connection::new(options.prepare()?, 0);
        Ok(Client(Arc::new(Inner {
            accept: header(&options.accept()),
            user_agent: header(&options.user_agent),
            bucket: Mutex::new(TokenBucket::new(options.qps, options.burst, Instant::now())),
            connection: Mutex::new(connection),
            renewing: tokio::sync::Mutex::new(()),
            absent: AtomicBool::new(false),
            dialling: tokio::sync::Mutex::new(()),
            observe,
            options,
        })))
    }

    /// Sends a GET and returns as soon as the answer begins.
    pub(super) async fn stream(&self, uri: &str) -> Result<Response<Incoming>, RequestError> {
        let request = Request::get(uri).body(Bytes::new());
        let (exchange, answer) = self.exchange(request.expect("paths are built here")).await;
        (self.0.observe)(&exchange);
        answer
    }

    /// Sends a GET and reads the whole answer.
    pub(super) async fn get(&self, uri: &str) -> Result<Response<Bytes>, RequestError> {
        let request = Request::get(uri).body(Bytes::new());
        self.call(request.expect("paths are built here")).await
    }

    /// Sends an object.
    pub(super) async fn submit(
        &self,
        method: Method,
        uri: &str,
        content_type: &'static str,
        body: Vec<u8>,
    ) -> Result<Response<Bytes>, RequestError> {
        let request = Request::builder().method(method).uri(uri).header(CONTENT_TYPE, content_type);
        self.call(request.body(Bytes::from(body)).expect("paths are built here")).await
    }

    async fn call(&self, request: Request<Bytes>) -> Result<Response<Bytes>, RequestError> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let begun = Instant::now();
        let (mut exchange, answer) = self.exchange(request).await;
        let answer = match answer {
            Ok(answer) => collect(answer, method, path).await,
            Err(error) => Err(error),
        };
        exchange.duration = begun.elapsed().saturating_sub(exchange.throttled);
        exchange.response_bytes = answer.as_ref().ok().map(|answer| answer.body().len());
        (self.0.observe)(&exchange);
        answer
    }

    async fn exchange(
        &self,
        mut request: Request<Bytes>,
    ) -> (Exchange, Result<Response<Incoming>, RequestError>) {
        let throttled = self.lock(&self.0.bucket).take(Instant::now());
        tokio::time::sleep(throttled).await;
        self.follow_files().await;
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let request_bytes = request.body().len();
        request.headers_mut().insert(ACCEPT, self.0.accept.clone());
        request.headers_mut().insert(USER_AGENT, self.0.user_agent.clone());
        let plugin = self.run_plugin().await;
        let connection = self.lock(&self.0.connection).clone();
        if let Some(authorization) = connection.authorization {
            request.headers_mut().insert(AUTHORIZATION, authorization);
        }
        let dialling = self.dialling().await;
        let begun = Instant::now();
        let answer = match plugin {
            Ok(()) => self.send(connection.transport, request, dialling).await,
            Err(failed) => Ok(Err(failed.into())),
        };
        let answer = match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(source)) => Err(RequestError::Send { method: method.clone(), path, source }),
            Err(_) => Err(RequestError::TooSlow { method: method.clone(), path }),
        };
        let is_absent = answer.as_ref().is_err_and(RequestError::is_absence);
        self.0.absent.store(is_absent, Ordering::Relaxed);
        if wants_renewal(&answer) {
            self.renew(connection.generation).await;
        }
        let exchange = Exchange {
            method,
            code: answer.as_ref().ok().map(|answer| answer.status().as_u16()),
            host: connection.host,
            duration: begun.elapsed(),
            throttled,
            request_bytes,
            response_bytes: None,
        };
        (exchange, answer)
    }

    async fn send(
        &self,
        transport: Transport,
        request: Request<Bytes>,
        dialling: Option<tokio::sync::MutexGuard<'_, ()>>,
    ) -> Result<Result<Response<Incoming>, BoxError>, Elapsed> {
        let mut answer = std::pin::pin!(transport.oneshot(request.map(Body::from)));
        if let Some(guard) = dialling {
            let answered = tokio::time::timeout(DIALLING, &mut answer).await;
            drop(guard);
            if answered.is_ok() {
                return answered;
            }
        }
        tokio::time::timeout(PATIENCE, answer).await
    }

    /// While the server is away one request at a time looks for it, and the others use the connection
    /// that it finds: many nodes come back at once.
    async fn dialling(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        let is_absent = || self.0.absent.load(Ordering::Relaxed);
        if !is_absent() {
            return None;
        }
        let guard = self.0.dialling.lock().await;
        is_absent().then_some(guard)
    }

    /// Looks now and then whether token, certificates or keys were replaced, so that no request is
    /// refused for it. Files may be slow: not on this thread.
    async fn follow_files(&self) {
        let (files, generation) = {
            let mut connection = self.lock(&self.0.connection);
            if connection.files.is_empty() || connection.read_at.elapsed() < READ_EVERY {
                return;
            }
            connection.read_at = Instant::now();
            (Arc::clone(&connection.files), connection.generation)
        };
        let look = move || (files.authorization(), files.have_changed());
        let look = tokio::task::spawn_blocking(look).await;
        let (authorization, changed) = look.expect("reading files does not panic");
        if changed {
            return self.renew(generation).await;
        }
        let mut connection = self.lock(&self.0.connection);
        // What cannot be read now keeps its last value, as in client-go.
        if authorization.is_some() && connection.generation == generation {
            connection.authorization = authorization;
        }
    }

    /// Runs the exec plugin unless it brought credentials before. Whoever asks meanwhile waits.
    async fn run_plugin(&self) -> Result<(), ConnectionError> {
        let (awaits_plugin, generation) = {
            let connection = self.lock(&self.0.connection);
            (connection.awaits_plugin, connection.generation)
        };
        if awaits_plugin { self.reconnect(generation).await } else { Ok(()) }
    }

    async fn renew(&self, generation: u64) {
        if let Err(error) = self.reconnect(generation).await {
            let cause = &error as &dyn std::error::Error;
            warn!(error = cause, "cannot read the API credentials again, keeping the old ones");
        }
    }

    /// Reads configuration and credentials again, unless another request did so since.
    async fn reconnect(&self, generation: u64) -> Result<(), ConnectionError> {
        let _one_at_a_time = self.0.renewing.lock().await;
        if self.lock(&self.0.connection).generation != generation {
            return Ok(());
        }
        let inner = Arc::clone(&self.0);
        let built = tokio::task::spawn_blocking(move || inner.options.connect()).await;
        let connected = built.expect("reading credentials does not panic")?;
        info!(host = connected.host, "read the API credentials again");
        *self.lock(&self.0.connection) = Connection::new(connected, generation + 1);
        Ok(())
    }

    fn lock<'a, T>(&self, mutex: &'a Mutex<T>) -> std::sync::MutexGuard<'a, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether new credentials may help: the server does not know us any more (the token was rotated), or
/// we do not know the server (the CA was). In TLS 1.3 a server refuses our certificate only after the
/// handshake, by closing the connection.
fn wants_renewal(answer: &Result<Response<Incoming>, RequestError>) -> bool {
    match answer {
        Ok(answer) => answer.status() == StatusCode::UNAUTHORIZED,
        Err(RequestError::Send { source, .. }) => {
            is_tls_failure(source.as_ref()) || broke_after_connecting(source.as_ref())
        }
        Err(_) => false,
    }
}

/// A failed handshake arrives as an I/O error of kind `InvalidData`, perhaps within another.
fn is_tls_failure(error: &(dyn std::error::Error + 'static)) -> bool {
    match error.downcast_ref::<io::Error>() {
        Some(error) if error.kind() == io::ErrorKind::InvalidData => true,
        // `source` of an I/O error leaves out the error that it wraps.
        Some(error) => error.get_ref().is_some_and(|inner| is_tls_failure(inner)),
        None => error.source().is_some_and(is_tls_failure),
    }
}

/// Reads a whole body.
pub(super) async fn collect(
    answer: Response<Incoming>,
    method: Method,
    path: String,
) -> Result<Response<Bytes>, RequestError> {
    let (head, mut body) = answer.into_parts();
    let mut bytes = bytes::BytesMut::new();
    loop {
        match tokio::time::timeout(PATIENCE, body.frame()).await {
            Ok(None) => return Ok(Response::from_parts(head, bytes.freeze())),
            Ok(Some(Ok(frame))) => {
                bytes.extend_from_slice(frame.data_ref().map_or(&[], |data| &data[..]));
            }
            Ok(Some(Err(source))) => return Err(RequestError::Receive { method, path, source }),
            Err(_) => return Err(RequestError::TooSlow { method, path }),
        }
    }
}

// Client-side limit of requests: `clientConnection.qps` and `.burst`.

/// A token bucket. Tokens may be borrowed: every request gets its turn, in the order of asking.
#[derive(Debug)]
pub(super) struct TokenBucket {
    /// Tokens per second; `None` means unlimited.
    rate: Option<f64>,
    burst: f64,
    tokens: f64,
    updated: Instant,
}

impl TokenBucket {
    /// A full bucket. `qps` in requests per second: 0 stands for upstream's 5, a negative number for
    /// no limit. `burst` 0 stands for upstream's 10 (section 10.5).
    pub(super) fn new(qps: f32, burst: i32, now: Instant) -> Self {
        let rate = match qps {
            qps if qps < 0.0 => None,
            qps if qps > 0.0 => Some(f64::from(qps)),
            _ => Some(5.0),
        };
        let burst = if burst > 0 { f64::from(burst) } else { 10.0 };
        TokenBucket { rate, burst, tokens: burst, updated: now }
    }

    /// Takes one token and says how long to wait before using it.
    pub(super) fn take(&mut self, now: Instant) -> Duration {
        let Some(rate) = self.rate else { return Duration::ZERO };
        let elapsed = now.saturating_duration_since(self.updated).as_secs_f64();
        self.updated = now;
        self.tokens = (self.tokens + elapsed * rate).min(self.burst) - 1.0;
        if self.tokens >= 0.0 {
            Duration::ZERO
        } else {
            Duration::from_secs_f64(-self.tokens / rate)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits, in milliseconds, of requests made at the given milliseconds.
    fn waits(qps: f32, burst: i32, at: &[u64]) -> Vec<u128> {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(qps, burst, start);
        at.iter().map(|&ms| bucket.take(start + Duration::from_millis(ms)).as_millis()).collect()
    }

    #[test]
    fn requests_beyond_the_burst_wait_their_turn() {
        let cases: [(&str, Vec<u128>, Vec<u128>); 6] = [
            ("a burst is free", waits(5.0, 2, &[0, 0]), vec![0, 0]),
            ("then one every 1/qps", waits(5.0, 2, &[0, 0, 0, 0]), vec![0, 0, 200, 400]),
            ("time refills", waits(5.0, 2, &[0, 0, 200]), vec![0, 0, 0]),
            ("but never above the burst", waits(5.0, 1, &[60_000, 60_000]), vec![0, 200]),
            ("negative means unlimited", waits(-1.0, 1, &[0, 0, 0]), vec![0, 0, 0]),
            ("zero means the defaults", waits(0.0, 0, &[0; 11]), [vec![0; 10], vec![200]].concat()),
        ];
        for (name, got, want) in cases {
            assert_eq!(got, want, "{name}");
        }
    }
}
