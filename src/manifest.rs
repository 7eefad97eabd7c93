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

mod directory;
mod error;
mod file;
mod files;
mod reader;
mod watch;

#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};

pub use directory::list;
pub use error::{DocumentError, ManifestError};
pub use watch::{Directory, WatchError, Watching, start};

use crate::model::Object;
use crate::wire::Decoder;
use files::Files;

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
    directory::list(path).unwrap_or_else(|source| {
        errors.push(ManifestError::Read { path: path.to_owned(), source });
        Vec::new()
    })
}
