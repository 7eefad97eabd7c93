//! Looking at a file again and again, for the changes that the watch on its inode would tell.
//!
//! Place in the flow: stands in for inotify in [`super`]. The file is held open, so that it stays the
//! one meant whatever becomes of its name.

use std::fs::{File, Metadata};
use std::io::{self, Read, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Changed;

/// A file as it was last seen.
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
