//! A directory of files, and what changed since it was last read.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use super::file::{FileContent, ManifestError, parse};
use crate::model::{Change, Kind, Object, ObjectName, Skip};
use crate::wire::Decoder;

/// The files of a directory, each in its last good version.
pub struct Directory {
    path: PathBuf,
    decoder: Decoder,
    files: BTreeMap<PathBuf, File>,
    /// What was delivered.
    current: HashMap<(Kind, ObjectName), Object>,
}

struct File {
    text: String,
    objects: Vec<Object>,
    /// A version without errors was seen.
    good: bool,
}

/// What reading a directory brought to light.
#[derive(Debug, Default, PartialEq)]
pub struct Findings {
    /// Differences to what was read before.
    pub changes: Vec<Change>,
    /// Unusable files, documents and objects.
    pub errors: Vec<ManifestError>,
    /// Unused parts of objects.
    pub skips: Vec<Skip>,
}

impl Directory {
    /// A directory (or a single file) that was not read yet.
    pub fn new(path: PathBuf, allow_external_ips: bool) -> Directory {
        let decoder = Decoder::new(allow_external_ips);
        Directory { path, decoder, files: BTreeMap::new(), current: HashMap::new() }
    }

    /// Reads what changed. Files are told apart by name and content, so that any way of replacing
    /// them is noticed: written in place, renamed over, a ConfigMap's symlinks swapped.
    pub fn read(&mut self) -> Findings {
        let mut findings = Findings::default();
        let paths = match manifest_paths(&self.path) {
            Ok(paths) => paths,
            Err(error) => {
                findings.errors.push(unreadable(&self.path, &error));
                return findings;
            }
        };
        self.files.retain(|path, _| paths.contains(path));
        for path in paths {
            match std::fs::read_to_string(&path) {
                Ok(text) => self.read_file(path, text, &mut findings),
                // It is gone again; the next event says so.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => findings.errors.push(unreadable(&path, &error)),
            }
        }
        self.compare(&mut findings);
        findings
    }

    /// Everything that is in force, as complete lists.
    pub fn lists(&self) -> Vec<Change> {
        let of = |kind: Kind| {
            let mut objects: Vec<Object> =
                self.current.values().filter(|o| o.kind() == kind).cloned().collect();
            objects.sort_by(|a, b| a.name().cmp(b.name()));
            objects
        };
        Kind::ALL.into_iter().map(|kind| Change::Replace(kind, of(kind))).collect()
    }

    /// Everything that is in force.
    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        self.current.values()
    }

    fn read_file(&mut self, path: PathBuf, text: String, findings: &mut Findings) {
        let known = self.files.get(&path);
        if known.is_some_and(|known| known.text == text) {
            return;
        }
        let had_good = known.is_some_and(|known| known.good);
        let FileContent { objects, skips, errors } = parse(&path, &text, &mut self.decoder);
        let good = errors.is_empty();
        findings.errors.extend(errors);
        match self.files.get_mut(&path) {
            Some(known) if had_good && !good => known.text = text,
            _ => {
                findings.skips.extend(skips);
                self.files.insert(path, File { text, objects, good: good || had_good });
            }
        }
    }

    fn compare(&mut self, findings: &mut Findings) {
        let mut wanted: HashMap<(Kind, ObjectName), (&PathBuf, &Object)> = HashMap::new();
        for (path, file) in &self.files {
            for object in &file.objects {
                let key = (object.kind(), object.name().clone());
                if let Some((first, _)) = wanted.get(&key) {
                    findings.errors.push(ManifestError {
                        file: path.clone(),
                        document: 0,
                        object: Some(format!("{} {}", key.0, key.1)),
                        field: None,
                        reason: format!("already defined in {}, which counts", first.display()),
                    });
                } else {
                    wanted.insert(key, (path, object));
                }
            }
        }
        let gone = self.current.keys().filter(|key| !wanted.contains_key(*key));
        findings.changes.extend(gone.map(|(kind, name)| Change::Delete(*kind, name.clone())));
        let different =
            wanted.iter().filter(|(key, (_, object))| self.current.get(*key) != Some(*object));
        let applied = different.map(|(_, (_, object))| Change::Apply((*object).clone()));
        findings.changes.extend(applied);
        self.current = wanted.into_iter().map(|(key, (_, object))| (key, object.clone())).collect();
    }
}

/// Reads a file or directory once.
pub fn load(path: &Path, allow_external_ips: bool) -> (Vec<Object>, Findings) {
    let mut directory = Directory::new(path.to_owned(), allow_external_ips);
    let mut findings = directory.read();
    findings.changes.clear();
    (directory.objects().cloned().collect(), findings)
}

/// `*.yaml`, `*.yml` and `*.json` of a directory, not hidden, not of its sub-directories; a file
/// stands for itself. Sorted.
fn manifest_paths(path: &Path) -> std::io::Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        let extension = path.extension().and_then(|extension| extension.to_str());
        if !hidden && matches!(extension, Some("yaml" | "yml" | "json")) && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn unreadable(path: &Path, error: &std::io::Error) -> ManifestError {
    ManifestError {
        file: path.to_owned(),
        document: 0,
        object: None,
        field: None,
        reason: error.to_string(),
    }
}
