//! The objects of files, and which of them are in force. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ManifestError;
use super::file::Version;
use crate::model::{Change, Kind, Object, ObjectName};

type Key = (Kind, ObjectName);

/// Where a file stands among others: the input it belongs to, and its path.
pub(super) type Place = (usize, Arc<Path>);

/// Where an object stands: its file, and its number there.
type Position = (Place, usize);

/// Files in the order in which they claim objects.
#[derive(Debug, Default)]
pub(super) struct Files {
    files: BTreeMap<Place, File>,
    /// Of the claims of one object, the first is in force.
    claims: BTreeMap<Key, BTreeMap<Position, Claim>>,
    /// What was in force of the objects whose claims changed.
    before: BTreeMap<Key, Option<Object>>,
}

#[derive(Debug)]
struct Claim {
    document: usize,
    object: Object,
}

#[derive(Debug)]
struct File {
    keys: Vec<Key>,
    /// Whether this is a version without fault.
    is_good: bool,
}

impl Files {
    /// Takes a new version of a file, unless it is malformed and there is a good one. Returns what is
    /// to be reported.
    pub fn put(&mut self, place: Place, version: Version) -> Vec<ManifestError> {
        let Version { objects, mut errors, is_malformed } = version;
        if is_malformed && self.files.get(&place).is_some_and(|current| current.is_good) {
            errors.push(ManifestError::Kept { file: place.1.to_path_buf() });
            return errors;
        }
        self.remove(&place);
        let mut keys = Vec::with_capacity(objects.len());
        for (number, (document, object)) in objects.into_iter().enumerate() {
            let key = (object.kind(), object.name().clone());
            self.note(&key);
            let claims = self.claims.entry(key.clone()).or_default();
            claims.insert((place.clone(), number), Claim { document, object });
            keys.push(key);
        }
        self.files.insert(place, File { keys, is_good: !is_malformed });
        errors
    }

    /// Forgets all files but these.
    pub fn retain(&mut self, existing: &BTreeSet<PathBuf>) {
        let gone = self.files.keys().filter(|(_, path)| !existing.contains(&**path));
        let gone: Vec<Place> = gone.cloned().collect();
        gone.iter().for_each(|place| self.remove(place));
    }

    fn remove(&mut self, place: &Place) {
        let Some(file) = self.files.remove(place) else { return };
        for (number, key) in file.keys.into_iter().enumerate() {
            self.note(&key);
            if let Some(claims) = self.claims.get_mut(&key) {
                claims.remove(&(place.clone(), number));
                if claims.is_empty() {
                    self.claims.remove(&key);
                }
            }
        }
    }

    fn note(&mut self, key: &Key) {
        if !self.before.contains_key(key) {
            self.before.insert(key.clone(), self.in_force(key).cloned());
        }
    }

    fn in_force(&self, key: &Key) -> Option<&Object> {
        Some(&self.claims.get(key)?.first_key_value()?.1.object)
    }

    /// The changes since the last call: deletions first, Services last, so that none is ever there
    /// without the endpoints that came with it.
    pub fn changes(&mut self) -> Vec<Change> {
        let (mut gone, mut new) = (Vec::new(), Vec::new());
        for (key, before) in std::mem::take(&mut self.before) {
            match self.in_force(&key) {
                now if now == before.as_ref() => {}
                Some(object) => new.push(Change::Apply(object.clone())),
                None => gone.push(Change::Delete(key.0, key.1)),
            }
        }
        new.sort_by_key(|change| matches!(change, Change::Apply(Object::Service(_))));
        gone.append(&mut new);
        gone
    }

    /// The complete state, kind by kind in the order of a cold start. Counts as all changes so far.
    pub fn complete(&mut self) -> Vec<Change> {
        self.before.clear();
        let of_kind =
            |kind| self.objects().filter(|object| object.kind() == kind).cloned().collect();
        Kind::ALL.map(|kind| Change::Replace(kind, of_kind(kind))).into()
    }

    /// What all files say together, by kind and name.
    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        self.claims.values().filter_map(|claims| Some(&claims.first_key_value()?.1.object))
    }

    /// The objects that lose against an earlier one.
    pub fn duplicates(&self) -> Vec<ManifestError> {
        let mut duplicates = Vec::new();
        for ((kind, object), claims) in &self.claims {
            let Some((((_, first), _), _)) = claims.first_key_value() else { continue };
            for (((_, file), _), claim) in claims.iter().skip(1) {
                duplicates.push(ManifestError::Duplicate {
                    file: file.to_path_buf(),
                    document: claim.document,
                    kind: *kind,
                    object: object.clone(),
                    first: first.to_path_buf(),
                });
            }
        }
        duplicates
    }
}
