//! The running agent: puts the parts together, in the order of section 7.1, and keeps them going.
//!
//! Place in the flow: `main` hands over a resolved configuration; this module opens the adapters,
//! starts the worker and the servers, and ends only with a reason. It decides nothing about traffic.

mod cleaning;
mod error;
mod flows;
mod node_source;
mod observer;
mod pages;
mod patience;
mod prepare;
pub mod privilege;
mod servers;
pub mod status;
mod traffic;
mod worker;

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::info;

pub use cleaning::{clean_up, release_tables};
pub use error::AgentError;
pub use observer::with_causes;
pub use traffic::Traffic;

use crate::api::{Event, Reason, Recorder, Regarding};
use crate::config::watch::Watch;
use crate::config::{Config, DetectLocal, ProxyMode};
use crate::health::{Health, ProxyHealth};
use crate::logging;
use crate::metrics::Metrics;
use crate::model::ObjectName;
use crate::node::families::{SKIP_KERNEL_CHECK, check_kernel};
use crate::sync::Inbox;
use observer::{Occurrence, Surroundings};
use prepare::Ready;
use servers::Servers;
use status::SharedStatus;
use worker::Subject;

/// Where objects come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The API server.
    Api,
    /// A directory of manifests.
    Manifests(PathBuf),
}

/// Everything the agent is started with.
pub struct Launch {
    /// The resolved configuration.
    pub config: Config,
    /// Where objects come from.
    pub source: Source,
    /// Flags and their values, for `/flagz`.
    pub flags: Vec<(String, String)>,
    /// Version to report.
    pub version: String,
    /// `--init-only`: prepare and end.
    pub init_only: bool,
    /// `--config`, watched for changes.
    pub config_file: Option<PathBuf>,
    /// Runtime verbosity.
    pub log: logging::Handle,
}

/// How a run ends that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// `--init-only`: everything is prepared.
    Prepared,
    /// This signal came. Rules stay (B-025).
    Signalled(SignalKind),
}

/// How long the last commit may take at the end: well within a pod's grace period.
const LAST_COMMIT: Duration = Duration::from_secs(20);

/// Runs the agent until something ends it.
pub async fn run(launch: Launch) -> Result<Ended, AgentError> {
    let mut endings = Endings::handle(launch.config_file.as_deref())?;
    let node = crate::config::node_name(&launch.config.hostname_override, &hostname())?;
    let release = nix::sys::utsname::uname().map_err(AgentError::Uname)?;
    let skip = std::env::var(SKIP_KERNEL_CHECK).ok();
    check_kernel(&release.release().to_string_lossy(), skip.as_deref())?;
    let metrics = Arc::new(pages::metrics(&launch, Timestamp::now()));
    let inbox = Arc::new(Inbox::new());
    let outcome = tokio::select! {
        ready = prepared(&launch, node, &inbox, &metrics) => {
            let ready = ready?;
            if launch.init_only {
                return Ok(Ended::Prepared);
            }
            serve(&launch, ready, metrics, &inbox, &mut endings).await
        }
        ended = endings.next() => ended,
    };
    // Also what a crash before this start left behind.
    let _ = tokio::task::spawn_blocking(release_tables).await;
    outcome
}

/// What ends the process: signals, and an edit of the configuration, which counts from the start,
/// also while the API server is waited for. Signals are handled also as process 1 of a container,
/// which the kernel spares those that nobody handles.
struct Endings {
    terminate: Signal,
    interrupt: Signal,
    file: Option<Watch>,
}

impl Endings {
    fn handle(config_file: Option<&Path>) -> Result<Self, AgentError> {
        let handle = |kind| signal(kind).map_err(AgentError::Signal);
        let (terminate, interrupt) = (SignalKind::terminate(), SignalKind::interrupt());
        let file = config_file.map(crate::config::watch::watch).transpose()?;
        Ok(Endings { terminate: handle(terminate)?, interrupt: handle(interrupt)?, file })
    }

