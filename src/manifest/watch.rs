//! Follows a directory: inotify says when to look, [`super::reader`] what changed.
//!
//! Looking at all of it makes every way of writing equal: in place, by a rename over the file (most
//! editors), by swapping the symbolic link `..data` (ConfigMap volumes). Files that did not change
//! are not read again. There is no delay: a file is read when its writer closes it, and events that
//! arrived meanwhile are taken together. Only a file that turns out empty is looked at twice before
//! that is believed: whoever writes in place empties it first.
//!
//! inotify is silent on some file systems (NFS, 9p), about links that lead out of the directory, and
//! where it has no instance left. So the directory is looked at now and then besides.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tracing::{error, warn};

use super::reader::{Reader, Rescan, SETTLED_FOR};
use crate::model::Object;
use crate::source::Sink;
use crate::wire::Decoder;

/// How often to look although inotify says nothing.
const NOW_AND_THEN: Duration = Duration::from_secs(10);

/// How often to look where nothing is followed by inotify.
const WITHOUT_INOTIFY: Duration = Duration::from_secs(2);

/// Events that are taken together at most.
const AT_ONCE: usize = 10_000;

/// A directory cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    #[error("watching directory {}", directory.display())]
    Read {
        directory: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("starting the thread that watches directory {}", directory.display())]
    Thread {
        directory: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// A directory that was read, and of which nothing was delivered.
pub struct Directory {
    path: PathBuf,
    reader: Reader,
    watcher: Option<RecommendedWatcher>,
    signals: Sender<Signal>,
    received: Receiver<Signal>,
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

#[derive(Debug)]
enum Signal {
    Event(notify::Result<Event>),
    Stop,
}

impl Directory {
    /// Reads a directory. `allow_external_ips`: feature gate AllowServiceExternalIPs.
    ///
    /// Errors: there is no such directory. What is wrong with its files goes to the log and to `sink`.
    pub fn open(
        directory: PathBuf,
        allow_external_ips: bool,
        sink: Arc<dyn Sink>,
    ) -> Result<Self, WatchError> {
        let (signals, received) = mpsc::channel();
        // Paths of events are absolute, and are compared with those of the listing.
        let path = std::path::absolute(&directory).unwrap_or(directory);
        // First, so that nothing is missed between the reading and the events.
        let watcher = watcher(signals.clone()).and_then(|mut watcher| {
            watcher.watch(&path, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        let mut reader = Reader::new(path.clone(), Decoder::new(allow_external_ips), sink);
        reader
            .look(&Rescan::default(), Instant::now())
            .map_err(|source| WatchError::Read { directory: path.clone(), source })?;
        let watcher = match watcher {
            Ok(watcher) => Some(watcher),
            Err(reason) => {
                warn!(directory = %path.display(), %reason, "Following manifests without inotify");
                None
            }
        };
        Ok(Directory { path, reader, watcher, signals, received })
    }

    /// The objects that were read.
    pub fn objects(&self) -> impl Iterator<Item = &Object> {
        self.reader.objects()
    }

    /// Follows it from a thread of its own: first one `Replace` per kind with all there is, then only
    /// differences. What becomes wrong never ends it.
    pub fn follow(self) -> Result<Watching, WatchError> {
        let Directory { path, reader, watcher, signals, received } = self;
        let directory = path.clone();
        let next_look = Instant::now() + NOW_AND_THEN;
        let follower = Follower { path, reader, watcher, next_look, _signals: signals.clone() };
        let thread = thread::Builder::new()
            .name("manifests".to_owned())
            .spawn(move || follower.run(&received))
            .map_err(|source| WatchError::Thread { directory, source })?;
        Ok(Watching { signals, thread })
    }
}

/// Reads a directory and follows it; see [`Directory`].
pub fn start(
    directory: PathBuf,
    allow_external_ips: bool,
    sink: Arc<dyn Sink>,
) -> Result<Watching, WatchError> {
    Directory::open(directory, allow_external_ips, sink)?.follow()
}

fn watcher(events: Sender<Signal>) -> notify::Result<RecommendedWatcher> {
    notify::recommended_watcher(move |event| {
        // The receiver is gone only after a stop.
        let _ = events.send(Signal::Event(event));
    })
}

struct Follower {
    path: PathBuf,
    reader: Reader,
    watcher: Option<RecommendedWatcher>,
    /// When to look without an event. No event postpones it.
    next_look: Instant,
    /// Without inotify nobody else may have one, and the wait would end.
    _signals: Sender<Signal>,
}

impl Follower {
    fn run(mut self, signals: &Receiver<Signal>) {
        self.reader.deliver_all();
        self.next_look = Instant::now() + self.interval();
        loop {
            let due = self.reader.empty_due().map_or(self.next_look, |due| due.min(self.next_look));
            let first = match signals.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(signal) => Some(signal),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => unreachable!("it has a sender itself"),
            };
            let mut look = Rescan::default();
            let mut is_needed = false;
            for signal in first.into_iter().chain(signals.try_iter().take(AT_ONCE)) {
                match signal {
                    Signal::Stop => return,
                    Signal::Event(event) => is_needed |= self.note(event, &mut look),
                }
            }
            let now = Instant::now();
            if is_needed || now >= due {
                self.look(look, now);
            }
        }
    }

    fn look(&mut self, mut look: Rescan, now: Instant) {
        look.at_stamps = now >= self.next_look;
        let was_lost = self.reader.is_lost();
        // It was reported, and is tried again.
        let _ = self.reader.look(&look, now);
        self.reader.deliver_changes();
        let next = now + self.interval();
        self.next_look = if look.at_stamps { next } else { next.min(self.next_look) };
        if was_lost && !self.reader.is_lost() {
            self.watch_anew();
            // What happened before it was watched.
            self.next_look = now;
        }
    }

    fn interval(&self) -> Duration {
        if self.reader.is_lost() || self.reader.is_unsettled() {
            return SETTLED_FOR;
        }
        if self.watcher.is_some() { NOW_AND_THEN } else { WITHOUT_INOTIFY }
    }

    /// The watch is on what the directory's path led to, not on the path.
    fn watch_anew(&mut self) {
        let Some(watcher) = &mut self.watcher else { return };
        // Forgetting a directory that is gone may fail for that reason.
        let _ = watcher.unwatch(&self.path);
        if let Err(reason) = watcher.watch(&self.path, RecursiveMode::NonRecursive) {
            warn!(directory = %self.path.display(), %reason, "Following manifests without inotify");
            self.watcher = None;
        }
    }

    /// Whether an event asks for a look, and at what.
    fn note(&mut self, event: notify::Result<Event>, look: &mut Rescan) -> bool {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                error!(%error, "Events of manifests may be lost, looking at all of them");
                look.at_everything = true;
                return true;
            }
        };
        let being_written = &mut self.reader.being_written;
        if event.need_rescan() {
            being_written.clear();
            look.at_everything = true;
        }
        match event.kind {
            EventKind::Modify(ModifyKind::Data(_)) => being_written.extend(event.paths),
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => {
                for path in event.paths {
                    being_written.remove(&path);
                    look.at.insert(path);
                }
                return true;
            }
            EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)) => {
                for path in event.paths {
                    being_written.remove(&path);
                }
                return true;
            }
            // Attributes: a file may have become readable.
            EventKind::Create(_) | EventKind::Modify(_) => return true,
            _ => {}
        }
        look.at_everything
    }
}
