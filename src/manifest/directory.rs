//! A directory, as it is now: which one it is, and its manifests.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Tells one directory from another in its place: a new one, another mount, another link's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    inode: u64,
}

/// The manifests of a directory, sorted by name. A name that cannot be looked up, such as a link that
/// leads nowhere, is among them: nothing says that it is no file.
///
/// # Errors
/// If the directory cannot be read.
pub fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if is_manifest(&path) && fs::metadata(&path).map_or(true, |found| found.is_file()) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The same, and which directory it is.
pub(super) fn identified(directory: &Path) -> io::Result<(Identity, BTreeSet<PathBuf>)> {
    let before = identity(directory)?;
    let files = list(directory)?.into_iter().collect();
    if identity(directory)? == before {
        return Ok((before, files));
    }
    Err(io::Error::new(io::ErrorKind::Interrupted, "replaced while it was read"))
}

fn identity(directory: &Path) -> io::Result<Identity> {
    let metadata = fs::metadata(directory)?;
    Ok(Identity { device: metadata.dev(), inode: metadata.ino() })
}

/// Whether a file is read, going by its name.
fn is_manifest(path: &Path) -> bool {
    let is_hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let is_known = path
        .extension()
        .is_some_and(|extension| extension == "yaml" || extension == "yml" || extension == "json");
    is_known && !is_hidden
}
