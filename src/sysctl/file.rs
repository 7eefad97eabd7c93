//! Reading and writing the files behind the settings.
//!
//! Place in the flow: carries out what the pure part asks for, below a root directory (`/` outside
//! tests), in order. Decides nothing.

use std::io;
use std::path::{Path, PathBuf};

use super::Wanted;

/// A file of /proc or /sys could not be used.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    #[error("reading {}", file.display())]
    Read {
        file: PathBuf,
        /// What it was needed for.
        wanted: Wanted,
        #[source]
        source: io::Error,
    },
    #[error("writing {} to {}", wanted.value, file.display())]
    Write {
        file: PathBuf,
        /// What should be written.
        wanted: Wanted,
        /// Why: read-only file system, permission, a value the kernel does not accept.
        #[source]
        source: io::Error,
    },
}

impl SysctlError {
    /// Whether the file does not exist, as those of conntrack before its module is loaded.
    pub fn is_missing(&self) -> bool {
        matches!(self, SysctlError::Read { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    /// What a user can do about it.
    pub fn remedy(&self) -> String {
        let (SysctlError::Read { wanted, .. } | SysctlError::Write { wanted, .. }) = self;
        let first = match self.is_missing() {
            true if wanted.file.contains("nf_conntrack") => "load it with `modprobe nf_conntrack`",
            true => "mount /proc/sys",
            false => "make /proc/sys writable (in a container: privileged)",
        };
        format!(
            "{first}, set it on the host, or have it left alone by `{}`",
            wanted.left_alone_by()
        )
    }
}

/// Makes the settings in order; ends at the first error that matters. Files that already hold the value are not
/// opened for writing, so that a read-only /proc with the right values suffices (B-214, B-262).
/// Returns what was written.
pub fn apply(root: &Path, settings: &[Wanted]) -> Result<Vec<Wanted>, SysctlError> {
    let mut written = Vec::new();
    for wanted in settings {
        match make(root, *wanted) {
            Ok(true) => written.push(*wanted),
            Ok(false) => {}
            Err(error) if wanted.is_best_effort() => {
                let reason = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(%error, reason, "A kernel setting is left as it is");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(written)
}

/// Whether it had to be written.
fn make(root: &Path, wanted: Wanted) -> Result<bool, SysctlError> {
    let file = root.join(wanted.file);
    let current = match std::fs::read_to_string(&file) {
        Ok(current) => current,
        Err(source) => return Err(SysctlError::Read { file, wanted, source }),
    };
    if !wanted.differs_from(&current) {
        return Ok(false);
    }
    match write(&file, &wanted.value.to_string()) {
        Ok(()) => Ok(true),
        Err(source) => Err(SysctlError::Write { file, wanted, source }),
    }
}

/// Sets the OOM score adjustment of this process, in two tries; a failure is no more than logged
/// (B-217).
pub fn set_oom_score_adj(root: &Path, adjustment: i32) {
    let file = root.join("proc/self/oom_score_adj");
    let attempt = || write(&file, &adjustment.to_string());
    if let Err(reason) = attempt().or_else(|_| attempt()) {
        let file = file.display();
        tracing::error!(adjustment, %file, %reason, "Failed to set the OOM score adjustment");
    }
}

/// Whether a TCP packet in the middle of a connection that is not tracked begins a flow, as the kernel has
/// it unless it is told otherwise.
pub fn takes_connections_in_their_middle(root: &Path) -> bool {
    let file = root.join("proc/sys/net/netfilter/nf_conntrack_tcp_loose");
    std::fs::read_to_string(file).map_or(true, |value| value.trim() != "0")
}

/// The CPUs of the node: those with a topology in /sys, which a container's limits do not hide, else
/// those this process may use. At least 1.
pub fn cpus(root: &Path) -> u32 {
    let online = std::fs::read_dir(root.join("sys/devices/system/cpu")).map_or(0, |entries| {
        entries
            .flatten()
            .filter(|entry| is_cpu(&entry.file_name()) && entry.path().join("topology").is_dir())
            .count()
    });
    let usable = || std::thread::available_parallelism().map_or(1, usize::from);
    let count = if online == 0 { usable() } else { online };
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// `cpu0`, `cpu17`, but not `cpufreq`.
fn is_cpu(name: &std::ffi::OsStr) -> bool {
    let number = name.to_str().and_then(|name| name.strip_prefix("cpu"));
    number.is_some_and(|number| number.parse::<u32>().is_ok())
}

/// Writes without creating: a missing file of /proc is an error, also below a test's root.
fn write(file: &Path, value: &str) -> io::Result<()> {
    let mut open = std::fs::OpenOptions::new().write(true).truncate(true).open(file)?;
    io::Write::write_all(&mut open, value.as_bytes())
}
