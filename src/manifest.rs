//! Objects from manifests: files and directories, read once or followed.
//!
//! Place in the flow: stands where [`crate::api`] stands otherwise. [`load`] reads once, for
//! `kubeweir render`; [`Directory`] is read, followed, and delivers changes to a
//! [`crate::source::Sink`]. Decoding is [`crate::wire`]'s. Knows nothing of what objects are for.
//!
//! What is read: `*.yaml`, `*.yml` and `*.json` directly in the directory, symbolic links followed,
//! hidden files (a leading dot) and subdirectories not. A file holds any number of documents; a
//! document is an object or a List (`List`, `ServiceList` ..., as `kubectl get -o yaml` prints them).
//! Kinds that Kubeweir does not use are passed over, and so are objects that the API server's
//! selectors would keep back (B-069, B-070). A missing namespace is `default`.
//!
//! What is wrong is reported, and everything else is served ([`ManifestError`]):
//!
//! - A field that cannot be used is left out, its object is served without it.
//! - A file that does not parse, or with an object that cannot be used at all, is malformed. Its
//!   last good version stays in force as a whole; without one its good objects are served.
//! - Of objects with the same name, the one in the first file by name is served.
//!
//! A directory that is missing, cannot be read, or is replaced by an empty one deletes nothing.

mod file;
mod files;
mod reader;
mod watch;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::model::{Kind, Object, ObjectName, Skip};
use crate::wire::{Decoder, Unreadable};
use files::Files;

pub use reader::list;
pub use watch::{Directory, WatchError, Watching, start};

/// Something to read manifests from.
#[derive(Debug, Clone)]
pub enum Input {
    /// A file of any name, or a directory.
    Path(PathBuf),
    /// Text that comes from elsewhere, such as standard input.
    Text {
        /// What reports call it.
        name: String,
        /// YAML or JSON.
        text: String,
    },
}

/// Reads a file or a directory once. See [`load_all`].
pub fn load(path: &Path, allow_external_ips: bool) -> (Vec<Object>, Vec<ManifestError>) {
    load_all(&[Input::Path(path.to_owned())], allow_external_ips)
}

/// Reads all inputs once; of objects with the same name the first input's is used.
///
/// `allow_external_ips`: feature gate AllowServiceExternalIPs. Shape of the result: objects sorted
/// by kind and name, without duplicates; what could not be read or used is among the errors.
pub fn load_all(inputs: &[Input], allow_external_ips: bool) -> (Vec<Object>, Vec<ManifestError>) {
    let mut decoder = Decoder::new(allow_external_ips);
    let mut files = Files::default();
    let mut errors = Vec::new();
    for (order, input) in inputs.iter().enumerate() {
        let mut add = |path: &Path, text: &str| {
            files.put((order, path.into()), file::parse(path, text, &mut decoder))
        };
        match input {
            Input::Text { name, text } => errors.extend(add(Path::new(name), text)),
            Input::Path(path) => {
                for file in files_of(path, &mut errors) {
                    match fs::read_to_string(&file) {
                        Ok(text) => errors.extend(add(&file, &text)),
                        Err(source) => errors.push(ManifestError::Read { path: file, source }),
                    }
                }
            }
        }
    }
    errors.extend(files.duplicates());
    (files.objects().cloned().collect(), errors)
}

/// The file itself, or the manifests of a directory.
fn files_of(path: &Path, errors: &mut Vec<ManifestError>) -> Vec<PathBuf> {
    if !path.is_dir() {
        return vec![path.to_owned()];
    }
    list(path).unwrap_or_else(|source| {
        errors.push(ManifestError::Read { path: path.to_owned(), source });
        Vec::new()
    })
}

/// Something in a manifest that is not served, and why. Everything else is.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// A file or a directory cannot be read.
    #[error("reading {}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A document is no YAML or JSON, or no object of Kubernetes.
    #[error("{}, document {document}", file.display())]
    Document {
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
        file: PathBuf,
        /// Counted from 1.
        document: usize,
        /// Object, field and reason.
        skip: Skip,
    },
    /// An object is there more than once; this one is not served.
    #[error("{}, document {document}, {kind} {object}: already in {}", file.display(), first.display())]
    Duplicate {
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
    Held { directory: PathBuf },
    /// A file has become malformed; the errors before this one say how.
    #[error("{}: malformed, its last good version stays in force", file.display())]
    Kept { file: PathBuf },
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
