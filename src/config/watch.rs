//! Notices when the configuration file changes under the process (section 1.7).
//!
//! Place in the flow: `main` holds a [`Watch`] and ends with exit code 1 on its first event, for a
//! supervisor to start anew; there is no reload. Knows nothing of the file's content.
//!
//! The watch is on the inode: written in place or renamed away counts; deleted, touched, replaced
//! by another file, or swapped by a ConfigMap's symlink does not (B-026 to B-029, Q-05 kept: a
//! rollout decides when pods restart, not an edit). Traffic does not depend on it: on a node without an
//! inotify instance left, the file is looked at now and then instead.

use std::fs::{File, Metadata};
use std::io::{self, Read, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// How often a file is looked at that cannot be watched.
const LOOK: Duration = Duration::from_secs(5);

/// Why the process should end.
#[derive(Debug, thiserror::Error)]
pub enum Changed {
    /// Written in place.
    #[error("content of the proxy server's configuration file was updated")]
    Written,
    /// Renamed away.
    #[error("the proxy server's configuration file was renamed")]
    Renamed,
    /// The watcher failed.
    #[error("watching the proxy server's configuration file failed")]
    Failed(#[source] Option<notify::Error>),
}

/// The watch could not be placed.
#[derive(Debug, thiserror::Error)]
#[error("failed to watch the configuration file {path:?}")]
pub struct WatchError {
    path: PathBuf,
    #[source]
    source: notify::Error,
}

/// A watch on one file; ends when dropped.
#[derive(Debug)]
pub struct Watch {
    events: UnboundedReceiver<Changed>,
    _watcher: Option<RecommendedWatcher>,
    looks: Option<(Looks, Duration)>,
}

/// Watches the file behind `path`, symlinks followed.
///
/// Errors: the file cannot be read at all.
pub fn watch(path: &Path) -> Result<Watch, WatchError> {
    by_events(path).or_else(|error| {
        // Looking tells a missing file from a node that has run out of something.
        let looks = Looks::at(path);
        let looks = looks.map_err(|_| WatchError { path: path.to_owned(), source: error })?;
        tracing::warn!(file = %path.display(), every = ?LOOK, "The configuration file cannot be watched \
             and is looked at now and then; if need be, raise fs.inotify.max_user_instances");
        Ok(by_looks(looks, LOOK))
    })
}

/// Without inotify.
fn by_looks(looks: Looks, every: Duration) -> Watch {
    let (_, events) = unbounded_channel();
    Watch { events, _watcher: None, looks: Some((looks, every)) }
}

fn by_events(path: &Path) -> notify::Result<Watch> {
    let (sender, events) = unbounded_channel();
    let handler = move |event: notify::Result<notify::Event>| {
        if let Some(change) = judge(event) {
            // The receiver is gone only while the process ends.
            let _ = sender.send(change);
        }
    };
    let mut watcher = notify::recommended_watcher(handler)?;
    watcher.watch(path, RecursiveMode::NonRecursive)?;
    Ok(Watch { events, _watcher: Some(watcher), looks: None })
}

/// What an event means for the process; `None` for nothing.
fn judge(event: notify::Result<notify::Event>) -> Option<Changed> {
    match event {
        Err(error) => Some(Changed::Failed(Some(error))),
        Ok(event) => match event.kind {
            EventKind::Modify(ModifyKind::Data(_)) => Some(Changed::Written),
            EventKind::Modify(ModifyKind::Name(_)) => Some(Changed::Renamed),
            _ => None,
        },
    }
}

impl Watch {
    /// Waits for the first change that ends the process.
    pub async fn changed(&mut self) -> Changed {
        let Some((looks, every)) = &mut self.looks else {
            return self.events.recv().await.unwrap_or(Changed::Failed(None));
        };
        loop {
            tokio::time::sleep(*every).await;
            if let Some(change) = looks.look() {
                return change;
            }
        }
    }
}

/// A file that is looked at again and again, for the changes that the watch on its inode would tell:
/// as it was last seen. It is held open, so that it stays the one meant whatever becomes of its name.
#[derive(Debug)]
pub struct Looks {
    file: File,
    /// Its own name, no symlink.
    path: PathBuf,
    seen: Stamp,
    content: Vec<u8>,
}

/// What changes whenever a file is written.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    modified: (i64, i64),
    length: u64,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Stamp {
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        Stamp { modified, length: metadata.len() }
    }
}

impl Looks {
    /// Has a first look at the file behind `path`.
    pub fn at(path: &Path) -> io::Result<Looks> {
        let path = path.canonicalize()?;
        let mut file = File::open(&path)?;
        let seen = Stamp::of(&file.metadata()?);
        let content = read(&mut file)?;
        Ok(Looks { file, path, seen, content })
    }

    /// What has become of it since the last look; `None` if nothing that counts.
    pub fn look(&mut self) -> Option<Changed> {
        // A look that fails shows nothing; the next one may.
        let metadata = self.file.metadata().ok()?;
        let stamp = Stamp::of(&metadata);
        if stamp != self.seen {
            let content = read(&mut self.file).ok()?;
            self.seen = stamp;
            if content != self.content {
                self.content = content;
                return Some(Changed::Written);
            }
        }
        // Without a name left it was deleted or replaced.
        let named = metadata.nlink() > 0;
        (named && !self.is_in_place(&metadata)).then_some(Changed::Renamed)
    }

    fn is_in_place(&self, metadata: &Metadata) -> bool {
        let there = std::fs::symlink_metadata(&self.path);
        there.is_ok_and(|there| (there.dev(), there.ino()) == (metadata.dev(), metadata.ino()))
    }
}

fn read(file: &mut File) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut content)?;
    Ok(content)
}

#[cfg(test)]
mod tests;
