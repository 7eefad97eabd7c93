//! What was read of a directory, and what is read of it next.
//!
//! Place in the flow: [`super::watch`] says when to look; this module reads what changed, keeps what
//! is in force, and says what is different. It must not know inotify, and never waits.
//!
//! What was read stays in force until the directory that it was read from lost the file, or another
//! directory with manifests is in its place. So nothing is deleted by a directory that is missing or
//! cannot be read, a mount that comes later, a link that leads nowhere, or an empty directory in
//! the place of the one that was moved away, for however long. Another directory counts once nothing
//! in it has changed for [`SETTLED_FOR`]: a copy brings its files one after the other.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fs, io};

use tracing::{error, info, warn};

use super::file::Files;
use super::{ManifestError, file};
use crate::model::{Object, Skip};
use crate::source::Sink;
use crate::wire::Decoder;

/// How long a file has to stay empty before its objects are given up. Between a writer's truncation and
/// its first write are microseconds.
const EMPTY_FOR: Duration = Duration::from_millis(100);

/// How long another directory has to stay as it is before it counts.
pub(super) const SETTLED_FOR: Duration = Duration::from_secs(1);

/// What to look at.
#[derive(Debug, Default)]
pub(super) struct Rescan {
    /// Nothing that was seen before is to be relied on.
    pub at_everything: bool,
    /// Files whose stamp may not show that they changed.
    pub at: HashSet<PathBuf>,
    /// No event may tell who writes where: a file that changed and then stayed is read.
    pub at_stamps: bool,
}

/// What tells one version of a file from another without reading it.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    /// The path is a symbolic link: events do not tell who writes to what it leads to.
    is_link: bool,
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

/// Another directory, and how it looked since then.
#[derive(Debug)]
struct Candidate {
    identity: Identity,
    files: BTreeMap<PathBuf, Option<Stamp>>,
    since: Instant,
}

pub(super) struct Reader {
    directory: PathBuf,
    decoder: Decoder,
    sink: Arc<dyn Sink>,
    pub files: Files,
    stamps: BTreeMap<PathBuf, Stamp>,
    /// The directory that was read.
    identity: Option<Identity>,
    candidate: Option<Candidate>,
    /// Duplicates that were reported and persist.
    reported: HashSet<String>,
    /// Files that could not be read, and why. They may become readable without an event.
    unreadable: HashMap<PathBuf, String>,
    /// Files that were found to have changed; read if they still look so.
    unsettled: BTreeMap<PathBuf, Stamp>,
    /// Files that were written to and not yet closed: what they hold may be half of it.
    pub being_written: HashSet<PathBuf>,
    /// Files that were found empty, and when.
    found_empty: BTreeMap<PathBuf, Instant>,
    is_lost: bool,
}

