//! Why the agent ends.

use std::io;

use crate::api::ConnectionError;
use crate::config::NodeNameError;
use crate::config::sanity::WrongFamily;
use crate::config::watch::{Changed, WatchError};
use crate::http_server::BindError;
use crate::manifest::WatchError as ManifestWatchError;
use crate::netlink::{OpenError, ProbeError};
use crate::node::addresses::AddressError;
use crate::node::families::FamilyError;
use crate::node::object::NodeMissing;
use crate::sync::StartError;
use crate::sysctl::SysctlError;

/// Why the agent ends, or does not start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error(transparent)]
    NodeName(#[from] NodeNameError),
    #[error("asking for the kernel's release")]
    Uname(#[source] nix::errno::Errno),
    #[error("unable to create proxier")]
    Family(#[from] FamilyError),
    #[error(transparent)]
    WrongFamily(#[from] WrongFamily),
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The Node lacks what the configuration needs (B-054).
    #[error("node {node:?}")]
    Node {
        node: String,
        #[source]
        source: NodeMissing,
    },
    #[error(transparent)]
    Manifests(#[from] ManifestWatchError),
    #[error("unable to create proxier")]
    Netlink(#[from] OpenError),
    #[error("unable to create proxier")]
    Probe(#[from] ProbeError),
    #[error("unable to create proxier")]
    Programming(#[from] StartError),
    #[error(transparent)]
    Addresses(#[from] AddressError),
    /// A sysctl cannot be set (B-215).
    #[error("a kernel setting cannot be made: {}", .0.remedy())]
    Sysctl(#[from] SysctlError),
    #[error("handling a signal")]
    Signal(#[source] io::Error),
    #[error("the thread that programs nf_tables has ended")]
    Panicked,
    #[error("starting a thread")]
    Thread(#[source] io::Error),
    /// A server's address is taken, and that is fatal by configuration (B-240).
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// The configuration file changed (B-026, B-027).
    #[error(transparent)]
    ConfigChanged(#[from] Changed),
    /// The podCIDRs changed in NodeCIDR mode (B-058).
    #[error("the node's podCIDRs changed")]
    PodCidrsChanged,
    /// The Node was deleted (B-059).
    #[error("the Node was deleted")]
    NodeDeleted,
}
