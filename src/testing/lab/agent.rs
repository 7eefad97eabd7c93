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
                started.send(Ok(child.id())).ok()?;
                hold(child, &released)
            }
            Err(error) => {
                started.send(Err(error)).ok();
                None
            }
        });
        let id = child.recv().expect("the thread reports").map_err(failed)?;
        let pid = Pid::from_raw(i32::try_from(id).expect("process ids fit"));
        Ok(Agent { pid, release, thread: Some(thread) })
    }

    pub fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    /// Whether it still runs.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Kills what it has started.
    pub fn kill_children(&self) {
        kill_children(self.pid());
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
                kill_children(child.id());
                child.kill().ok();
                child.wait().ok();
                return None;
            }
        }
    }
}

/// Kills what a process has started, and what that has: strace, killed itself, leaves what it traces running.
fn kill_children(parent: u32) {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
    for child in children.unwrap_or_default().split_whitespace().flat_map(str::parse) {
        kill_children(child);
        kill(Pid::from_raw(child.cast_signed()), Signal::SIGKILL).ok();
    }
}
