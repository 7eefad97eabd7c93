//! Why a sub-command could not be carried out, and what to do about it.

use std::io;
use std::path::PathBuf;

use crate::api::{ConnectionError, PodError};
use crate::cli::Exit;
use crate::config::{CompleteError, NodeNameError, Violations};
use crate::inspect::listing::NoListing;
use crate::inspect::wanted::Refused;
use crate::kernel::DumpError;
use crate::model::Family;
use crate::netlink::OpenError;
use crate::netlink::conntrack::ConntrackError;
use crate::node::addresses::{AddressError, RouteError};
use crate::node::families::FamilyError;
use crate::sync::SyncError;

/// Why a sub-command could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("starting the runtime")]
    Runtime(#[source] io::Error),
    #[error("reading {}", path.display())]
    Read {
        /// The file; `-` is stdin.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("writing the output")]
    Write(#[source] io::Error),
    /// Some manifests are unusable; they are listed already.
    #[error("{0} unusable manifests")]
    Manifests(usize),
    #[error("listing the processes in /proc")]
    Processes(#[source] io::Error),
    #[error("no agent of this program runs in this network namespace")]
    NoAgent,
    #[error("no objects to look at")]
    NoSource,
    #[error("{}", .0.stderr.trim())]
    Flags(Exit),
    #[error(transparent)]
    Complete(#[from] CompleteError),
    #[error(transparent)]
    Invalid(#[from] Violations),
    #[error(transparent)]
    NodeName(#[from] NodeNameError),
    #[error(transparent)]
    Family(#[from] FamilyError),
    #[error("{0:?} is not NAMESPACE/NAME")]
    ObjectName(String),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error("the API server of {access} did not deliver its lists within {seconds} s: {failure}")]
    ApiTimeout {
        /// The kubeconfig, or what stands for one.
        access: String,
        seconds: u64,
        /// The last one, with its causes.
        failure: String,
    },
    #[error("looking the pod up")]
    Pod(#[from] PodError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("replacing table {} kube-proxy", family.nft())]
    Release {
        family: Family,
        #[source]
        source: SyncError,
    },
    #[error(transparent)]
    Dump(#[from] DumpError),
    #[error(transparent)]
    Addresses(#[from] AddressError),
    #[error(transparent)]
    Route(#[from] RouteError),
    #[error("{} is not what kubeweir render or nft list prints", path.display())]
    Listing {
        path: PathBuf,
        #[source]
        source: NoListing,
    },
    #[error("{text:?}: {reason}")]
    Endpoint { text: String, reason: String },
    #[error("{0:?} is no Service, endpoint or client")]
    Selector(String),
    #[error("the kernel's tables have no Service {0}")]
    NoSuchService(String),
    #[error(transparent)]
    Conntrack(#[from] ConntrackError),
    #[error("asking the agent at {address}{path}")]
    Agent {
        address: String,
        path: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the agent at {0} does not count connections")]
    NoCounters(String),
}

impl CommandError {
    /// What to do next, a sentence.
    pub fn advice(&self) -> Option<&'static str> {
        Some(match self {
            CommandError::NoSource => {
                "Name manifests with -f FILE, -f DIR or -f -, a cluster with --kubeconfig FILE, or those of the agent that runs here with --agent."
            }
            CommandError::NoAgent => {
                "Run this in the agent's container, or leave --agent away and name addresses and files."
            }
            CommandError::Manifests(_) => "Mend or leave out the manifests named above.",
            CommandError::ObjectName(_) => "Write it as kubectl does, for example default/web.",
            CommandError::Dump(DumpError::Io { source, .. })
            | CommandError::Release {
                source: SyncError::Dump(DumpError::Io { source, .. }), ..
            } if source.kind() == io::ErrorKind::PermissionDenied => {
                "Run this as root (CAP_NET_ADMIN) in the node's network namespace."
            }
            CommandError::Endpoint { .. } => {
                "Write a pod as default/web-0, a destination as 10.96.0.10:80/tcp, [fd00::1]:80 or default/web:http."
            }
            CommandError::Selector(_) => {
                "Write a Service as default/web or default/web:http, an endpoint as 10.244.0.10:8080 or [fd00::10]:8080, a client as 10.244.0.11."
            }
            CommandError::NoSuchService(_) => {
                "kubeweir diff compares the tables with the cluster; flows without a name lists those of every Service."
            }
            CommandError::Conntrack(
                ConntrackError::List { source, .. } | ConntrackError::Watch(source),
            ) if source.kind() == io::ErrorKind::PermissionDenied => {
                "Run this as root (CAP_NET_ADMIN) in the node's network namespace."
            }
            CommandError::Route(_) => {
                "Name the interface that the packet arrives on with --interface NAME."
            }
            CommandError::Agent { .. } => {
                "Is the agent running? Name its metrics address with --address IP:PORT."
            }
            CommandError::NoCounters(_) => {
                "Start the agent with --service-counters to count new connections by service."
            }
            CommandError::Listing { .. } => {
                "Make both files with kubeweir render, or with nft list table."
            }
            CommandError::ApiTimeout { .. } => {
                "Check the server in the kubeconfig and the permissions of its user: list on services, endpointslices, nodes and servicecidrs."
            }
            _ => return None,
        })
    }
}