impl Reader {
    pub fn new(directory: PathBuf, decoder: Decoder, sink: Arc<dyn Sink>) -> Self {
        Reader {
            directory,
            decoder,
            sink,
            files: Files::default(),
            stamps: BTreeMap::new(),
            identity: None,
            candidate: None,
            reported: HashSet::new(),
            unreadable: HashMap::new(),
            unsettled: BTreeMap::new(),
            being_written: HashSet::new(),
            found_empty: BTreeMap::new(),
            is_lost: false,
        }
    }

    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        self.files.objects()
    }

    pub fn deliver_all(&mut self) {
        let sink = Arc::clone(&self.sink);
        self.files.complete().into_iter().for_each(|change| sink.deliver(change));
    }

    pub fn deliver_changes(&mut self) {
        let sink = Arc::clone(&self.sink);
        self.files.changes().into_iter().for_each(|change| sink.deliver(change));
    }

    /// The directory is not the one that was read, or cannot be read.
    pub fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Something was found that has to be looked at once more, soon.
    pub fn is_unsettled(&self) -> bool {
        !self.unsettled.is_empty()
    }

    /// When a file that was found empty is to be believed; `None` if nothing is to be read then.
    pub fn empty_due(&self) -> Option<Instant> {
        if self.is_lost {
            return None;
        }
        let is_still = |(path, _): &(&PathBuf, &Instant)| !self.being_written.contains(*path);
        let waiting = self.found_empty.iter().filter(is_still);
        waiting.map(|(_, found)| *found + EMPTY_FOR).min()
    }

    /// Reads what changed.
    ///
    /// Errors: the directory cannot be read; it was reported.
    pub fn look(&mut self, look: &Rescan, now: Instant) -> io::Result<()> {
        let (identity, existing) = match identified(&self.directory) {
            Ok(found) => found,
            Err(source) => {
                let told = io::Error::new(source.kind(), source.to_string());
                self.lose(&ManifestError::Read { path: self.directory.clone(), source });
                return Err(told);
            }
        };
        let is_other = self.identity.is_some_and(|known| known != identity);
        if is_other && !self.has_settled(identity, &existing, now) {
            self.lose(&ManifestError::Held { directory: self.directory.clone() });
            return Ok(());
        }
        let is_back = std::mem::take(&mut self.is_lost);
        if is_back || is_other {
            info!(directory = %self.directory.display(), "The directory of manifests is back");
            self.being_written.clear();
        }
        self.identity = Some(identity);
        self.candidate = None;
        self.read_all(&existing, look, is_back || is_other, now);
        Ok(())
    }

    fn lose(&mut self, why: &ManifestError) {
        if !std::mem::replace(&mut self.is_lost, true) {
            let reason = std::error::Error::source(why).map(|source| source.to_string());
            warn!(reason, "{why}; what was read stays in force");
        }
    }

    /// Whether another directory has manifests, and has been as it is for a while.
    fn has_settled(
        &mut self,
        identity: Identity,
        existing: &BTreeSet<PathBuf>,
        now: Instant,
    ) -> bool {
        let files: BTreeMap<_, _> =
            existing.iter().map(|path| (path.clone(), stamp(path).ok())).collect();
        match &self.candidate {
            Some(known) if known.identity == identity && known.files == files => {
                !files.is_empty() && now.saturating_duration_since(known.since) >= SETTLED_FOR
            }
            _ => {
                self.candidate = Some(Candidate { identity, files, since: now });
                false
            }
        }
    }

    fn read_all(&mut self, existing: &BTreeSet<PathBuf>, look: &Rescan, anew: bool, now: Instant) {
        for path in existing {
            if !self.being_written.contains(path) {
                self.read(path, look, anew, now);
            }
        }
        self.files.retain(existing);
        self.stamps.retain(|path, _| existing.contains(path));
        self.unreadable.retain(|path, _| existing.contains(path));
        self.unsettled.retain(|path, _| existing.contains(path));
        self.found_empty.retain(|path, _| existing.contains(path));
        self.report_new_duplicates();
    }

    /// Reads a file if there may be something new. What was read before stays in force when that
    /// fails.
    fn read(&mut self, path: &Path, look: &Rescan, anew: bool, now: Instant) {
        let was_empty = self.found_empty.get(path).is_some_and(|found| now >= *found + EMPTY_FOR);
        let is_named = look.at_everything || anew || look.at.contains(path) || was_empty;
        let read = stamp(path).and_then(|stamp| {
            if !is_named && !self.tells_of_another(path, &stamp, look) {
                return Ok(None);
            }
            Ok(Some((stamp, fs::read_to_string(path)?)))
        });
        match read {
            Ok(None) => {}
            Ok(Some((_, text)))
                if text.trim().is_empty() && self.stamps.contains_key(path) && !was_empty =>
            {
                self.found_empty.entry(path.to_owned()).or_insert(now);
            }
            Ok(Some((stamp, text))) => {
                self.found_empty.remove(path);
                self.unreadable.remove(path);
                self.stamps.insert(path.to_owned(), stamp);
                let version = file::parse(path, &text, &mut self.decoder);
                let errors = self.files.put((0, path.into()), version);
                errors.iter().for_each(|error| self.report(error));
            }
            // Gone between the listing and now: its removal is on its way as an event.
            Err(_) if fs::symlink_metadata(path).is_err() => drop(self.found_empty.remove(path)),
            Err(source) => {
                self.found_empty.remove(path);
                let reason = source.to_string();
                if self.unreadable.get(path) != Some(&reason) {
                    self.report(&ManifestError::Read { path: path.to_owned(), source });
                    self.unreadable.insert(path.to_owned(), reason);
                }
            }
        }
    }

    /// Whether there is something to read. The writer of a file that stayed in its place is waited
    /// for: an event tells when it closes the file, or the file stays as it is for a while.
    fn tells_of_another(&mut self, path: &Path, stamp: &Stamp, look: &Rescan) -> bool {
        let known = match self.stamps.get(path) {
            Some(known) if !self.unreadable.contains_key(path) => known,
            _ => return true,
        };
        let is_same_file = (known.device, known.inode) == (stamp.device, stamp.inode);
        if stamp.is_link || !is_same_file {
            return known != stamp;
        }
        if !look.at_stamps || known == stamp {
            return false;
        }
        if self.unsettled.remove(path).is_some_and(|seen| seen == *stamp) {
            return true;
        }
        let seen = Stamp { ..*stamp };
        self.unsettled.insert(path.to_owned(), seen);
        false
    }

    fn report_new_duplicates(&mut self) {
        let mut persisting = HashSet::new();
        for duplicate in self.files.duplicates() {
            let text = duplicate.to_string();
            if !self.reported.contains(&text) {
                self.report(&duplicate);
            }
            persisting.insert(text);
        }
        self.reported = persisting;
    }

    fn report(&self, error: &ManifestError) {
        if let ManifestError::Skipped { file, document, skip } = error {
            let reason = format!("{} ({}, document {document})", skip.reason, file.display());
            return self.sink.skipped(&Skip { reason, ..skip.clone() });
        }
        let reason = std::error::Error::source(error).map(|source| source.to_string());
        error!(reason, "{error}");
    }
}

fn stamp(path: &Path) -> io::Result<Stamp> {
    let metadata = fs::metadata(path)?;
    Ok(Stamp {
        is_link: fs::symlink_metadata(path)?.is_symlink(),
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
    })
}

/// Tells one directory from another in its place: a new one, another mount, another link's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

/// The manifests of a directory, sorted by name. A name that cannot be looked up, such as a link that
/// leads nowhere, is among them: nothing says that it is no file.
///
/// Errors: the directory cannot be read.
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
fn identified(directory: &Path) -> io::Result<(Identity, BTreeSet<PathBuf>)> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Change;

    struct Nowhere;

    impl Sink for Nowhere {
        fn deliver(&self, _: Change) {}
    }

    // A directory was looked for, and reported as missing, ten times a second if it went with an empty
    // file. Nor is there anything to do about one that somebody writes.
    #[test]
    fn an_empty_file_is_no_reason_to_look_in_vain() {
        let mut reader = Reader::new("/d".into(), Decoder::new(true), Arc::new(Nowhere));
        let now = Instant::now();
        assert_eq!(reader.empty_due(), None);
        reader.found_empty.insert("/d/web.yaml".into(), now);
        assert_eq!(reader.empty_due(), Some(now + EMPTY_FOR));
        reader.being_written.insert("/d/web.yaml".into());
        assert_eq!(reader.empty_due(), None);
        reader.being_written.clear();
        assert!(reader.look(&Rescan::default(), now).is_err());
        assert_eq!(reader.empty_due(), None);
    }
}
