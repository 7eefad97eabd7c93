//! What has to be right before anything is programmed: families, sanity checks, nf_tables, sysctls.
//!
//! Place in the flow: after the Node was seen, before the worker starts; all that `--init-only` does.
//! Decides nothing about traffic.

use std::io;
use std::path::Path;

use tracing::info;

use super::node_source::NodeSource;
use super::retry::with_retries;
use super::{AgentError, Launch, Source, Traffic, pages};
use crate::config::sanity::{self, NodeFacts};
use crate::config::{Config, ProxyMode};
use crate::kernel::DumpError;
use crate::model::Families;
use crate::netlink::{NetlinkKernel, load_conntrack, probe_ownership};
use crate::node::families::{self, Ipv6State, programmed};
use crate::node::object::NodeIps;
use crate::sysctl::{self, Wanted};

/// A node that can be programmed.
pub struct PreparedNode {
    /// The node's name.
    pub node: String,
    /// The source, and the Node it showed.
    pub node_source: NodeSource,
    /// What decides about traffic.
    pub traffic: Traffic,
    /// Families to program.
    pub families: Families,
    /// The kernel keeps others off our tables.
    pub owned: bool,
}

/// Checks and prepares the node.
pub async fn prepare(
    launch: &Launch,
    node: String,
    node_source: NodeSource,
) -> Result<PreparedNode, AgentError> {
    let config = &launch.config;
    let ips = config.node_ips(node_source.node.as_deref());
    if ips.primary_is_loopback() {
        info!("The node's IP is not known; consider setting bindAddress");
    }
    let families = programmed(Ipv6State::read(Path::new("/")), ips.primary)?;
    let traffic = Traffic::new(config.clone(), node_source.node.as_deref());
    check_sanity(config, &ips, families, &traffic.pod_cidrs)?;
    let wanted = config.table_ownership;
    let probe = async || apart(move || try_nftables(wanted, families)).await;
    let owned = with_retries("nf_tables", probe).await?;
    write_sysctls(launch, families).await?;
    tell_mode(config.mode);
    Ok(PreparedNode { node, node_source, traffic, families, owned })
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
    let root = Path::new("/");
    if launch.source == Source::Api {
        let settings = pages::conntrack_settings(&config.conntrack);
        let wanted = sysctl::conntrack(&settings, sysctl::cpus(root));
        let load = move || families.iter().try_for_each(load_conntrack).map_err(AgentError::Probe);
        let load = async || with_retries("nf_conntrack", async || apart(load).await).await;
        with_module(root, &wanted, load).await?;
    }
    if config.localhost_nodeports && families.v4 {
        sysctl::apply(root, &[sysctl::localhost_nodeports()])?;
    }
    Ok(())
}

/// Makes settings whose files appear when their module is loaded, which is not sure to have happened:
/// nothing of ours is programmed yet.
async fn with_module(
    root: &Path,
    wanted: &[Wanted],
    load: impl AsyncFnOnce() -> Result<(), AgentError>,
) -> Result<Vec<Wanted>, AgentError> {
    // A resized hash of conntrack takes its time.
    let apply = async || {
        let (root, wanted) = (root.to_owned(), wanted.to_vec());
        apart(move || Ok(sysctl::apply(&root, &wanted))).await
    };
    match apply().await? {
        Err(error) if error.is_missing() => {
            info!(%error, "Having nf_conntrack loaded");
            load().await?;
            Ok(apply().await??)
        }
        outcome => Ok(outcome?),
    }
}

/// The one line that says what becomes of another mode.
fn tell_mode(mode: ProxyMode) {
    if mode != ProxyMode::Nftables {
        info!(%mode, "Rules are written with nftables; what users notice is as in the configured mode");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sysctl::ConntrackSettings;

    const MAX: &str = "proc/sys/net/netfilter/nf_conntrack_max";

    // N4: nf_conntrack is not loaded yet: it is, once, and then the settings are made.
    #[tokio::test]
    async fn missing_conntrack_settings_have_the_module_loaded() {
        let settings = ConntrackSettings { max_per_core: 1, min: 9, ..Default::default() };
        let wanted = sysctl::conntrack(&settings, 1);
        let root = tempfile::tempdir().expect("a directory");
        let file = root.path().join(MAX);
        let mut loaded = 0;
        let load = async || {
            loaded += 1;
            std::fs::create_dir_all(file.parent().expect("below the root")).expect("directories");
            std::fs::write(&file, "5\n").expect("a file");
            Ok(())
        };
        let written = with_module(root.path(), &wanted, load).await.expect("made");
        assert_eq!((loaded, written.len()), (1, 1));
        assert_eq!(std::fs::read_to_string(&file).expect("a file"), "9");
        let none = async || panic!("there is nothing to load");
        assert_eq!(with_module(root.path(), &wanted, none).await.expect("made"), vec![]);
        let empty = tempfile::tempdir().expect("a directory");
        let error = with_module(empty.path(), &wanted, async || Ok(())).await;
        let text = error.expect_err("still missing").to_string();
        assert!(text.contains("modprobe nf_conntrack"), "{text}");
        assert!(text.contains("conntrack.maxPerCore: 0"), "{text}");
    }
}
