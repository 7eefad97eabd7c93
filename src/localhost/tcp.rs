//! TCP: a connection from a client is a connection to an endpoint.
//!
//! Each side's end of stream, reset and slowness is the other's: the end is passed on direction by
//! direction, a reset resets, and no more than a buffer is read ahead of a peer that does not read.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use super::BUFFER;
use super::Shared;
use crate::http_server::{self, Wildcard};

/// How long connecting to one endpoint may take (KEP-6032).
const DIAL: Duration = Duration::from_secs(5);
/// Silence after which a peer is asked whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Pause after a failed accept: without file descriptors the next one fails too.
const PAUSE: Duration = Duration::from_millis(100);

pub fn start(shared: Arc<Shared>) -> io::Result<JoinHandle<Infallible>> {
    let listener = http_server::listen(shared.place.address(), Wildcard::OneFamily)?;
    Ok(tokio::spawn(accept(listener, shared)))
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) -> Infallible {
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                // Only now: a listener without clients takes nobody's place.
                let place = place(&shared).await;
                let shared = shared.clone();
                tokio::spawn(async move {
                    let open = shared.metrics.localhost.opened(shared.place.family);
                    serve(client, &shared).await;
                    drop((open, place));
                });
            }
            Err(reason) => {
                debug!(place = %shared.place, %reason, "Accept failed");
                shared.failed("accept");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Waits until one more connection may be served; meanwhile the next clients wait in the listener's
/// queue.
async fn place(shared: &Shared) -> OwnedSemaphorePermit {
    let places = &shared.bounds.connections;
    if let Ok(place) = places.clone().try_acquire_owned() {
        return place;
    }
    warn!(place = %shared.place, "Too many connections to NodePorts on localhost: clients wait");
    shared.failed("limit");
    places.clone().acquire_owned().await.expect("never closed")
}

async fn serve(mut client: TcpStream, shared: &Shared) {
    let Some(mut endpoint) = dial(shared).await else {
        shared.failed("dial");
        reset(&client);
        return;
    };
    for stream in [&client, &endpoint] {
        // Without them the connection works as well.
        let _ = stream.set_nodelay(true);
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
        let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive);
    }
    if copy_bidirectional_with_sizes(&mut client, &mut endpoint, BUFFER, BUFFER).await.is_err() {
        reset(&client);
        reset(&endpoint);
    }
}

/// The first endpoint that takes the connection.
async fn dial(shared: &Shared) -> Option<TcpStream> {
    for backend in shared.candidates() {
        let to = SocketAddr::new(backend.address, backend.port);
        match tokio::time::timeout(DIAL, TcpStream::connect(to)).await {
            Ok(Ok(stream)) => {
                shared.chosen(backend);
                return Some(stream);
            }
            Ok(Err(reason)) => {
                debug!(place = %shared.place, endpoint = %to, %reason, "Dial failed")
            }
            Err(_) => debug!(place = %shared.place, endpoint = %to, "Dial timed out"),
        }
    }
    None
}

/// Closing it resets the connection.
fn reset(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
