//! The running agent: puts the parts together, in the order of section 7.1, and keeps them going.
//!
//! Place in the flow: `main` hands over a resolved configuration; this module opens the adapters,
//! starts the worker and the servers, and ends only with a reason. It decides nothing about traffic.

mod cleaning;
mod drops;
mod error;
mod figures;
pub(crate) mod flows;
mod node_source;
mod note;
mod pages;
pub mod per_service;
mod prepare;
mod pressure;
pub mod privilege;
mod programming;
mod retry;
mod servers;
pub(crate) mod subscribers;

use std::convert::Infallible;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc, watch};
use tracing::info;

pub use cleaning::{clean_up, release_tables};
pub use error::AgentError;

use crate::api::{Event, Reason, Recorder, Regarding};
use crate::config::watch::Watch;
use crate::config::{Config, DetectLocal, ProxyMode, Traffic, UNSET_MODE};
use crate::health::{Health, ProxyHealth};
use crate::localhost::{self, Desired};
use crate::logging;
use crate::metrics::Metrics;
use crate::node::families::{SKIP_KERNEL_CHECK, check_kernel};
use crate::source::Sink;
use crate::status::SharedStatus;
use crate::sync::Inbox;
use figures::Figures;
use flows::Told;
use note::Note;
use prepare::PreparedNode;
use programming::NodeIdentity;
use servers::Servers;
use subscribers::{Fatal, Outlets};

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
    let figures = Figures::start().map_err(AgentError::Thread)?;
    let metrics = Arc::new(pages::metrics(&launch, &figures, Timestamp::now()));
    let status = initial_status(&launch, &node);
    let shared = Shared { metrics, figures, inbox: Arc::new(Inbox::new()), status };
    let ready = tokio::select! {
        ready = prepared(&launch, node, &shared) => ready.map(ControlFlow::Continue),
        ended = endings.next() => ended.map(ControlFlow::Break),
    };
    let outcome = match ready {
        Ok(ControlFlow::Continue(_)) if launch.init_only => Ok(Ended::Prepared),
        Ok(ControlFlow::Continue(ready)) => serve(&launch, ready, shared, &mut endings).await,
        Ok(ControlFlow::Break(ended)) => Ok(ended),
        Err(reason) => Err(reason),
    };
    // Also what a crash before this start left behind.
    let _ = tokio::task::spawn_blocking(release_tables).await;
    outcome
}

/// What many parts write to or ask, from before the source is opened.
struct Shared {
    metrics: Arc<Metrics>,
    figures: Figures,
    inbox: Arc<Inbox>,
    status: SharedStatus,
}

impl Shared {
    /// Where a source delivers.
    fn sink(&self) -> Arc<dyn Sink> {
        let Shared { inbox, metrics, status, .. } = self;
        let (inbox, metrics, status) = (inbox.clone(), metrics.clone(), status.clone());
        Arc::new(node_source::Counted { inbox, metrics, status })
    }
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
    shared: &Shared,
) -> Result<PreparedNode, AgentError> {
    let node_source = node_source::open(launch, &node, shared.sink(), &shared.metrics).await?;
    let ready = prepare::prepare(launch, node, node_source).await?;
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
    ready: PreparedNode,
    shared: Shared,
    endings: &mut Endings,
) -> Result<Ended, AgentError> {
    let PreparedNode { node, node_source, traffic, families, owned } = ready;
    let Shared { metrics, figures, inbox, status } = shared;
    let config = &launch.config;
    info!(version = launch.version, %node, mode = %config.mode, owned, "Starting");
    let node: Arc<str> = node.into();
    let recorder = node_source.source.recorder(&node);
    let health = ProxyHealth::new(config.sync_period);
    let health = match launch.source {
        Source::Api => health,
        Source::Manifests(_) => health.without_node(),
    };
    let worker = inbox.clone();
    let health = Health::new(health).watching(Arc::new(move || worker.at_work()));
    let (localhost, wanted_localhost) = Desired::new();
    let (health_checks, wanted_checks) = watch::channel(subscribers::no_health_checks());
    let mut servers = Servers::new(recorder.clone());
    servers.start_health(config, &health, &metrics);
    let last_minute = drops::LastMinute::default();
    tokio::spawn(last_minute.clone().watch(figures.clone()));
    let pages = pages::pages(launch, &figures, &status, last_minute, Timestamp::now());
    servers.start_metrics(config, pages, &metrics);
    if config.localhost.is_some() {
        let bounds = localhost::Bounds::of_process();
        tokio::spawn(localhost::run(wanted_localhost, metrics.clone(), bounds));
    }
    servers.start_health_checks(config, &health, &node, wanted_checks);
    let (notes, noted) = mpsc::unbounded_channel();
    tokio::spawn(pressure::watch(figures, notes.clone()));
    let bulk = Arc::new(Notify::new());
    tokio::spawn(subscribers::return_memory(bulk.clone()));
    let outlets = Outlets {
        bulk,
        health: health.clone(),
        status: status.clone(),
        flows: flows::start(
            node.clone(),
            Told {
                metrics: metrics.clone(),
                notes: notes.clone(),
                status: status.clone(),
                inbox: inbox.clone(),
            },
        )
        .map_err(AgentError::Thread)?,
        metrics: metrics.clone(),
        health_checks,
        localhost,
        notes,
        fatal: Fatal {
            pod_cidrs: (config.detect_local == DetectLocal::NodeCidr)
                .then(|| traffic.pod_cidrs.clone()),
            deletion: launch.source == Source::Api,
        },
        end_connections_after: config.end_connections_after,
    };
    let subject = NodeIdentity { node, object: node_source.node, families, owned, traffic };
    let programming = tokio::select! {
        started = programming::start(launch, subject, outlets, &inbox) => started?,
        ended = endings.next() => return ended,
    };
    let mut programming = tokio::task::spawn_blocking(|| programming.join());
    for family in families.iter() {
        health.loop_started(family);
    }
    node_source.source.start()?;
    announce(recorder.as_ref(), config);
    tokio::spawn(cleaning::after_first_sync(status, families));
    let outcome = tokio::select! {
        outcome = supervise(servers, noted, recorder) => outcome.map(|never| match never {}),
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

fn announce(recorder: Option<&Recorder>, config: &Config) {
    let Some(recorder) = recorder else { return };
    let event = |reason| Event { reason, regarding: Regarding::Node, note: String::new() };
    recorder.record(event(Reason::Starting));
    if config.mode == ProxyMode::Ipvs {
        recorder.record(event(Reason::IpvsDeprecation));
    }
    if config.mode_unset {
        let note = UNSET_MODE.to_owned();
        recorder.record(Event { note, ..event(Reason::UnsetProxyMode) });
    }
}

/// Waits for what ends the process, and tells of what does not.
async fn supervise(
    mut servers: Servers,
    mut noted: mpsc::UnboundedReceiver<Note>,
    recorder: Option<Recorder>,
) -> Result<Infallible, AgentError> {
    loop {
        tokio::select! {
            reason = servers.failed() => {
                servers.tell(&reason).await;
                return Err(reason);
            }
            Some(note) = noted.recv() => {
                let event = note.event()?;
                if let Some(recorder) = &recorder {
                    recorder.record(event);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
