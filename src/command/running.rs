//! The agent that runs here: what it was started with.
//!
//! Place in the flow: commands with `--agent` ask this for flags, configuration and objects instead of
//! the person, who sits elsewhere and knows none of them. Read from `/proc`, so that an agent that
//! hangs is found as well.

use std::fs::{self, DirEntry};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::CommandError;
use crate::cli;
use crate::cli::people::Command;
use crate::cli::proxy::Parsed;
use crate::config::{self, Config};

/// An agent's set-up.
pub struct Running {
    pub config: Config,
    /// The directory of its manifests; `None` where it reads the API.
    pub manifests: Option<PathBuf>,
}

/// Finds it: a process of this program in this network namespace that is an agent.
///
/// Errors: there is none, or its configuration cannot be read.
pub fn running() -> Result<Running, CommandError> {
    let processes = fs::read_dir("/proc").map_err(CommandError::Processes)?;
    let own = Identity::of(Path::new("/proc/self")).map_err(CommandError::Processes)?;
    let (parsed, manifests) = processes
        .flatten()
        .filter(|process| is_another(process) && is_like(process, &own))
        .find_map(|process| agent(&fs::read(process.path().join("cmdline")).ok()?))
        .ok_or(CommandError::NoAgent)?;
    let file = Some(&parsed.flags.config).filter(|file| !file.is_empty());
    let read = |file: &String| {
        let path = PathBuf::from(file);
        fs::read_to_string(&path).map_err(|source| CommandError::Read { path, source })
    };
    let text = file.map(read).transpose()?;
    let config = config::resolve(config::complete(&parsed.flags, text.as_deref())?)?;
    Ok(Running { config, manifests })
}

impl Running {
    /// Where its metrics server is reached from here.
    pub fn metrics(&self) -> String {
        let mut address = self.config.servers.metrics;
        if address.ip().is_unspecified() {
            address.set_ip(match address {
                SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
                SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
            });
        }
        address.to_string()
    }
}

/// Program and network namespace of a process.
#[derive(PartialEq, Eq)]
struct Identity([(u64, u64); 2]);

impl Identity {
    fn of(process: &Path) -> io::Result<Identity> {
        let file = |name| fs::metadata(process.join(name)).map(|file| (file.dev(), file.ino()));
        Ok(Identity([file("exe")?, file("ns/net")?]))
    }
}

fn is_another(process: &DirEntry) -> bool {
    let name = process.file_name();
    let number = name.to_str().and_then(|name| name.parse::<u32>().ok());
    number.is_some_and(|number| number != std::process::id())
}

fn is_like(process: &DirEntry, own: &Identity) -> bool {
    Identity::of(&process.path()).is_ok_and(|other| other == *own)
}

/// What a command line starts, if that is an agent that stays.
fn agent(command_line: &[u8]) -> Option<(Box<Parsed>, Option<PathBuf>)> {
    let line = command_line.strip_suffix(b"\0")?;
    let arguments = line.split(|byte| *byte == 0).map(|a| String::from_utf8_lossy(a).into_owned());
    match cli::parse(arguments).ok()? {
        cli::Command::Proxy(parsed) if !parsed.flags.init_only && !parsed.flags.cleanup => {
            Some((parsed, None))
        }
        cli::Command::People(command) => match *command {
            Command::Run(run) => Some((Box::new(run.as_agent().ok()?), Some(run.manifests))),
            _ => None,
        },
        cli::Command::Proxy(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_are_told_from_other_commands_by_their_arguments() {
        let flags = |line: &str| agent(line.replace(' ', "\0").as_bytes());
        for line in ["kube-proxy --config=/x ", "/bin/kubeweir --v=2 ", "kubeweir proxy "] {
            assert!(flags(line).is_some_and(|(_, manifests)| manifests.is_none()), "{line}");
        }
        let (parsed, manifests) = flags("kubeweir run --manifests /m --node n ").expect("an agent");
        assert_eq!((&*parsed.flags.hostname_override, manifests), ("n", Some("/m".into())));
        for line in
            ["kubeweir diff --agent ", "kube-proxy --init-only ", "kube-proxy --cleanup ", ""]
        {
            assert!(flags(line).is_none(), "{line}");
        }
    }
}
