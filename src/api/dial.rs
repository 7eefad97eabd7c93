//! Connections to the API server: directly or through a proxy, with TLS, HTTP/2 where the server
//! speaks it.
//!
//! Place in the flow: [`super::connection`] says where to and through what; hyper dials here when it
//! needs a connection. One HTTP/2 connection carries all kinds and Events.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::client::Body;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tower::util::BoxCloneSyncService;
use tower::{BoxError, Service, ServiceExt, service_fn};

use super::proxy::{Protocol, Proxy, Route};

/// What a stream may have in flight before it is read. All kinds together stay below a connection's,
/// so that a slow one does not hold back the others.
const STREAM_WINDOW: u32 = 512 << 10;
const CONNECTION_WINDOW: u32 = 8 << 20;

/// Dials, whatever is between.
pub(super) type Connector = BoxCloneSyncService<Uri, Wire, BoxError>;

/// A byte stream to the API server or to its proxy.
trait Io: Read + Write + Connection + Send + Unpin {}
impl<T: Read + Write + Connection + Send + Unpin> Io for T {}

/// A connection of any sort, so that hyper is compiled once.
pub(super) struct Wire {
    io: Box<dyn Io>,
    /// The other end is a proxy that wants whole URLs.
    to_proxy: bool,
}

impl Wire {
    fn new(io: impl Io + 'static) -> Wire {
        Wire { io: Box::new(io), to_proxy: false }
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").field("to_proxy", &self.to_proxy).finish_non_exhaustive()
    }
}

impl Connection for Wire {
    fn connected(&self) -> Connected {
        let connected = self.io.connected();
        if self.to_proxy { connected.proxy(true) } else { connected }
    }
}

impl Read for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl Write for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, bytes)
    }
}

/// How TLS is spoken.
#[derive(Debug, Clone)]
pub(super) struct Tls {
    /// Without ALPN.
    pub(super) config: ClientConfig,
    /// `tls-server-name`.
    pub(super) server_name: Option<ServerName<'static>>,
    pub(super) http2: bool,
}

impl Tls {
    fn over<C>(&self, inner: C, http2: bool) -> HttpsConnector<C> {
        let mut config = self.config.clone();
        if http2 {
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        }
        let config = Arc::new(config);
        match &self.server_name {
            None => HttpsConnector::from((inner, config)),
            Some(name) => {
                let name = FixedServerNameResolver::new(name.clone());
                HttpsConnector::new(inner, config, false, Arc::new(name))
            }
        }
    }
}

/// When to look whether a silent connection still lives, and how long an answer may take: upstream's
/// 30 and 15 seconds unless client-go's variables say otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pings {
    pub(super) after: Duration,
    pub(super) timeout: Duration,
}

impl Default for Pings {
    fn default() -> Self {
        Pings { after: Duration::from_secs(30), timeout: Duration::from_secs(15) }
    }
}

/// The client over a connector.
pub(super) fn client(connector: Connector, pings: Pings) -> Client<Connector, Body> {
    Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .http2_keep_alive_interval((!pings.after.is_zero()).then_some(pings.after))
        .http2_keep_alive_timeout(pings.timeout)
        .http2_keep_alive_while_idle(true)
        .http2_initial_stream_window_size(STREAM_WINDOW)
        .http2_initial_connection_window_size(CONNECTION_WINDOW)
        .build(connector)
}

/// For how long a packet that asks for a connection is sent again, by the kernel after one second. Then
/// a new one goes out, which arrives as soon as there is a way again.
const CONNECT: Duration = Duration::from_secs(2);
/// What a proxy and TLS may take on top: as in Go, against those that take a connection and go no
/// further.
const HANDSHAKE: Duration = Duration::from_secs(10);

fn tcp() -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(CONNECT));
    // A watch is silent for a minute at a time; a server that vanished without a FIN or RST must be
    // noticed over HTTP/1.1 too, and when what was sent is not acknowledged.
    tcp.set_keepalive(Some(Duration::from_secs(30)));
    tcp.set_keepalive_interval(Some(Duration::from_secs(5)));
    tcp.set_keepalive_retries(Some(3));
    #[cfg(target_os = "linux")]
    tcp.set_tcp_user_timeout(Some(Duration::from_secs(30)));
    tcp
}

