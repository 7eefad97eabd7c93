//! Notices when the configuration file changes under the process (section 1.7).
//!
//! Place in the flow: `main` holds a [`Watch`] and ends with exit code 1 on its first event, for a
//! supervisor to start anew; there is no reload. Knows nothing of the file's content.
//!
//! The watch is on the inode: written in place or renamed away counts; deleted, touched, replaced
//! by another file, or swapped by a ConfigMap's symlink does not (B-026 to B-029, Q-05 kept: a
//! rollout decides when pods restart, not an edit).

use std::path::{Path, PathBuf};

use notify::event::{EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

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
    _watcher: RecommendedWatcher,
}

/// Watches the file behind `path`, symlinks followed.
pub fn watch(path: &Path) -> Result<Watch, WatchError> {
    let failed = |source| WatchError { path: path.to_owned(), source };
    let (sender, events) = unbounded_channel();
    let handler = move |event: notify::Result<notify::Event>| {
        if let Some(change) = judge(event) {
            // The receiver is gone only while the process ends.
            let _ = sender.send(change);
        }
    };
    let mut watcher = notify::recommended_watcher(handler).map_err(failed)?;
    watcher.watch(path, RecursiveMode::NonRecursive).map_err(failed)?;
    Ok(Watch { events, _watcher: watcher })
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
        self.events.recv().await.unwrap_or(Changed::Failed(None))
    }
}

#[cfg(test)]
mod tests;
