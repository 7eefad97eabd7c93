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
    #[error("content of the proxy server's configuration file was updated")]
    Written,
    #[error("the proxy server's configuration file was renamed")]
    Renamed,
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
mod tests {
    //! The watch against real files.

    use std::fs::{self, FileTimes};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::time::{Duration, SystemTime};

    use super::*;

    /// Far beyond what a loaded machine needs to deliver an event.
    const DEADLINE: Duration = Duration::from_secs(20);

    async fn next(watch: &mut Watch) -> Changed {
        tokio::time::timeout(DEADLINE, watch.changed()).await.expect("an event before the deadline")
    }

    // B-026: written in place.
    #[tokio::test]
    async fn written_in_place() {
        let dir = tempfile::tempdir().expect("directory");
        let file = dir.path().join("config");
        fs::write(&file, "a").expect("write");
        let mut watch = watch(&file).expect("watch");
        fs::write(&file, "b").expect("write");
        assert!(matches!(next(&mut watch).await, Changed::Written));
    }

    // B-027: renamed away.
    #[tokio::test]
    async fn renamed_away() {
        let dir = tempfile::tempdir().expect("directory");
        let file = dir.path().join("config");
        fs::write(&file, "a").expect("write");
        let mut watch = watch(&file).expect("watch");
        fs::rename(&file, dir.path().join("old")).expect("rename");
        assert!(matches!(next(&mut watch).await, Changed::Renamed));
    }

    // B-028: touched and chmod-ed; the rename after them is the first event, so nothing came before.
    #[tokio::test]
    async fn touched_and_chmoded() {
        let dir = tempfile::tempdir().expect("directory");
        let file = dir.path().join("config");
        fs::write(&file, "a").expect("write");
        let mut watch = watch(&file).expect("watch");
        let handle = fs::File::options().append(true).open(&file).expect("open");
        // Both times, as touch(1) sets them; the modification time alone counts as a write to inotify.
        let epoch = SystemTime::UNIX_EPOCH;
        handle.set_times(FileTimes::new().set_accessed(epoch).set_modified(epoch)).expect("touch");
        drop(handle);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("chmod");
        fs::rename(&file, dir.path().join("old")).expect("rename");
        assert!(matches!(next(&mut watch).await, Changed::Renamed));
    }

    /// Proves silence without waiting a fixed time: a second watch on the same directory sees the
    /// last step, and by then the first one has had its events.
    async fn assert_silent(watch: &mut Watch, marker: &Path) {
        let mut marked = super::watch(marker).expect("watch the marker");
        fs::write(marker, "x").expect("write");
        assert!(matches!(next(&mut marked).await, Changed::Written));
        assert!(watch.events.try_recv().is_err(), "the watch reported something");
    }

    // B-028: deleted.
    #[tokio::test]
    async fn deleted() {
        let dir = tempfile::tempdir().expect("directory");
        let (file, marker) = (dir.path().join("config"), dir.path().join("marker"));
        fs::write(&file, "a").expect("write");
        fs::write(&marker, "").expect("write");
        let mut watch = watch(&file).expect("watch");
        fs::remove_file(&file).expect("remove");
        assert_silent(&mut watch, &marker).await;
    }

    #[tokio::test]
    async fn replaced_by_rename() {
        let dir = tempfile::tempdir().expect("directory");
        let (file, marker) = (dir.path().join("config"), dir.path().join("marker"));
        fs::write(&file, "a").expect("write");
        fs::write(&marker, "").expect("write");
        let mut watch = watch(&file).expect("watch");
        fs::write(dir.path().join("new"), "b").expect("write");
        fs::rename(dir.path().join("new"), &file).expect("rename");
        assert_silent(&mut watch, &marker).await;
    }

