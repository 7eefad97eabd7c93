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
mod servers;
pub mod status;
mod traffic;

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

pub use cleaning::clean_up;
pub use error::AgentError;
pub use observer::with_causes;
pub use traffic::Traffic;

use crate::api::{Event, Reason, Recorder, Regarding};
use crate::config::{Config, DetectLocal, ProxyMode};
use crate::engine::Engine;
use crate::health::{Health, ProxyHealth};
use crate::logging;
use crate::model::{Families, Family, NodeAddresses};
use crate::netlink::{Monitor, NetlinkKernel, Notice, probe_ownership};
use crate::node::families::{Ipv6State, SKIP_KERNEL_CHECK, check_kernel, programmed};
use crate::node::object::NodeIps;
use crate::node::{addresses, families};
use crate::sync::{Inbox, Limits, Synchronizer, Worker};
use crate::sysctl;
use crate::topology::Vantage;
use node_source::Sighted;
use observer::{AgentObserver, Occurrence, Surroundings};
use status::SharedStatus;

/// How long the monitor sleeps between two looks at whether the process still runs.
const MONITOR_WAIT: Duration = Duration::from_secs(60);

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
    let node = crate::config::node_name(&launch.config.hostname_override, &hostname())?;
    let release = nix::sys::utsname::uname().map_err(AgentError::Uname)?;
    let skip = std::env::var(SKIP_KERNEL_CHECK).ok();
    check_kernel(&release.release().to_string_lossy(), skip.as_deref())?;

    let status = SharedStatus::default();
    let metrics = Arc::new(pages::metrics(&launch, Timestamp::now()));
    let inbox = Arc::new(Inbox::new());
    let mut occurrences = mpsc::unbounded_channel();
    let sighted = node_source::open(&launch, &node, &inbox, &metrics).await?;
    let traffic = Traffic {
        node_ips: NodeIps::resolve(sighted.node.as_deref(), bind_address(&launch.config)).ips,
        pod_cidrs: sighted.node.as_ref().map(|n| n.pod_cidrs.clone()).unwrap_or_default(),
        config: launch.config.clone(),
    };
    let families = prepare(&launch, &sighted, &traffic)?;
    let owned = launch.config.table_ownership && probe_ownership()?;
    if launch.init_only {
        for family in families.iter() {
            info!(%family, "System initialized and --init-only specified");
        }
        return Ok(());
    }
    info!(version = launch.version, %node, mode = %launch.config.mode, owned, "Starting");
    sysctl::set_oom_score_adj(Path::new("/"), launch.config.oom_score_adj);

    let recorder = sighted.source.recorder(&node);
    let health = Health::new(ProxyHealth::new(launch.config.sync_period));
    let (health_checks, wanted_checks) = watch::channel(observer::no_health_checks());
    status.update(|s| {
        s.version.clone_from(&launch.version);
        s.node.clone_from(&node);
        s.mode = launch.config.mode.to_string();
    });
    let mut servers = tokio::task::JoinSet::new();
    servers::spawn(&mut servers, &launch, &status, &health, &metrics, &node);
    servers.spawn(servers::health_checks(
        wanted_checks,
        node.as_str().into(),
        launch.config.servers.healthz.is_some().then(|| health.clone()),
        recorder.clone(),
    ));

    let surroundings = Surroundings {
        traffic,
        owned,
        metrics: metrics.clone(),
        health: health.clone(),
        status: status.clone(),
        flows: flows::start(metrics.clone()).map_err(AgentError::Thread)?,
        health_checks,
        occurrences: occurrences.0.clone(),
        node_cidr_mode: launch.config.detect_local == DetectLocal::NodeCidr,
    };
    let mut addresses = follow_addresses().await?;
    let assigned = addresses.borrow_and_update().clone();
    start_worker(&launch, families, &node, &sighted, surroundings, &inbox, assigned)?;
    for family in families.iter() {
        health.loop_started(family);
    }
    sighted.source.start(&inbox)?;
    announce(recorder.as_ref(), launch.config.mode);
    tokio::spawn(cleaning::after_first_sync(status.clone(), families));
    let forward = inbox.clone();
    tokio::spawn(async move {
        while addresses.changed().await.is_ok() {
            forward.set_addresses(addresses.borrow_and_update().clone());
        }
    });
    supervise(&launch, servers, &mut occurrences.1, recorder).await
}

fn hostname() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn bind_address(config: &Config) -> Option<std::net::IpAddr> {
    Some(config.bind_address).filter(|address| !address.is_unspecified())
}

/// Families, sanity checks and sysctls: what has to be right before anything is programmed.
fn prepare(launch: &Launch, sighted: &Sighted, traffic: &Traffic) -> Result<Families, AgentError> {
    let config = &launch.config;
    let ips = NodeIps::resolve(sighted.node.as_deref(), bind_address(config));
    if ips.primary_is_loopback() {
        info!("The node's IP is not known; consider setting bindAddress");
    }
    let families = programmed(Ipv6State::read(Path::new("/")), ips.primary)?;
    let facts = crate::config::sanity::NodeFacts {
        primary: ips.primary,
        dual_stack: families == Families::DUAL,
        pod_cidrs: &traffic.pod_cidrs,
    };
    for note in crate::config::sanity::check(config, facts)? {
        note.log();
    }
    let mut kernel = NetlinkKernel::open()?;
    families::probe_nftables(families, |family| {
        kernel.table(family).map(drop).map_err(std::io::Error::other)
    })?;
    // A directory of manifests is for edge boxes and labs: their sysctls are their own.
    if launch.source == Source::Api {
        let settings = pages::conntrack_settings(&config.conntrack);
        let cpus = sysctl::cpus(Path::new("/"));
        sysctl::apply(Path::new("/"), &sysctl::conntrack(&settings, cpus))?;
    }
    if config.localhost_nodeports && families.v4 {
        sysctl::apply(Path::new("/"), &[sysctl::localhost_nodeports()])?;
    }
    Ok(families)
}

