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
