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
    /// The node has no usable name.
    #[error(transparent)]
    NodeName(#[from] NodeNameError),
    /// The kernel does not tell its release.
    #[error("asking for the kernel's release")]
    Uname(#[source] nix::errno::Errno),
    /// Kernel, families or CIDRs do not suit.
    #[error("unable to create proxier")]
    Family(#[from] FamilyError),
    /// A setting is of the wrong family.
    #[error(transparent)]
    WrongFamily(#[from] WrongFamily),
    /// No connection to the API server can be set up.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The Node lacks what the configuration needs (B-054).
    #[error("node {node:?}")]
    Node {
        /// Its name.
        node: String,
        /// What is missing.
        #[source]
        source: NodeMissing,
    },
    /// The manifests cannot be followed.
    #[error(transparent)]
    Manifests(#[from] ManifestWatchError),
    /// nf_tables cannot be reached.
    #[error("unable to create proxier")]
    Netlink(#[from] OpenError),
    /// nf_tables cannot be used.
    #[error("unable to create proxier")]
    Probe(#[from] ProbeError),
    /// The threads of netlink cannot be started.
    #[error("unable to create proxier")]
    Programming(#[from] StartError),
    /// Interface addresses cannot be read.
    #[error(transparent)]
    Addresses(#[from] AddressError),
    /// A sysctl cannot be set (B-215).
    #[error("a kernel setting cannot be made: {}", .0.remedy())]
    Sysctl(#[from] SysctlError),
    /// A signal cannot be handled.
    #[error("handling a signal")]
    Signal(#[source] io::Error),
    /// The thread that programs the kernel panicked; its message is on stderr.
    #[error("the thread that programs nf_tables has ended")]
    Panicked,
    /// A thread cannot be started.
    #[error("starting a thread")]
    Thread(#[source] io::Error),
    /// A server's address is taken, and that is fatal by configuration (B-240).
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The configuration file cannot be watched.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// The configuration file changed (B-026, B-027).
    #[error(transparent)]
    ConfigChanged(#[from] Changed),
    /// The podCIDRs changed in NodeCIDR mode (B-058).
    #[error("the node's podCIDRs changed")]
    PodCidrsChanged,
}
