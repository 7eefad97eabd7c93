//! Anonymous network namespaces.

use std::fs::{self, File};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::Instant;

use nix::sched::{CloneFlags, setns, unshare};

use super::{LabError, PATIENCE};
use crate::testing::slowed;

/// The first source port that [`Netns::source_port`] hands out: above the range of NodePorts.
const FIRST_SOURCE_PORT: u16 = 33_000;

/// A network namespace without a name in `/run/netns`.
///
/// It lives as long as something holds it: this value's descriptor, a thread or a process in it.
/// So nothing stays behind, not even after SIGKILL.
#[derive(Debug)]
pub struct Netns {
    name: String,
    file: File,
    next_source_port: AtomicU16,
}

impl Netns {
    /// Makes a namespace with its loopback interface up and duplicate address detection off.
    ///
    /// `name` is for messages only. Needs CAP_SYS_ADMIN.
    pub fn new(name: &str) -> Result<Netns, LabError> {
        let file = thread::scope(|scope| {
            scope
                .spawn(|| {
                    unshare(CloneFlags::CLONE_NEWNET).map_err(io::Error::from)?;
                    File::open("/proc/thread-self/ns/net")
                })
                .join()
                .expect("the closure does not panic")
        })
        .map_err(|source| LabError::Namespace { name: name.to_owned(), source })?;
        let netns = Netns {
            name: name.to_owned(),
            file,
            next_source_port: AtomicU16::new(FIRST_SOURCE_PORT),
        };
        // A kernel booted with `ipv6.disable=1` has none of it.
        if Path::new("/proc/sys/net/ipv6").exists() {
            netns.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
            netns.sysctl("net/ipv6/ip_nonlocal_bind", "1")?;
        }
        netns.ip("link set lo up")?;
        Ok(netns)
    }

    /// The name given at creation.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path to the namespace that `ip link … netns` and `nsenter --net=` take while this process
    /// lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// How a person looks into the namespace while the test is held in a debugger.
    pub fn hint(&self) -> String {
        format!("nsenter --net={} # {}", self.path(), self.name)
    }

    /// Runs `work` on a thread that has entered the namespace. Panics of `work` are passed on.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let entered = scope.spawn(|| {
                self.enter();
                work()
            });
            entered.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs `work` on this thread, which enters the namespace and returns: for what stays with the
    /// thread that made it.
    pub fn visit<T>(&self, work: impl FnOnce() -> T) -> T {
        /// Returns also from a panic.
        struct Home(File);
        impl Drop for Home {
            fn drop(&mut self) {
                setns(&self.0, CloneFlags::CLONE_NEWNET).expect("a held namespace can be entered");
            }
        }
        let _home = Home(File::open("/proc/thread-self/ns/net").expect("/proc is mounted"));
        self.enter();
        work()
    }

    /// Starts a thread of its own in the namespace.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        let file = self.file.try_clone().expect("a descriptor can be duplicated");
        thread::spawn(move || {
            setns(&file, CloneFlags::CLONE_NEWNET).expect("a held namespace can be entered");
            drop(file);
            work()
        })
    }

    fn enter(&self) {
        setns(&self.file, CloneFlags::CLONE_NEWNET).expect("a held namespace can be entered");
    }

    /// Runs `ip -batch` with these lines, all or up to the first that fails.
    pub fn ip(&self, lines: &str) -> Result<(), LabError> {
        self.feed("ip", &["-batch", "-"], lines).map(drop)
    }

    /// Assigns an address to the loopback interface, and waits until packets to it are delivered: of an
    /// IPv6 address the kernel makes the route some time after `ip` returned (`addrconf_dad_work`).
    pub fn assign(&self, address: IpAddr) -> Result<(), LabError> {
        let suffix = if address.is_ipv6() { " nodad" } else { "" };
        self.ip(&format!("addr add {address} dev lo{suffix}"))?;
        let route = format!("route get {address}");
        let deadline = Instant::now() + slowed(PATIENCE);
        while !self.feed("ip", &["-batch", "-"], &route)?.starts_with("local") {
            assert!(Instant::now() < deadline, "{address} is not local");
        }
        Ok(())
    }

    /// Runs `nft -f` with this script and returns what it prints.
    pub fn nft(&self, script: &str) -> Result<String, LabError> {
        self.feed("nft", &["-f", "-"], script)
    }

    /// Writes a sysctl of the namespace: `net/ipv4/ip_forward`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<(), LabError> {
        self.run(|| fs::write(format!("/proc/sys/{key}"), value)).map_err(|source| {
            LabError::Sysctl { netns: self.name.clone(), key: key.to_owned(), source }
        })
    }

    /// The names in a directory of sysctls of the namespace: `net/ipv6/neigh`.
    pub(super) fn sysctls(&self, directory: &str) -> Result<Vec<String>, LabError> {
        let read = || -> io::Result<Vec<String>> {
            fs::read_dir(format!("/proc/sys/{directory}"))?
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect()
        };
        self.run(read).map_err(|source| LabError::Sysctl {
            netns: self.name.clone(),
            key: directory.to_owned(),
            source,
        })
    }

    /// Runs a program in the namespace with `input` on its standard input; returns its output, or
    /// an error if it exits with another status than 0.
    pub fn feed(&self, program: &str, args: &[&str], input: &str) -> Result<String, LabError> {
        let run = || -> io::Result<Output> {
            let mut child = Command::new(program)
                .args(args)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?;
            let mut stdin = child.stdin.take().expect("standard input is piped");
            stdin.write_all(input.as_bytes())?;
            drop(stdin);
            child.wait_with_output()
        };
        let output = self.run(run).map_err(|source| LabError::Program {
            program: program.to_owned(),
            netns: self.name.clone(),
            source,
        })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(LabError::Refused {
            program: program.to_owned(),
            netns: self.name.clone(),
            status: output.status,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// A source port that was not used in this namespace for the last 32 000 calls, so that a new
    /// flow never meets the conntrack entry of an older one.
    pub(super) fn source_port(&self) -> u16 {
        let next = |port: u16| Some(port.checked_add(1).unwrap_or(FIRST_SOURCE_PORT));
        self.next_source_port
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next)
            .expect("the closure always gives a port")
    }
}
