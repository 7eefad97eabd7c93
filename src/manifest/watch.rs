//! Follows a directory: inotify says when to look, the directory's contents say what changed.
//!
//! Looking at all of it makes every way of writing equal: in place, by a rename over the file (most
//! editors), by swapping the symbolic link `..data` (ConfigMap volumes). Files that did not change
//! are not read again. There is no delay: a file is read when its writer closes it, and events that
//! arrived meanwhile are taken together. Only a file that turns out empty is looked at twice before
//! that is believed: whoever writes in place empties it first.
//!
//! A directory that disappears is reported and looked for once a second; its objects stay in force.
//! A file behind a symbolic link that leads out of the directory is read again only with the next
//! event inside.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tracing::{error, info};

use super::directory::{self, Files, Objects};
use super::error::ManifestError;
use super::file;
use crate::model::SkipLevel;
use crate::source::Sink;
use crate::wire::Decoder;

/// How often a directory that disappeared is looked for.
const LOST_INTERVAL: Duration = Duration::from_secs(1);

/// How long a file has to stay empty before its objects are given up. Between a writer's truncation and
/// its first write are microseconds.
const EMPTY_FOR: Duration = Duration::from_millis(100);

/// A directory cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// inotify refused, or there is no such directory.
    #[error("watching directory {}", directory.display())]
    Watch {
        /// The directory.
        directory: PathBuf,
        /// Why.
        #[source]
        source: notify::Error,
    },
    /// No thread for it.
    #[error("starting the thread that watches directory {}", directory.display())]
    Thread {
        /// The directory.
        directory: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A directory being followed. Dropping this leaves it followed for the life of the process.
#[derive(Debug)]
pub struct Watching {
    signals: Sender<Signal>,
    thread: JoinHandle<()>,
}

impl Watching {
    /// Ends following; when this returns, nothing more is delivered.
    pub fn stop(self) {
        // Either send reaches the thread or the thread is gone, and a panic of it was printed.
        let _ = self.signals.send(Signal::Stop);
        let _ = self.thread.join();
    }
}

/// Follows a directory from a thread of its own: first one `Replace` per kind with all there is, then
/// only differences. `allow_external_ips`: feature gate AllowServiceExternalIPs.
///
/// Errors: the directory cannot be watched, for example because there is none. What is wrong with
/// its files is logged and never ends it.
pub fn start(
    directory: PathBuf,
    allow_external_ips: bool,
    sink: Arc<dyn Sink>,
) -> Result<Watching, WatchError> {
    let (signals, received) = mpsc::channel();
    let events = signals.clone();
    // Paths of events are absolute, and are compared with those of the listing.
    let directory = std::path::absolute(&directory).unwrap_or(directory);
    let watch_error = |source| WatchError::Watch { directory: directory.clone(), source };
    let mut watcher = notify::recommended_watcher(move |event| {
        // The receiver is gone only after a stop.
        let _ = events.send(Signal::Event(event));
    })
    .map_err(watch_error)?;
    watcher.watch(&directory, RecursiveMode::NonRecursive).map_err(watch_error)?;
    let follower = Follower::new(directory.clone(), Decoder::new(allow_external_ips), sink);
    let thread = thread::Builder::new()
        .name("manifests".to_owned())
        .spawn(move || follower.run(&received, watcher))
        .map_err(|source| WatchError::Thread { directory, source })?;
    Ok(Watching { signals, thread })
}

enum Signal {
    Event(notify::Result<Event>),
    Stop,
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

/// What a batch of events asks for.
#[derive(Default)]
struct Look {
    is_needed: bool,
    /// Nothing that was seen before is to be relied on.
    at_everything: bool,
    /// Files whose stamp may not show that they changed.
    at: HashSet<PathBuf>,
    /// Files that were found empty a while ago: if they still are, that is believed.
    emptied: HashSet<PathBuf>,
    stop: bool,
}

struct Follower {
    directory: PathBuf,
    decoder: Decoder,
    sink: Arc<dyn Sink>,
    files: Files,
    stamps: BTreeMap<PathBuf, Stamp>,
    objects: Objects,
    /// Duplicates that were reported and persist.
    reported: HashSet<String>,
    /// Files that were written to and not yet closed: what they hold may be half of it.
    being_written: HashSet<PathBuf>,
    /// Files that were found empty once.
    found_empty: HashSet<PathBuf>,
    is_lost: bool,
}

impl Follower {
    fn new(directory: PathBuf, decoder: Decoder, sink: Arc<dyn Sink>) -> Self {
        Follower {
            directory,
            decoder,
            sink,
            files: Files::default(),
            stamps: BTreeMap::new(),
            objects: Objects::new(),
            reported: HashSet::new(),
            being_written: HashSet::new(),
            found_empty: HashSet::new(),
            is_lost: false,
        }
    }

    fn run(mut self, signals: &Receiver<Signal>, mut watcher: RecommendedWatcher) {
        self.look(&Look::default());
        for change in directory::complete(&self.objects) {
            self.sink.deliver(change);
        }
        loop {
            let look = self.next(signals, &mut watcher);
            if look.stop {
                return;
            }
            if look.is_needed {
                let before = self.objects.clone();
                self.look(&look);
                for change in directory::difference(&before, &self.objects) {
                    self.sink.deliver(change);
                }
            }
        }
    }

    /// Waits for events and takes all that are there.
    fn next(&mut self, signals: &Receiver<Signal>, watcher: &mut RecommendedWatcher) -> Look {
        let mut look = Look::default();
        let first = match self.patience().map(|patience| signals.recv_timeout(patience)) {
            Some(Err(RecvTimeoutError::Timeout)) if self.is_lost => {
                self.find_again(watcher, &mut look);
                return look;
            }
            Some(Err(RecvTimeoutError::Timeout)) => {
                look.is_needed = true;
                look.emptied = std::mem::take(&mut self.found_empty);
                return look;
            }
            Some(received) => received.ok(),
            None => signals.recv().ok(),
        };
        // No sender left means that nothing can change any more.
        let Some(first) = first else {
            look.stop = true;
            return look;
        };
        self.note(first, &mut look);
        for signal in signals.try_iter() {
            self.note(signal, &mut look);
        }
        look
    }

    /// How long to wait for an event; `None` if there is nothing to do without one.
    fn patience(&self) -> Option<Duration> {
        if self.is_lost {
            return Some(LOST_INTERVAL);
        }
        (!self.found_empty.is_empty()).then_some(EMPTY_FOR)
    }

    fn find_again(&mut self, watcher: &mut RecommendedWatcher, look: &mut Look) {
        // The old watch is on a directory that is gone; forgetting it may fail for that reason.
        let _ = watcher.unwatch(&self.directory);
        if watcher.watch(&self.directory, RecursiveMode::NonRecursive).is_ok() {
            info!(directory = %self.directory.display(), "The directory of manifests is back");
            self.is_lost = false;
            self.being_written.clear();
            (look.is_needed, look.at_everything) = (true, true);
        }
    }

    fn note(&mut self, signal: Signal, look: &mut Look) {
        let event = match signal {
            Signal::Stop => {
                look.stop = true;
                return;
            }
            Signal::Event(Ok(event)) => event,
            Signal::Event(Err(error)) => {
                error!(%error, "Events of manifests may be lost, looking at all of them");
                (look.is_needed, look.at_everything) = (true, true);
                return;
            }
        };
        if event.need_rescan() {
            self.being_written.clear();
            (look.is_needed, look.at_everything) = (true, true);
        }
        match event.kind {
            EventKind::Modify(ModifyKind::Data(_)) => self.being_written.extend(event.paths),
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => {
                look.is_needed = true;
                for path in event.paths {
                    self.being_written.remove(&path);
                    look.at.insert(path);
                }
            }
            EventKind::Create(_) => look.is_needed = true,
            EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)) => {
                look.is_needed = true;
                // The watch is on what the directory's path led to, not on the path.
                self.is_lost |= event.paths.contains(&self.directory);
                for path in event.paths {
                    self.being_written.remove(&path);
                }
            }
            // Attributes: a file may have become readable.
            EventKind::Modify(_) => look.is_needed = true,
            _ => {}
        }
    }

    /// Reads what changed and brings `objects` up to date.
    fn look(&mut self, look: &Look) {
        let existing = match directory::list(&self.directory) {
            Ok(files) => BTreeSet::from_iter(files),
            Err(source) => {
                self.is_lost = true;
                report(&ManifestError::Read { path: self.directory.clone(), source });
                return;
            }
        };
        for path in &existing {
            if !self.being_written.contains(path) {
                self.read(path, look);
            }
        }
        self.files.retain(&existing);
        self.stamps.retain(|path, _| existing.contains(path));
        let (objects, duplicates) = self.files.merged();
        self.objects = objects;
        self.report_new(&duplicates);
    }

    /// Reads a file if it is named or its stamp tells of another. What was read before stays in force
    /// when that fails.
    fn read(&mut self, path: &Path, look: &Look) {
        let was_empty = look.emptied.contains(path);
        let is_named = look.at_everything || look.at.contains(path) || was_empty;
        let read = stamp(path).and_then(|stamp| {
            if !is_named
                && self.stamps.get(path).is_some_and(|known| !stamp.tells_of_another(known))
            {
                return Ok(None);
            }
            Ok(Some((stamp, fs::read_to_string(path)?)))
        });
        match read {
            Ok(None) => {}
            Ok(Some((_, text)))
                if text.trim().is_empty() && self.stamps.contains_key(path) && !was_empty =>
            {
                self.found_empty.insert(path.to_owned());
            }
            Ok(Some((stamp, text))) => {
                self.found_empty.remove(path);
                self.stamps.insert(path.to_owned(), stamp);
                let version = file::parse(path, &text, &mut self.decoder);
                self.files.put((0, path.to_owned()), version).iter().for_each(report);
            }
            // Gone between the listing and now: its removal is on its way as an event.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => {
                // It may become readable without an event that names it.
                self.stamps.remove(path);
                report(&ManifestError::Read { path: path.to_owned(), source });
            }
        }
    }

    fn report_new(&mut self, duplicates: &[ManifestError]) {
        let mut persisting = HashSet::new();
        for duplicate in duplicates {
            let text = duplicate.to_string();
            if !self.reported.contains(&text) {
                report(duplicate);
            }
            persisting.insert(text);
        }
        self.reported = persisting;
    }
}

