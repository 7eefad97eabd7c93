//! Why a sub-command could not be carried out, and what to do about it.

use std::io;
use std::path::PathBuf;

use crate::api::{ConnectionError, PodError};
use crate::cli::Exit;
use crate::config::{CompleteError, NodeNameError, Violations};
use crate::inspect::listing::NoListing;
use crate::inspect::wanted::Refused;
use crate::model::Family;
use crate::netlink::OpenError;
use crate::node::addresses::AddressError;
use crate::node::families::FamilyError;
use crate::node::route::RouteError;
use crate::sync::SyncError;
use crate::transaction::DumpError;

/// Why a sub-command could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// No runtime.
    #[error("starting the runtime")]
    Runtime(#[source] io::Error),
    /// A file cannot be read.
    #[error("reading {}", path.display())]
    Read {
        /// The file; `-` is stdin.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The output cannot be written.
    #[error("writing the output")]
    Write(#[source] io::Error),
    /// Some manifests are unusable; they are listed already.
    #[error("{0} unusable manifests")]
    Manifests(usize),
    /// No source of objects was named.
    #[error("no objects to look at")]
    NoSource,
    /// A flag of the node's set-up.
    #[error("{}", .0.stderr.trim())]
    Flags(Exit),
    /// The configuration cannot be completed.
    #[error(transparent)]
    Complete(#[from] CompleteError),
    /// The configuration is invalid.
    #[error(transparent)]
    Invalid(#[from] Violations),
    /// No node name.
    #[error(transparent)]
    NodeName(#[from] NodeNameError),
    /// The primary family is not programmed.
    #[error(transparent)]
    Family(#[from] FamilyError),
    /// No name of an object.
    #[error("{0:?} is not NAMESPACE/NAME")]
    ObjectName(String),
    /// The objects make a table the kernel would refuse.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// No connection to the API server.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The API server did not deliver in time.
    #[error("the API server at {host} did not deliver its lists within {seconds} s")]
    ApiTimeout {
        /// Where it is.
        host: String,
        /// How long was waited.
        seconds: u64,
    },
    /// A pod cannot be looked up.
    #[error("looking the pod up")]
    Pod(#[from] PodError),
    /// nf_tables cannot be reached.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The table cannot be replaced.
    #[error("replacing table {} kube-proxy", family.nft())]
    Release {
        /// Of which family.
        family: Family,
        /// Why.
        #[source]
        source: SyncError,
    },
    /// The table cannot be read.
    #[error(transparent)]
    Dump(#[from] DumpError),
    /// The node's addresses cannot be read.
    #[error(transparent)]
    Addresses(#[from] AddressError),
    /// The interface is not known.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// A file is no output of `kubeweir render`.
    #[error("{} is not what kubeweir render or nft list prints", path.display())]
    Listing {
        /// The file.
        path: PathBuf,
        /// Where it does not fit.
        #[source]
        source: NoListing,
    },
    /// Something is neither an address nor a known name.
    #[error("{text:?}: {reason}")]
    Endpoint {
        /// As given.
        text: String,
        /// What is wrong.
        reason: String,
    },
    /// The agent does not answer.
    #[error("asking the agent at {address}{path}")]
    Agent {
        /// Its metrics address.
        address: String,
        /// Which page.
        path: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The agent does not count.
    #[error("the agent at {0} does not count connections")]
    NoCounters(String),
}

impl CommandError {
    /// What to do next, a sentence.
    pub fn advice(&self) -> Option<&'static str> {
        Some(match self {
            CommandError::NoSource => {
                "Name manifests with -f FILE, -f DIR or -f -, or a cluster with --kubeconfig FILE."
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
