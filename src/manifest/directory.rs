//! The files of a directory and the objects that are in force.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::ManifestError;
use super::file::Version;
use crate::model::{Change, Kind, Object, ObjectName};

/// Objects by kind and name.
pub(super) type Objects = BTreeMap<(Kind, ObjectName), Object>;

/// Where a file stands among others: the input it belongs to, and its path.
pub(super) type Place = (usize, PathBuf);

/// Files in the order in which they claim objects.
#[derive(Debug, Default)]
pub(super) struct Files {
    files: BTreeMap<Place, InForce>,
}

/// What is served of a file.
#[derive(Debug)]
struct InForce {
    objects: Vec<(usize, Object)>,
    /// Whether this is a version without fault.
    is_good: bool,
}

impl Files {
    /// Takes a new version of a file, unless it is malformed and there is a good one. Returns what is
    /// to be reported.
    pub fn put(&mut self, place: Place, version: Version) -> Vec<ManifestError> {
        let Version { objects, mut errors, is_malformed } = version;
        if is_malformed && self.files.get(&place).is_some_and(|current| current.is_good) {
            errors.push(ManifestError::Kept { file: place.1 });
        } else {
            self.files.insert(place, InForce { objects, is_good: !is_malformed });
        }
        errors
    }

    /// Forgets all files but these.
    pub fn retain(&mut self, existing: &BTreeSet<PathBuf>) {
        self.files.retain(|(_, path), _| existing.contains(path));
    }

    /// What all files say together, and the objects that lose against an earlier one.
    pub fn merged(&self) -> (Objects, Vec<ManifestError>) {
        let mut owners: BTreeMap<(Kind, &ObjectName), &Path> = BTreeMap::new();
        let mut merged = Objects::new();
        let mut duplicates = Vec::new();
        for ((_, file), in_force) in &self.files {
            for (document, object) in &in_force.objects {
                let (kind, name) = (object.kind(), object.name());
                match owners.get(&(kind, name)) {
                    Some(first) => duplicates.push(ManifestError::Duplicate {
                        file: file.clone(),
                        document: *document,
                        kind,
                        object: name.clone(),
                        first: first.to_path_buf(),
                    }),
                    None => {
                        owners.insert((kind, name), file);
                        merged.insert((kind, name.clone()), object.clone());
                    }
                }
            }
        }
        (merged, duplicates)
    }
}

/// The changes that lead from one state to another, deletions first.
pub(super) fn difference(from: &Objects, to: &Objects) -> Vec<Change> {
    let gone = from.keys().filter(|key| !to.contains_key(*key));
    let gone = gone.map(|(kind, name)| Change::Delete(*kind, name.clone()));
    let new = to.iter().filter(|(key, object)| from.get(*key) != Some(*object));
    gone.chain(new.map(|(_, object)| Change::Apply(object.clone()))).collect()
}

/// The complete state, kind by kind in the order of a cold start.
pub(super) fn complete(objects: &Objects) -> impl Iterator<Item = Change> + '_ {
    Kind::ALL.into_iter().map(move |kind| {
        let of_kind = objects.values().filter(|object| object.kind() == kind);
        Change::Replace(kind, of_kind.cloned().collect())
    })
}

/// The manifests of a directory, sorted by name.
///
/// # Errors
/// If the directory cannot be read.
pub fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if is_manifest(&path) && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// Whether a file is read, going by its name.
pub(super) fn is_manifest(path: &Path) -> bool {
    let is_hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    let is_known = path
        .extension()
        .is_some_and(|extension| extension == "yaml" || extension == "yml" || extension == "json");
    is_known && !is_hidden
}
