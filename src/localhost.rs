//! NodePorts on 127.0.0.1 and ::1 in nftables mode, by listening there (KEP-6032).
//!
//! Place in the flow: after each sync the engine's shell says what is to be served ([`Desired`]); one
//! task opens and closes listeners until they are as wanted ([`run`]), and every connection goes to an
//! endpoint that packets would be sent to as well. Level-triggered. It must not know Services, slices
//! or how an endpoint is chosen for a frontend.
//!
//! Connections are bounded in number and, by that, in memory; those of a NodePort that is gone go on, as
//! tracked ones do, but with the process they end: nobody else has their sockets.

mod pick;
mod tcp;
mod udp;

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{fmt, io};

use nix::sys::resource::{Resource, getrlimit};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tracing::{error, info};

use crate::metrics::Metrics;
use crate::model::{Family, ObjectName, PerFamily, Protocol};
use crate::program::LocalhostPort;
use crate::topology::Backend;
use pick::Picker;

/// What could not be opened is tried again after this long, or at the next change.
const RETRY: Duration = Duration::from_secs(30);

/// One address to listen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The family, whose loopback address it is.
    pub family: Family,
    pub protocol: Protocol,
    pub port: u16,
}

impl Place {
    fn address(self) -> SocketAddr {
        let ip: IpAddr = match self.family {
            Family::V4 => Ipv4Addr::LOCALHOST.into(),
            Family::V6 => Ipv6Addr::LOCALHOST.into(),
        };
        SocketAddr::new(ip, self.port)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address(), self.protocol)
    }
}

/// Everything that is to be served.
pub type Wanted = BTreeMap<Place, Arc<LocalhostPort>>;

/// What services want, kept up service by service.
#[derive(Debug)]
pub struct Desired {
    services: PerFamily<HashMap<ObjectName, Vec<Arc<LocalhostPort>>>>,
    changed: bool,
    sender: watch::Sender<Wanted>,
}

impl Desired {
    /// Nothing yet, and where the whole will be published.
    pub fn new() -> (Self, watch::Receiver<Wanted>) {
        let (sender, receiver) = watch::channel(Wanted::new());
        (Desired { services: PerFamily::default(), changed: false, sender }, receiver)
    }

    /// What a service wants in a family from now on.
    pub fn set(&mut self, family: Family, service: &ObjectName, ports: Vec<LocalhostPort>) {
        let services = &mut self.services[family];
        let known = services.get(service).map_or(&[][..], Vec::as_slice);
        if known.iter().map(|port| &**port).eq(&ports) {
            return;
        }
        self.changed = true;
        if ports.is_empty() {
            services.remove(service);
        } else {
            services.insert(service.clone(), ports.into_iter().map(Arc::new).collect());
        }
    }

    /// Publishes the whole, if anything changed.
    pub fn publish(&mut self) {
        if !std::mem::take(&mut self.changed) {
            return;
        }
        let mut wanted = Wanted::new();
        for family in Family::BOTH {
            for port in self.services[family].values().flatten() {
                let place = Place { family, protocol: port.protocol, port: port.port };
                wanted.insert(place, port.clone());
            }
        }
        self.sender.send_replace(wanted);
    }
}

/// A listener that could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {place}")]
pub struct ListenError {
    place: Place,
    #[source]
    source: io::Error,
}

/// What a listener and its connections share.
#[derive(Debug)]
struct Shared {
    place: Place,
    picker: Mutex<Picker>,
    bounds: Bounds,
    metrics: Arc<Metrics>,
    started: Instant,
}

impl Shared {
    fn picker(&self) -> MutexGuard<'_, Picker> {
        self.picker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Endpoints in the order in which a new client tries them.
    fn candidates(&self) -> Vec<Backend> {
        self.picker().candidates(self.started.elapsed(), rand::random())
    }

    fn chosen(&self, backend: Backend) {
        self.picker().chosen(backend, self.started.elapsed());
    }

    fn failed(&self, what: &'static str) {
        self.metrics.localhost.failed(self.place.family, what);
    }
}

/// A listener that is open. Its connections outlive it.
#[derive(Debug)]
struct Open {
    shared: Arc<Shared>,
    task: JoinHandle<Infallible>,
}

impl Open {
    /// Ends the task and waits until its socket is closed, so that the port is free.
    async fn close(mut self) {
        self.task.abort();
        // Cancelled is the outcome asked for; a panic was already printed.
        let _ = (&mut self.task).await;
    }
}

/// Keeps the listeners as `wanted` says, for ever.
pub async fn run(
    mut wanted: watch::Receiver<Wanted>,
    metrics: Arc<Metrics>,
    bounds: Bounds,
) -> Infallible {
    let mut open: BTreeMap<Place, Open> = BTreeMap::new();
    loop {
        let now = wanted.borrow_and_update().clone();
        // Ports are freed before any is taken.
        let gone: Vec<Place> =
            open.keys().filter(|place| !now.contains_key(place)).copied().collect();
        for place in gone {
            if let Some(listener) = open.remove(&place) {
                info!(v = 2, %place, "No longer serving a NodePort on localhost");
                listener.close().await;
            }
        }
        let mut complete = true;
        for (place, port) in &now {
            match open.get(place) {
                Some(known) => known.shared.picker().replace(port),
                None => match listen(*place, port, &bounds, &metrics) {
                    Ok(listener) => {
                        info!(v = 4, %place, "Serving a NodePort on localhost");
                        open.insert(*place, listener);
                    }
                    Err(reason) => {
                        error!(%place, reason = %reason.source, "Failed to serve a NodePort on localhost");
                        metrics.localhost.not_opened(place.family);
                        complete = false;
                    }
                },
            }
        }
        for family in Family::BOTH {
            let count = open.keys().filter(|place| place.family == family).count();
            metrics.localhost.listeners(family, count);
        }
        let changed = async {
            if wanted.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        if complete {
            changed.await;
        } else {
            let _ = tokio::time::timeout(RETRY, changed).await;
        }
    }
}

fn listen(
    place: Place,
    port: &LocalhostPort,
    bounds: &Bounds,
    metrics: &Arc<Metrics>,
) -> Result<Open, ListenError> {
    let shared = Arc::new(Shared {
        place,
        picker: Mutex::new(Picker::new(port)),
        bounds: bounds.clone(),
        metrics: metrics.clone(),
        started: Instant::now(),
    });
    let opened = match place.protocol {
        Protocol::Udp => udp::start(shared.clone()),
        _ => tcp::start(shared.clone()),
    };
    let task = opened.map_err(|source| ListenError { place, source })?;
    Ok(Open { shared, task })
}

/// Most TCP connections, each of which has two buffers of [`BUFFER`] bytes and two sockets.
const CONNECTIONS: usize = 2048;
/// Most UDP clients, each of which has a socket.
const CLIENTS: usize = 1024;
/// Bytes on their way in one direction of a TCP connection.
pub const BUFFER: usize = 4096;

/// Places for clients.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// For TCP.
    pub connections: Arc<Semaphore>,
    /// For UDP.
    pub clients: Arc<Semaphore>,
}

impl Bounds {
    /// As many as leave half of the process's file descriptors to the rest of it.
    pub fn of_process() -> Self {
        let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
        let files = usize::try_from(files).unwrap_or(usize::MAX);
        Self::new(CONNECTIONS.min(files / 8), CLIENTS.min(files / 4))
    }

    /// These many.
    pub fn new(connections: usize, clients: usize) -> Self {
        let places = |count: usize| Arc::new(Semaphore::new(count.max(1)));
        Bounds { connections: places(connections), clients: places(clients) }
    }
}
