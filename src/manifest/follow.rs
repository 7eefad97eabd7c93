//! Following a directory: inotify says when to look, reading says what changed.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use notify::{RecursiveMode, Watcher};
use tracing::{error, info};

use super::directory::{Directory, Findings};
use crate::model::SkipLevel;
use crate::source::Sink;

/// Following is impossible.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// inotify refuses.
    #[error("watching {}", path.display())]
    Watch {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: notify::Error,
    },
    /// No thread.
    #[error("starting the thread that reads manifests")]
    Thread(#[source] std::io::Error),
}

/// Delivers the complete lists of a directory, then every change, from a thread of its own that ends
/// with the process.
pub fn follow(
    path: PathBuf,
    allow_external_ips: bool,
    sink: Arc<dyn Sink>,
) -> Result<(), FollowError> {
    let (sender, events) = channel();
    let failed = |source| FollowError::Watch { path: path.clone(), source };
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading is no change. An error may hide one.
        let looks_only = event.as_ref().is_ok_and(|event| event.kind.is_access());
        if !looks_only {
            let _ = sender.send(());
        }
    })
    .map_err(failed)?;
    watcher.watch(&path, RecursiveMode::NonRecursive).map_err(failed)?;
    let mut directory = Directory::new(path, allow_external_ips);
    std::thread::Builder::new()
        .name("manifests".to_owned())
        .spawn(move || {
            let _watcher = watcher;
            report(&directory.read());
            directory.lists().into_iter().for_each(|list| sink.deliver(list));
            deliver_changes(&mut directory, &events, &*sink);
        })
        .map_err(FollowError::Thread)?;
    Ok(())
}

fn deliver_changes(directory: &mut Directory, events: &Receiver<()>, sink: &dyn Sink) {
    while events.recv().is_ok() {
        // What came meanwhile is read in the same look.
        while events.try_recv().is_ok() {}
        let findings = directory.read();
        report(&findings);
        findings.changes.into_iter().for_each(|change| sink.deliver(change));
    }
}

fn report(findings: &Findings) {
    for error in &findings.errors {
        error!(
            file = %error.file.display(),
            document = error.document,
            object = error.object,
            field = error.field,
            reason = error.reason,
            "Unusable manifest; the rest is served"
        );
    }
    for skip in &findings.skips {
        match skip.level {
            SkipLevel::Error => error!("{skip}"),
            SkipLevel::Info => info!("{skip}"),
        }
    }
}
