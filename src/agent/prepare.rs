//! What has to be right before anything is programmed: families, sanity checks, nf_tables, sysctls.
//!
//! Place in the flow: after the Node was seen, before the worker starts; all that `--init-only` does.
//! Decides nothing about traffic.

use std::io;
use std::path::Path;

use tracing::info;

use super::node_source::Sighted;
use super::patience::patiently;
use super::{AgentError, Launch, Source, Traffic, pages};
use crate::config::sanity::{self, NodeFacts};
use crate::config::{Config, ProxyMode};
use crate::model::Families;
use crate::netlink::{NetlinkKernel, probe_ownership};
use crate::node::families::{self, Ipv6State, programmed};
use crate::node::object::NodeIps;
use crate::sysctl;
use crate::transaction::DumpError;

/// A node that can be programmed.
pub struct Ready {
    /// The node's name.
    pub node: String,
    /// The source, and the Node it showed.
    pub sighted: Sighted,
    /// What decides about traffic.
    pub traffic: Traffic,
    /// Families to program.
    pub families: Families,
    /// The kernel keeps others off our tables.
    pub owned: bool,
}

/// Checks and prepares the node.
pub async fn prepare(launch: &Launch, node: String, sighted: Sighted) -> Result<Ready, AgentError> {
    let config = &launch.config;
    let bind_address = Some(config.bind_address).filter(|address| !address.is_unspecified());
    let ips = NodeIps::resolve(sighted.node.as_deref(), bind_address);
    if ips.primary_is_loopback() {
        info!("The node's IP is not known; consider setting bindAddress");
    }
    let families = programmed(Ipv6State::read(Path::new("/")), ips.primary)?;
    let pod_cidrs = sighted.node.as_ref().map(|n| n.pod_cidrs.clone()).unwrap_or_default();
    check_sanity(config, &ips, families, &pod_cidrs)?;
    let wanted = config.table_ownership;
    let probe = async || apart(move || try_nftables(wanted, families)).await;
    let owned = patiently("nf_tables", probe).await?;
    write_sysctls(launch, families).await?;
    tell_mode(config.mode);
    let traffic = Traffic { config: config.clone(), node_ips: ips.ips, pod_cidrs };
    Ok(Ready { node, sighted, traffic, families, owned })
}

/// Does what may block on a thread of its own, so that a signal is seen meanwhile.
async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AgentError> + Send + 'static,
) -> Result<T, AgentError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}

/// Whether tables are to be owned, if that is wanted; an error if nf_tables cannot be used at all.
fn try_nftables(ownership: bool, families: Families) -> Result<bool, AgentError> {
    let kernel = NetlinkKernel::open()?;
    families::probe_nftables(families, |family| {
        kernel.table(family).map(drop).map_err(|error| match error {
            DumpError::Interrupted(_) => io::Error::new(io::ErrorKind::Interrupted, error),
            error => io::Error::other(error),
        })
    })?;
    Ok(ownership && probe_ownership()?)
}

fn check_sanity(
    config: &Config,
    ips: &NodeIps,
    families: Families,
    pod_cidrs: &[ipnet::IpNet],
) -> Result<(), AgentError> {
    let dual_stack = families == Families::DUAL;
    let facts = NodeFacts { primary: ips.primary, dual_stack, pod_cidrs };
    for note in sanity::check(config, facts)? {
        note.log();
    }
    Ok(())
}

async fn write_sysctls(launch: &Launch, families: Families) -> Result<(), AgentError> {
    let config = &launch.config;
    // A directory of manifests is for edge boxes and labs: their sysctls are their own.
    let conntrack =
        (launch.source == Source::Api).then(|| pages::conntrack_settings(&config.conntrack));
    let localhost = config.localhost_nodeports && families.v4;
    // A resized hash of conntrack takes its time.
    apart(move || {
        let root = Path::new("/");
        if let Some(settings) = conntrack {
            sysctl::apply(root, &sysctl::conntrack(&settings, sysctl::cpus(root)))?;
        }
        if localhost {
            sysctl::apply(root, &[sysctl::localhost_nodeports()])?;
        }
        Ok(())
    })
    .await
}

/// The one line that says what becomes of another mode.
fn tell_mode(mode: ProxyMode) {
    if mode != ProxyMode::Nftables {
        info!(%mode, "Rules are written with nftables; what users notice is as in the configured mode");
    }
}
