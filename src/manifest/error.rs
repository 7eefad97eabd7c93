//! What can be wrong with manifests.

use std::io;
use std::path::PathBuf;

use crate::model::{Kind, ObjectName, Skip};
use crate::wire::Unreadable;

/// Something in a manifest that is not served, and why. Everything else is.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// A file or a directory cannot be read.
    #[error("reading {}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A document is no YAML or JSON, or no object of Kubernetes.
    #[error("{}, document {document}", file.display())]
    Document {
        /// The file.
        file: PathBuf,
        /// Counted from 1.
        document: usize,
        /// Where and why.
        #[source]
        source: DocumentError,
    },
    /// An object does not have the shape of its kind.
    #[error("{}, document {document}, {object}", file.display())]
    Object {
        /// The file.
        file: PathBuf,
        /// Counted from 1.
        document: usize,
        /// Kind, namespace and name as far as they are readable.
        object: String,
        /// The field and why.
        #[source]
        source: Unreadable,
    },
    /// A part of an object, or the object, is not used.
    #[error("{}, document {document}, {skip}", file.display())]
    Skipped {
        /// The file.
        file: PathBuf,
        /// Counted from 1.
        document: usize,
        /// Object, field and reason.
        skip: Skip,
    },
    /// An object is there more than once; this one is not served.
    #[error("{}, document {document}, {kind} {object}: already in {}", file.display(), first.display())]
    Duplicate {
        /// The file.
        file: PathBuf,
        /// Counted from 1.
        document: usize,
        /// The object's kind.
        kind: Kind,
        /// The object's name.
        object: ObjectName,
        /// The file whose object is served.
        first: PathBuf,
    },
    /// The directory is not the one that was read, and has no manifests or is still being filled.
    #[error("{}: another directory is in its place, empty or being filled", directory.display())]
    Held {
        /// The directory.
        directory: PathBuf,
    },
    /// A file has become malformed; the errors before this one say how.
    #[error("{}: malformed, its last good version stays in force", file.display())]
    Kept {
        /// The file.
        file: PathBuf,
    },
}

/// Why a document is no object.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// No YAML.
    #[error("{0}")]
    Yaml(Box<serde_saphyr::Error>),
    /// No JSON.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// A field that every object has is missing or of the wrong type.
    #[error("{0}: missing, or of the wrong type")]
    Field(&'static str),
}
