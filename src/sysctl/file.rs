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
    /// Its present value is needed and cannot be read.
    #[error("reading {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The new value was refused.
    #[error("writing {value} to {}", file.display())]
    Write {
        /// The file.
        file: PathBuf,
        /// The value.
        value: String,
        /// Why: read-only file system, permission, a value the kernel does not accept.
        #[source]
        source: io::Error,
    },
}

/// Makes the settings in order; ends at the first error. Files that already hold the value are not
/// opened for writing, so that a read-only /proc with the right values suffices (B-214, B-262).
/// Returns what was written.
pub fn apply(root: &Path, settings: &[Wanted]) -> Result<Vec<Wanted>, SysctlError> {
    let mut written = Vec::new();
    for wanted in settings {
        let file = root.join(wanted.file);
        let current = std::fs::read_to_string(&file)
            .map_err(|source| SysctlError::Read { file: file.clone(), source })?;
        if wanted.differs_from(&current) {
            write(&file, wanted.value.to_string())?;
            written.push(*wanted);
        }
    }
    Ok(written)
}

/// Sets the OOM score adjustment of this process, in two tries; a failure is no more than logged
/// (B-217).
pub fn set_oom_score_adj(root: &Path, adjustment: i32) {
    let file = root.join("proc/self/oom_score_adj");
    let attempt = || write(&file, adjustment.to_string());
    if let Err(error) = attempt().or_else(|_| attempt()) {
        let reason = std::error::Error::source(&error).map(ToString::to_string);
        tracing::error!(adjustment, %error, reason, "Failed to set the OOM score adjustment");
    }
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
fn write(file: &Path, value: String) -> Result<(), SysctlError> {
    let open = std::fs::OpenOptions::new().write(true).truncate(true).open(file);
    open.and_then(|mut open| io::Write::write_all(&mut open, value.as_bytes()))
        .map_err(|source| SysctlError::Write { file: file.to_owned(), value, source })
}