/// A connector to servers of one scheme by one route.
pub(super) fn connector(is_https: bool, route: &Route, tls: &Tls) -> Connector {
    let tcp = tcp();
    let way = match route {
        Route::Direct => boxed(tcp),
        Route::RefusedInCgi => {
            BoxCloneSyncService::new(service_fn(async |_: Uri| Err::<Wire, BoxError>(InCgi.into())))
        }
        Route::Through(proxy) => through(is_https, proxy, tls, tcp),
    };
    if !is_https {
        return way;
    }
    let secured = boxed(tls.over(way, tls.http2));
    BoxCloneSyncService::new(service_fn(move |server: Uri| {
        let connected = tokio::time::timeout(HANDSHAKE, secured.clone().oneshot(server));
        async {
            match connected.await {
                Ok(Err(cause)) if is_refused_handshake(cause.as_ref()) => {
                    Err(Strange(cause).into())
                }
                Ok(connected) => connected,
                Err(_) => Err(Mute.into()),
            }
        }
    }))
}

/// What a server says that has nothing in common with us.
#[derive(Debug, thiserror::Error)]
#[error(
    "the server takes no TLS that is spoken here (1.3, or 1.2 with ECDHE and AES-GCM or ChaCha20-Poly1305, \
     but no suite with CBC), or wants a client certificate"
)]
struct Strange(#[source] BoxError);

fn is_refused_handshake(error: &(dyn std::error::Error + 'static)) -> bool {
    use rustls::{AlertDescription, Error};
    if let Some(error) = error.downcast_ref::<Error>() {
        return match error {
            Error::AlertReceived(alert) => matches!(
                alert,
                AlertDescription::HandshakeFailure
                    | AlertDescription::ProtocolVersion
                    | AlertDescription::InsufficientSecurity
            ),
            error => matches!(error, Error::PeerIncompatible(_)),
        };
    }
    let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    match wrapped {
        Some(inner) => is_refused_handshake(inner),
        None => error.source().is_some_and(is_refused_handshake),
    }
}

/// A connection was taken, and then nothing came.
#[derive(Debug, thiserror::Error)]
#[error("no TLS handshake within {} s", HANDSHAKE.as_secs())]
struct Mute;

/// HTTP_PROXY is not trusted where a client could have set it.
#[derive(Debug, thiserror::Error)]
#[error("HTTP_PROXY is not used in a CGI environment: REQUEST_METHOD is set")]
struct InCgi;

/// The way through a proxy did not come about.
#[derive(Debug, thiserror::Error)]
#[error("the proxy {proxy} of {named_by} does not let through")]
struct Barred {
    proxy: Uri,
    named_by: &'static str,
    #[source]
    cause: BoxError,
}

fn through(is_https: bool, proxy: &Proxy, tls: &Tls, tcp: HttpConnector) -> Connector {
    let to_proxy = match proxy.protocol {
        // Go speaks TLS with a proxy as with the server: the same roots.
        Protocol::Https => boxed(tls.over(tcp, false)),
        Protocol::Http | Protocol::Socks => boxed(tcp),
    };
    let uri = proxy.uri.clone();
    let way = match (proxy.protocol, is_https) {
        (Protocol::Socks, _) => {
            let socks = SocksV5::new(uri, to_proxy);
            boxed(match proxy.user.clone() {
                Some((user, password)) => socks.with_auth(user, password),
                None => socks,
            })
        }
        (_, true) => {
            let tunnel = Tunnel::new(uri, to_proxy);
            boxed(match proxy.authorization() {
                Some(authorization) => tunnel.with_auth(authorization),
                None => tunnel,
            })
        }
        (_, false) => BoxCloneSyncService::new(
            to_proxy
                .map_request(move |_: Uri| uri.clone())
                .map_response(|wire| Wire { to_proxy: true, ..wire }),
        ),
    };
    let (proxy, named_by) = (proxy.uri.clone(), proxy.named_by);
    BoxCloneSyncService::new(
        way.map_err(move |cause| BoxError::from(Barred { proxy: proxy.clone(), named_by, cause })),
    )
}

fn boxed<C>(connector: C) -> Connector
where
    C: Service<Uri> + Clone + Send + Sync + 'static,
    C::Response: Io + 'static,
    C::Future: Send + 'static,
    C::Error: Into<BoxError>,
{
    BoxCloneSyncService::new(connector.map_response(Wire::new).map_err(Into::into))
}
