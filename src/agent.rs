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
mod prepare;
pub mod privilege;
mod servers;
pub mod status;
mod traffic;
mod worker;

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tracing::info;

pub use cleaning::clean_up;
pub use error::AgentError;
pub use observer::with_causes;
pub use traffic::Traffic;

use crate::api::{Event, Reason, Recorder, Regarding};
use crate::config::{Config, DetectLocal, ProxyMode};
use crate::health::{Health, ProxyHealth};
use crate::logging;
use crate::metrics::Metrics;
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

/// Runs the agent until something ends it.
///
/// Returns `Ok` only after `--init-only`.
pub async fn run(launch: Launch) -> Result<(), AgentError> {
    let file = launch.config_file.as_deref();
    let mut file = file.map(crate::config::watch::watch).transpose()?;
    let changed = async {
        match &mut file {
            Some(file) => file.changed().await,
            None => std::future::pending().await,
        }
    };
    // An edit counts from the start, also while the API server is waited for.
    tokio::select! {
        change = changed => Err(change.into()),
        outcome = start(&launch) => outcome,
    }
}

/// Up to the point where `--init-only` ends.
async fn start(launch: &Launch) -> Result<(), AgentError> {
    let node = crate::config::node_name(&launch.config.hostname_override, &hostname())?;
    let release = nix::sys::utsname::uname().map_err(AgentError::Uname)?;
    let skip = std::env::var(SKIP_KERNEL_CHECK).ok();
    check_kernel(&release.release().to_string_lossy(), skip.as_deref())?;
    let metrics = Arc::new(pages::metrics(launch, Timestamp::now()));
    let inbox = Arc::new(Inbox::new());
    let sighted = node_source::open(launch, &node, &inbox, &metrics).await?;
    let ready = prepare::prepare(launch, node, sighted)?;
    if launch.init_only {
        for family in ready.families.iter() {
            info!(%family, "System initialized and --init-only specified");
        }
        return Ok(());
    }
    serve(launch, ready, metrics, inbox).await
}

fn hostname() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Starts everything that goes on, and waits for what ends it.
async fn serve(
    launch: &Launch,
    ready: Ready,
    metrics: Arc<Metrics>,
    inbox: Arc<Inbox>,
) -> Result<(), AgentError> {
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
        metrics,
        health_checks,
        occurrences,
        node_cidr_mode: config.detect_local == DetectLocal::NodeCidr,
    };
    let subject = Subject { node, object: sighted.node, families };
    worker::start(launch, subject, surroundings, &inbox).await?;
    for family in families.iter() {
        health.loop_started(family);
    }
    sighted.source.start(&inbox)?;
    announce(recorder.as_ref(), config.mode);
    tokio::spawn(cleaning::after_first_sync(status, families));
    supervise(servers, occurred, recorder).await.map(|never| match never {})
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
                    if let Some(recorder) = &recorder {
                        recorder.record(Event {
                            reason: Reason::ServiceQuarantined,
                            regarding: Regarding::Service(service),
                            note: reason,
                        });
                    }
                }
            }
        }
    }
}