    async fn next(&mut self) -> Result<Ended, AgentError> {
        let changed = async {
            match &mut self.file {
                Some(file) => file.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            change = changed => Err(change.into()),
            _ = self.terminate.recv() => Ok(Ended::Signalled(SignalKind::terminate())),
            _ = self.interrupt.recv() => Ok(Ended::Signalled(SignalKind::interrupt())),
        }
    }
}

/// Up to the point where `--init-only` ends.
async fn prepared(
    launch: &Launch,
    node: String,
    inbox: &Arc<Inbox>,
    metrics: &Arc<Metrics>,
) -> Result<Ready, AgentError> {
    let sighted = node_source::open(launch, &node, inbox, metrics).await?;
    let ready = prepare::prepare(launch, node, sighted).await?;
    if launch.init_only {
        for family in ready.families.iter() {
            info!(%family, "System initialized and --init-only specified");
        }
    }
    Ok(ready)
}

fn hostname() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Starts everything that goes on, and waits for what ends it.
async fn serve(
    launch: &Launch,
    ready: Ready,
    metrics: Arc<Metrics>,
    inbox: &Arc<Inbox>,
    endings: &mut Endings,
) -> Result<Ended, AgentError> {
    let Ready { node, sighted, traffic, families, owned } = ready;
    let config = &launch.config;
    info!(version = launch.version, %node, mode = %config.mode, owned, "Starting");
    let node: Arc<str> = node.into();
    let recorder = sighted.source.recorder(&node);
    let health = Health::new(ProxyHealth::new(config.sync_period));
    let status = initial_status(launch, &node);
    let (health_checks, wanted_checks) = watch::channel(observer::no_health_checks());
    let mut servers = Servers::new(recorder.clone());
    servers.start_health(config, &health, &metrics);
    servers.start_metrics(config, pages::pages(launch, &status, Timestamp::now()), &metrics);
    servers.start_health_checks(config, &health, &node, wanted_checks);
    let (occurrences, occurred) = mpsc::unbounded_channel();
    let surroundings = Surroundings {
        traffic,
        owned,
        health: health.clone(),
        status: status.clone(),
        flows: flows::start(metrics.clone()).map_err(AgentError::Thread)?,
        metrics: metrics.clone(),
        health_checks,
        occurrences,
        node_cidr_mode: config.detect_local == DetectLocal::NodeCidr,
    };
    let subject = Subject { node, object: sighted.node, families };
    let programming = tokio::select! {
        started = worker::start(launch, subject, surroundings, inbox) => started?,
        ended = endings.next() => return ended,
    };
    let mut programming = tokio::task::spawn_blocking(|| programming.join());
    for family in families.iter() {
        health.loop_started(family);
    }
    sighted.source.start(inbox, &metrics)?;
    announce(recorder.as_ref(), config.mode);
    tokio::spawn(cleaning::after_first_sync(status, families));
    let outcome = tokio::select! {
        outcome = supervise(servers, occurred, recorder) => outcome.map(|never| match never {}),
        ended = endings.next() => ended,
        _ = &mut programming => return Err(AgentError::Panicked),
    };
    inbox.close();
    // Too long a commit is cut off by the end.
    let _ = tokio::time::timeout(LAST_COMMIT, programming).await;
    outcome
}

fn initial_status(launch: &Launch, node: &str) -> SharedStatus {
    let status = SharedStatus::default();
    status.update(|s| {
        s.version.clone_from(&launch.version);
        node.clone_into(&mut s.node);
        s.mode = launch.config.mode.to_string();
    });
    status
}

fn announce(recorder: Option<&Recorder>, mode: ProxyMode) {
    let Some(recorder) = recorder else { return };
    let event = |reason| Event { reason, regarding: Regarding::Node, note: String::new() };
    recorder.record(event(Reason::Starting));
    if mode == ProxyMode::Ipvs {
        recorder.record(event(Reason::IpvsDeprecation));
    }
}

/// Waits for what ends the process, and tells of what does not.
async fn supervise(
    mut servers: Servers,
    mut occurred: mpsc::UnboundedReceiver<Occurrence>,
    recorder: Option<Recorder>,
) -> Result<Infallible, AgentError> {
    loop {
        tokio::select! {
            reason = servers.failed() => {
                servers.tell(&reason).await;
                return Err(reason);
            }
            Some(occurrence) = occurred.recv() => match occurrence {
                Occurrence::PodCidrsChanged => return Err(AgentError::PodCidrsChanged),
                Occurrence::Quarantined { service, reason } => {
                    tell_quarantined(recorder.as_ref(), service, reason);
                }
            }
        }
    }
}

fn tell_quarantined(recorder: Option<&Recorder>, service: ObjectName, note: String) {
    if let Some(recorder) = recorder {
        let regarding = Regarding::Service(service);
        recorder.record(Event { reason: Reason::ServiceQuarantined, regarding, note });
    }
}

#[cfg(test)]
mod tests;