    // B-029: a ConfigMap volume is updated by swapping a symlink and removing the old directory.
    #[tokio::test]
    async fn config_map_swap() {
        let dir = tempfile::tempdir().expect("directory");
        let path = |name: &str| dir.path().join(name);
        for version in ["v1", "v2"] {
            fs::create_dir(path(version)).expect("directory");
            fs::write(path(version).join("config.conf"), version).expect("write");
        }
        symlink("v1", path("..data")).expect("symlink");
        symlink("..data/config.conf", path("config.conf")).expect("symlink");
        fs::write(path("marker"), "").expect("write");
        let mut watch = watch(&path("config.conf")).expect("watch");
        symlink("v2", path("..data_tmp")).expect("symlink");
        fs::rename(path("..data_tmp"), path("..data")).expect("rename");
        fs::remove_dir_all(path("v1")).expect("remove");
        assert_silent(&mut watch, &path("marker")).await;
    }

    // B-026: the watch is on the file behind a symlink.
    #[tokio::test]
    async fn written_behind_a_symlink() {
        let dir = tempfile::tempdir().expect("directory");
        let (file, link) = (dir.path().join("config"), dir.path().join("link"));
        fs::write(&file, "a").expect("write");
        symlink("config", &link).expect("symlink");
        let mut watch = watch(&link).expect("watch");
        fs::write(&file, "b").expect("write");
        assert!(matches!(next(&mut watch).await, Changed::Written));
    }

    #[test]
    fn a_missing_file_cannot_be_watched() {
        let dir = tempfile::tempdir().expect("directory");
        assert!(watch(&dir.path().join("none")).is_err());
    }

    /// A watch without inotify that looks as often as a test wants.
    fn looking_at(path: &Path) -> Watch {
        by_looks(Looks::at(path).expect("a file"), Duration::from_millis(1))
    }

    // N6: without inotify, the same changes count: written in place, behind a symlink, renamed away.
    #[tokio::test]
    async fn looks_notice_what_counts() {
        let dir = tempfile::tempdir().expect("directory");
        let (file, link) = (dir.path().join("config"), dir.path().join("link"));
        fs::write(&file, "a").expect("write");
        symlink("config", &link).expect("symlink");
        let mut watch = looking_at(&link);
        fs::write(&file, "b").expect("write");
        assert!(matches!(next(&mut watch).await, Changed::Written));
        let mut watch = looking_at(&file);
        fs::rename(&file, dir.path().join("old")).expect("rename");
        assert!(matches!(next(&mut watch).await, Changed::Renamed));
        assert!(Looks::at(&file).is_err(), "it is gone");
    }

    // N6: and the same changes do not: touched, deleted, replaced, swapped by a ConfigMap.
    #[test]
    fn looks_overlook_what_does_not_count() {
        let dir = tempfile::tempdir().expect("directory");
        let path = |name: &str| dir.path().join(name);
        let fresh = || fs::write(path("config"), "a").expect("write");
        let replaced = || {
            fs::write(path("new"), "b").expect("write");
            fs::rename(path("new"), path("config")).expect("rename");
        };
        let touched = || {
            let handle = fs::File::options().append(true).open(path("config")).expect("open");
            handle.set_modified(SystemTime::UNIX_EPOCH).expect("touch");
            fs::set_permissions(path("config"), fs::Permissions::from_mode(0o600)).expect("chmod");
        };
        let deleted = || fs::remove_file(path("config")).expect("remove");
        for change in [&replaced as &dyn Fn(), &touched, &deleted] {
            fresh();
            let mut looks = Looks::at(&path("config")).expect("a file");
            change();
            assert!(looks.look().is_none() && looks.look().is_none());
        }
        for version in ["v1", "v2"] {
            fs::create_dir(path(version)).expect("directory");
            fs::write(path(version).join("config.conf"), version).expect("write");
        }
        symlink("v1", path("..data")).expect("symlink");
        symlink("..data/config.conf", path("config.conf")).expect("symlink");
        let mut looks = Looks::at(&path("config.conf")).expect("a file");
        symlink("v2", path("..data_tmp")).expect("symlink");
        fs::rename(path("..data_tmp"), path("..data")).expect("rename");
        assert!(looks.look().is_none());
        fs::remove_dir_all(path("v1")).expect("remove");
        assert!(looks.look().is_none());
    }
}
