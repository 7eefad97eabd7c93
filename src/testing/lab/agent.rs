//! A program that runs on the lab's node, such as `kubeweir` itself.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{LabError, Netns};
use crate::testing::slowed;

/// How often the thread that holds a program looks whether it has ended.
const POLL: Duration = Duration::from_millis(5);

/// A running program; killed when dropped, with what it started, or when this process dies.
#[derive(Debug)]
pub struct Agent {
    pid: Pid,
    release: mpsc::Sender<()>,
    thread: Option<JoinHandle<Option<ExitStatus>>>,
}

impl Agent {
    /// Starts `program` in a namespace with its output going to `log`.
    pub fn start(
        netns: &Netns,
        program: &Path,
        args: &[OsString],
        log: &File,
    ) -> Result<Agent, LabError> {
        let failed = |source| LabError::Program {
            program: program.display().to_string(),
            netns: netns.name().to_owned(),
            source,
        };
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(args);
        command.stdout(log.try_clone().map_err(failed)?);
        command.stderr(log.try_clone().map_err(failed)?);
        let (started, child) = mpsc::channel();
        let (release, released) = mpsc::channel();
        // The death signal is tied to the thread that started the child: it has to stay.
        let thread = netns.spawn(move || match command.spawn() {
            Ok(child) => {
                started.send(Ok(pid(&child))).ok()?;
                hold(child, &released)
            }
            Err(error) => {
                started.send(Err(error)).ok();
                None
            }
        });
        let pid = child.recv().expect("the thread reports").map_err(failed)?;
        Ok(Agent { pid, release, thread: Some(thread) })
    }

    pub fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    /// Whether it still runs.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Sends a signal to what it has started itself.
    pub fn signal_children(&self, signal: Signal) {
        for child in children(self.pid) {
            kill(child, signal).ok();
        }
    }

    /// Sends SIGTERM and waits for the end, as [`Agent::wait`].
    pub fn terminate(self, timeout: Duration) -> Option<ExitStatus> {
        // ESRCH: it has ended already, which the wait below will tell.
        kill(self.pid, Signal::SIGTERM).ok();
        self.wait(timeout)
    }

    /// Waits for the end; `None` if it did not end within `timeout`, [`slowed`], and then it was
    /// killed.
    pub fn wait(mut self, timeout: Duration) -> Option<ExitStatus> {
        let thread = self.thread.take()?;
        let deadline = Instant::now() + slowed(timeout);
        while !thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(POLL);
        }
        self.release.send(()).ok();
        thread.join().ok().flatten()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.release.send(()).ok();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// Waits for the end of the child or for the word to kill it; its status if it ended by itself.
fn hold(mut child: Child, released: &mpsc::Receiver<()>) -> Option<ExitStatus> {
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        match released.recv_timeout(POLL) {
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => {
                kill_descendants(pid(&child));
                child.kill().ok();
                child.wait().ok();
                return None;
            }
        }
    }
}

/// strace, killed itself, leaves what it traces running.
fn kill_descendants(parent: Pid) {
    for child in children(parent) {
        kill_descendants(child);
        kill(child, Signal::SIGKILL).ok();
    }
}

/// What the main thread of a process has started; nothing once that is gone.
fn children(parent: Pid) -> Vec<Pid> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
    let children = children.unwrap_or_default();
    children.split_whitespace().flat_map(str::parse).map(Pid::from_raw).collect()
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("process ids fit"))
}