/// Interface addresses, now and after every change; a broken stream is opened anew.
async fn follow_addresses() -> Result<watch::Receiver<NodeAddresses>, AgentError> {
    let (sender, receiver) = watch::channel(addresses::read().await?);
    tokio::spawn(async move {
        loop {
            match addresses::watch(sender.clone()).await {
                Ok(()) => return,
                Err(reason) => warn!(reason = with_causes(&reason), "Following addresses again"),
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    Ok(receiver)
}

fn start_worker(
    launch: &Launch,
    families: Families,
    node: &str,
    sighted: &Sighted,
    surroundings: Surroundings,
    inbox: &Arc<Inbox>,
    assigned: NodeAddresses,
) -> Result<(), AgentError> {
    let owned = surroundings.owned;
    let (options, hints) = surroundings.traffic.options(&assigned);
    for hint in hints {
        error!("{hint}");
    }
    let zone = sighted.node.as_ref().and_then(|node| node.zone.clone());
    let vantage = Vantage { node: node.into(), zone };
    let mut engine = Engine::new(options, vantage, families, owned);
    engine.set_local_addresses(&surroundings.traffic.local_addresses(&assigned));
    let kernel = NetlinkKernel::open()?;
    if !owned {
        start_monitor(Monitor::open(kernel.portid())?, inbox.clone())?;
    }
    let limits =
        Limits { min_interval: launch.config.min_sync_period, retry: launch.config.sync_period };
    let observer = AgentObserver::new(surroundings, assigned);
    let synchronizer = Synchronizer::new(engine, kernel);
    let worker = Worker::new(synchronizer, inbox.clone(), observer, limits);
    std::thread::Builder::new()
        .name("netlink".to_owned())
        .spawn(move || worker.run())
        .map_err(AgentError::Thread)?;
    Ok(())
}

/// Kernels that cannot keep others off the table tell at least when they touch it.
fn start_monitor(mut monitor: Monitor, inbox: Arc<Inbox>) -> Result<(), AgentError> {
    let watch = move || {
        loop {
            match monitor.wait(MONITOR_WAIT) {
                Ok(None) => {}
                Ok(Some(Notice::Overflow)) => {
                    Family::BOTH.into_iter().for_each(|family| inbox.foreign_change(family));
                }
                Ok(Some(Notice::Foreign { family, changes, by })) => {
                    let what = changes.into_iter().collect::<Vec<_>>().join(", ");
                    warn!(%family, what, by, "Someone else changed the table; it is repaired");
                    inbox.foreign_change(family);
                }
                Err(reason) => {
                    error!(reason = with_causes(&reason), "Foreign changes are no longer noticed");
                    return;
                }
            }
        }
    };
    std::thread::Builder::new()
        .name("monitor".to_owned())
        .spawn(watch)
        .map_err(AgentError::Thread)?;
    Ok(())
}

fn announce(recorder: Option<&Recorder>, mode: ProxyMode) {
    let Some(recorder) = recorder else { return };
    let event = |reason| Event { reason, regarding: Regarding::Node, note: String::new() };
    recorder.record(event(Reason::Starting));
    if mode == ProxyMode::Ipvs {
        recorder.record(event(Reason::IpvsDeprecation));
    }
}

/// Waits for what ends the process.
async fn supervise(
    launch: &Launch,
    mut servers: tokio::task::JoinSet<Result<Infallible, AgentError>>,
    occurrences: &mut mpsc::UnboundedReceiver<Occurrence>,
    recorder: Option<Recorder>,
) -> Result<(), AgentError> {
    let mut file = match &launch.config_file {
        Some(path) => Some(crate::config::watch::watch(path)?),
        None => None,
    };
    let changed = async {
        match &mut file {
            Some(file) => file.changed().await,
            None => std::future::pending().await,
        }
    };
    tokio::pin!(changed);
    loop {
        tokio::select! {
            change = &mut changed => return Err(AgentError::ConfigChanged(change)),
            Some(ended) = servers.join_next() => {
                if let Ok(Err(reason)) = ended {
                    servers::tell(recorder.as_ref(), &reason);
                    return Err(reason);
                }
            }
            Some(occurrence) = occurrences.recv() => match occurrence {
                Occurrence::PodCidrsChanged => return Err(AgentError::PodCidrsChanged),
                Occurrence::Quarantined { service, reason } => {
                    if let Some(recorder) = &recorder {
                        let reason_text = reason;
                        recorder.record(Event {
                            reason: Reason::ServiceQuarantined,
                            regarding: Regarding::Service(service),
                            note: reason_text,
                        });
                    }
                }
            }
        }
    }
}
