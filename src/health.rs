//! Health of the proxy, and who may ask.
//!
//! Place in the flow: the engine's loop reports requests and syncs, the source's loop reports the
//! Node; kubelet, load balancers and cloud controllers ask over HTTP. [`ProxyHealth`] decides and is
//! pure; [`Health`] is the same behind a lock and with a clock, shared between those who report and
//! the servers in [`serve`] and [`service`]. Nothing here knows rules or Services' endpoints.

pub mod service;
mod state;

use std::convert::Infallible;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use jiff::Timestamp;
use tokio::net::TcpListener;

use crate::http_server::{self, Limits, Places, not_found};
use crate::metrics::Metrics;
use crate::model::{Family, Node};

pub use state::Report;
pub use state::{FamilyHealth, HealthStatus, Moment, ProxyHealth};

/// For how long the worker has been at one piece of work without an end.
pub type Busy = Arc<dyn Fn() -> Option<Duration> + Send + Sync>;

/// A clock: the time now.
pub type Clock = Arc<dyn Fn() -> Moment + Send + Sync>;

/// A shared [`ProxyHealth`] that stamps what it is told with the time.
#[derive(Clone)]
pub struct Health {
    state: Arc<Mutex<ProxyHealth>>,
    clock: Clock,
    busy: Busy,
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health").field("state", &self.state).finish_non_exhaustive()
    }
}

impl Health {
    /// Shares a state, with the system's clocks.
    pub fn new(state: ProxyHealth) -> Self {
        let started = Instant::now();
        let now = move || Moment { elapsed: started.elapsed(), wall: Timestamp::now() };
        Health::with_clock(state, Arc::new(now))
    }

    /// Shares a state, with a clock of the caller's.
    pub fn with_clock(state: ProxyHealth, clock: Clock) -> Self {
        Health { state: Arc::new(Mutex::new(state)), clock, busy: Arc::new(|| None) }
    }

    /// The same, which also asks whether the worker hangs: it tells of its work only after it.
    #[must_use]
    pub fn watching(self, busy: Busy) -> Self {
        Health { busy, ..self }
    }

    /// A family's sync loop starts; counts as an update (section 8.1).
    pub fn loop_started(&self, family: Family) {
        self.updated(family);
    }

    /// A sync of a family was requested.
    pub fn queued(&self, family: Family) {
        let now = (self.clock)();
        self.lock().queued(family, now);
    }

    /// A sync of a family succeeded.
    pub fn updated(&self, family: Family) {
        let now = (self.clock)();
        self.lock().updated(family, now);
    }

    /// The Node object was seen, new or changed. Its deletion is not reported (section 8.1).
    pub fn observe_node(&self, node: &Node) {
        self.lock().observe_node(node);
    }

    pub fn status(&self) -> HealthStatus {
        let (now, busy) = ((self.clock)(), (self.busy)());
        self.lock().status(now, busy)
    }

    fn lock(&self) -> MutexGuard<'_, ProxyHealth> {
        // Nothing can panic half-way through a change of the state, so it is whole even if poisoned.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves `/healthz` and `/livez` of the proxy (section 8.1, port 10256) on a listener from [`http_server::bind`], for ever.
pub async fn serve(listener: TcpListener, health: Health, metrics: Arc<Metrics>) -> Infallible {
    http_server::serve(listener, router(health, metrics), Places::new(Limits::default())).await
}

fn router(health: Health, metrics: Arc<Metrics>) -> Router {
    let (live, live_metrics) = (health.clone(), Arc::clone(&metrics));
    let healthz = move || async move {
        let (status, answer) = answer(health.status().healthz());
        metrics.proxy.healthz_answered(status);
        answer
    };
    let livez = move || async move {
        let (status, answer) = answer(live.status().livez());
        live_metrics.proxy.livez_answered(status);
        answer
    };
    Router::new().route("/healthz", any(healthz)).route("/livez", any(livez)).fallback(not_found)
}

fn answer(report: Report) -> (StatusCode, Response) {
    let status = if report.ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers =
        [(header::CONTENT_TYPE, "application/json"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (status, (status, headers, report.body).into_response())
}
