//! The HTTP servers: health, metrics, health-check node ports.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::AgentError;
use super::subscribers::HealthChecks;
use crate::api::{Event, Reason, Recorder, Regarding};
use crate::config::Config;
use crate::health::Health;
use crate::health::service::ServiceHealthServers;
use crate::http_server;
use crate::metrics::Metrics;
use crate::metrics::server::Pages;
use crate::text::with_causes;

/// Names of the servers, also in [`http_server::BindError`].
const HEALTHZ: &str = "healthz";
const METRICS: &str = "metrics";

/// Health-check node ports that could not be opened are tried again after this long, or at the next
/// change.
const RETRY: Duration = Duration::from_secs(30);

/// How long the last Event before the end may take: the reason it tells stands in the log as well.
const LAST_EVENT: Duration = Duration::from_secs(5);

/// The running servers. They end when this is dropped.
pub struct Servers {
    tasks: JoinSet<Result<Infallible, AgentError>>,
    recorder: Option<Recorder>,
}

impl Servers {
    /// None yet; `recorder` takes the Events about ports that cannot be opened.
    pub fn new(recorder: Option<Recorder>) -> Self {
        Servers { tasks: JoinSet::new(), recorder }
    }

    /// `/healthz` and `/livez`, unless turned off.
    pub fn start_health(&mut self, config: &Config, health: &Health, metrics: &Arc<Metrics>) {
        let hard_fail = config.servers.hard_fail;
        let Some(address) = config.servers.healthz else { return };
        let (health, metrics) = (health.clone(), metrics.clone());
        self.tasks.spawn(async move {
            let listener = http_server::bind(HEALTHZ, address, hard_fail).await?;
            Ok(crate::health::serve(listener, health, metrics).await)
        });
    }

    /// Metrics and the debug pages.
    pub fn start_metrics(&mut self, config: &Config, pages: Pages, metrics: &Arc<Metrics>) {
        let (address, hard_fail) = (config.servers.metrics, config.servers.hard_fail);
        let metrics = metrics.clone();
        self.tasks.spawn(async move {
            let listener = http_server::bind(METRICS, address, hard_fail).await?;
            Ok(crate::metrics::server::run(listener, metrics, pages).await)
        });
    }

    /// Keeps the health-check node ports as `wanted` says. They answer for the proxy's health only
    /// if the health server is on.
    pub fn start_health_checks(
        &mut self,
        config: &Config,
        health: &Health,
        node: &Arc<str>,
        wanted: watch::Receiver<HealthChecks>,
    ) {
        let health = config.servers.healthz.is_some().then(|| health.clone());
        let servers = ServiceHealthServers::new(node.clone(), health);
        self.tasks.spawn(keep(servers, wanted, self.recorder.clone()));
    }

    /// Waits for a server to fail for good. May be dropped and called again.
    pub async fn failed(&mut self) -> AgentError {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(Err(reason))) => return reason,
                // A panic was printed where it happened; the other servers go on.
                Some(Err(_)) => {}
                Some(Ok(Ok(never))) => match never {},
                None => std::future::pending().await,
            }
        }
    }

    /// Posts the Event about a server that failed (section 8.3), and waits until it is written.
    pub async fn tell(&self, error: &AgentError) {
        let (Some(recorder), AgentError::Bind(bind)) = (&self.recorder, error) else { return };
        let reason = match bind.server {
            HEALTHZ => Reason::FailedToStartProxierHealthcheck,
            _ => Reason::FailedToStartMetricServer,
        };
        recorder.record(Event { reason, regarding: Regarding::Node, note: with_causes(bind) });
        // The process ends next: nobody would write what waits.
        recorder.flush(LAST_EVENT).await;
    }
}

async fn keep(
    mut servers: ServiceHealthServers,
    mut wanted: watch::Receiver<HealthChecks>,
    recorder: Option<Recorder>,
) -> Result<Infallible, AgentError> {
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
