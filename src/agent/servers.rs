//! The HTTP servers: health, metrics, health-check node ports.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::observer::HealthChecks;
use super::status::SharedStatus;
use super::{AgentError, Launch, pages, with_causes};
use crate::api::{Event, Reason, Recorder, Regarding};
use crate::health::Health;
use crate::health::service::ServiceHealthServers;
use crate::http_server;
use crate::metrics::Metrics;

/// Names of the servers, also in [`http_server::BindError`].
const HEALTHZ: &str = "healthz";
const METRICS: &str = "metrics";

/// Health-check node ports that could not be opened are tried again after this long, or at the next
/// change.
const RETRY: Duration = Duration::from_secs(30);

/// Starts the health and metrics servers; each task ends only with an error.
pub fn spawn(
    servers: &mut JoinSet<Result<Infallible, AgentError>>,
    launch: &Launch,
    status: &SharedStatus,
    health: &Health,
    metrics: &Arc<Metrics>,
    _node: &str,
) {
    let hard_fail = launch.config.servers.hard_fail;
    if let Some(address) = launch.config.servers.healthz {
        let (health, metrics) = (health.clone(), metrics.clone());
        servers.spawn(async move {
            let listener = http_server::bind(HEALTHZ, address, hard_fail).await?;
            Ok(crate::health::server::run(listener, health, metrics).await)
        });
    }
    let address = launch.config.servers.metrics;
    let pages = pages::pages(launch, status, Timestamp::now());
    let metrics = metrics.clone();
    servers.spawn(async move {
        let listener = http_server::bind(METRICS, address, hard_fail).await?;
        Ok(crate::metrics::server::run(listener, metrics, pages).await)
    });
}

/// Keeps the health-check node ports as wanted.
pub async fn health_checks(
    mut wanted: watch::Receiver<HealthChecks>,
    node: Arc<str>,
    health: Option<Health>,
    recorder: Option<Recorder>,
) -> Result<Infallible, AgentError> {
    let mut servers = ServiceHealthServers::new(node, health);
    loop {
        let (services, addresses) = wanted.borrow_and_update().clone();
        let failures = servers.reconcile(&services, &addresses).await;
        for failure in &failures {
            if let Some(recorder) = &recorder {
                recorder.record(Event {
                    reason: Reason::FailedToStartServiceHealthcheck,
                    regarding: Regarding::Service(failure.service.clone()),
                    note: failure.to_string(),
                });
            }
        }
        let changed = async {
            if wanted.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        if failures.is_empty() {
            changed.await;
        } else {
            let _ = tokio::time::timeout(RETRY, changed).await;
        }
    }
}

/// Posts the Event for a server that could not start (section 8.3).
pub fn tell(recorder: Option<&Recorder>, error: &AgentError) {
    let (Some(recorder), AgentError::Bind(bind)) = (recorder, error) else { return };
    let reason = match bind.server {
        HEALTHZ => Reason::FailedToStartProxierHealthcheck,
        _ => Reason::FailedToStartMetricServer,
    };
    recorder.record(Event { reason, regarding: Regarding::Node, note: with_causes(bind) });
}