impl Stamp {
    /// Whether there is something to read. The writer of a file that stayed in its place is waited
    /// for: an event tells when it closes the file.
    fn tells_of_another(&self, known: &Stamp) -> bool {
        let is_same_file = (self.device, self.inode) == (known.device, known.inode);
        if self.is_link { self != known } else { !is_same_file }
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

fn report(error: &ManifestError) {
    let reason = std::error::Error::source(error).map(|source| source.to_string());
    match error {
        ManifestError::Skipped { skip, .. } if skip.level == SkipLevel::Info => info!("{error}"),
        _ => error!(reason, "{error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Change;

    struct Nowhere;

    impl Sink for Nowhere {
        fn deliver(&self, _: Change) {}
    }

    // It was looked for, and reported as missing, ten times a second if it went with an empty file.
    #[test]
    fn a_lost_directory_is_looked_for_no_more_often_for_an_empty_file() {
        let mut follower = Follower::new("/d".into(), Decoder::new(true), Arc::new(Nowhere));
        assert_eq!(follower.patience(), None);
        follower.found_empty.insert("/d/web.yaml".into());
        assert_eq!(follower.patience(), Some(EMPTY_FOR));
        follower.is_lost = true;
        assert_eq!(follower.patience(), Some(LOST_INTERVAL));
    }
}
