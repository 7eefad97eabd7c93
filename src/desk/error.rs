//! Why nothing could be asked, and why a node was not reached.

use std::io;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::api::ConnectionError;
use crate::text::with_causes;

/// Why nothing could be asked.
#[derive(Debug, thiserror::Error)]
pub enum DeskError {
    /// No runtime.
    #[error("starting the runtime")]
    Runtime(#[source] io::Error),
    /// No client of the API server.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The API server did not say which nodes or agents there are.
    #[error("{what}")]
    Api {
        /// What was done: `listing the nodes`.
        what: String,
        /// The API server's answer, or why there is none.
        #[source]
        source: Box<kube::Error>,
    },
    /// It took too long.
    #[error("{what}: no answer within {} s", patience.as_secs_f32())]
    Late {
        /// As above.
        what: String,
        /// How long it was waited for.
        patience: Duration,
    },
    /// There is nobody to ask.
    #[error("no agent in namespace {namespace} with labels {selector}")]
    NoAgents {
        /// Where it was looked for.
        namespace: String,
        /// Which labels.
        selector: String,
    },
    /// What somebody wrote means nothing here.
    #[error("{text:?}: {reason}")]
    Unclear {
        /// As written.
        text: String,
        /// Why.
        reason: String,
    },
    /// No such node is among those that are meant.
    #[error("there is no node {0}")]
    NoSuchNode(String),
    /// The archive could not be written.
    #[error("writing {}", path.display())]
    Archive {
        /// The file.
        path: std::path::PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The answer could not be written.
    #[error("writing the output")]
    Write(#[source] io::Error),
}

impl DeskError {
    /// What to do next, a sentence.
    pub fn advice(&self) -> Option<&'static str> {
        match self {
            DeskError::Api { source, .. } if is_forbidden(source) => Some(
                "charts/README.md names the rights that kubectl kubeweir needs, and a role that has them.",
            ),
            DeskError::NoAgents { .. } => {
                Some("Name them with --agents-namespace and --agents-selector.")
            }
            _ => None,
        }
    }
}

/// Whether the user may not do it.
pub fn is_forbidden(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 403)
}

/// Why a node has no answer.
#[derive(Debug, thiserror::Error)]
pub enum Unreached {
    /// No agent is there.
    #[error("no pod of an agent is on this node")]
    NoPod,
    /// The pod is there and its container is not running.
    #[error("its agent does not run: pod {pod}: {why}")]
    NotRunning {
        /// `namespace/name`.
        pod: String,
        /// As the kubelet says it.
        why: String,
    },
    /// The node did not answer.
    #[error("pod {pod}: no answer within {} s", patience.as_secs_f32())]
    Late {
        /// `namespace/name`.
        pod: String,
        /// How long it was waited for.
        patience: Duration,
    },
    /// The API server or the node refused to run the command.
    #[error("pod {pod}: running kubeweir there")]
    Refused {
        /// `namespace/name`.
        pod: String,
        /// The reason given.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The command ran and could not do it.
    #[error("kubeweir {command} there: {said}")]
    Failed {
        /// `status`, `diff`.
        command: String,
        /// Its error.
        said: String,
    },
    /// The answer is not what this version knows.
    #[error("kubeweir {command} there has another version's answer")]
    Strange {
        /// `status`, `diff`.
        command: String,
        /// Where it differs.
        #[source]
        source: serde_json::Error,
    },
}

impl Serialize for Unreached {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&with_causes(self))
    }
}
