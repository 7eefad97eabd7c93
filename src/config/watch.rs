//! Notices when the configuration file changes under the process (section 1.7).
//!
//! Place in the flow: `main` holds a [`Watch`] and ends with exit code 1 on its first event, for a
//! supervisor to start anew; there is no reload. Knows nothing of the file's content.
//!
//! The watch is on the inode: written in place or renamed away counts; deleted, touched, replaced
//! by another file, or swapped by a ConfigMap's symlink does not (B-026 to B-029, Q-05 kept: a
//! rollout decides when pods restart, not an edit). Traffic does not depend on it: on a node without an
//! inotify instance left, the file is looked at now and then instead.

mod looks;

use std::path::{Path, PathBuf};
use std::time::Duration;

use notify::event::{EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use looks::Looks;

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

#[cfg(test)]
mod tests;
