//! Tests in network namespaces of their own, which end with the thread.

use std::io::Write;
use std::process::{Command, Stdio};

/// Runs `body` on a thread in a new network namespace with `lo` up. Programs it starts run there too.
pub fn in_netns<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
                .expect("a network namespace (these tests need root)");
            run(&["ip", "link", "set", "lo", "up"], "");
            body()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Runs a program that must be there and succeed; returns what it printed.
pub fn run(command: &[&str], input: &str) -> String {
    let mut child = Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{} is needed: {error}", command[0]));
    let mut stdin = child.stdin.take().expect("a pipe was asked for");
    stdin.write_all(input.as_bytes()).expect("the program reads its input");
    drop(stdin);
    let output = child.wait_with_output().expect("the program ends");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {errors}");
    String::from_utf8(output.stdout).expect("text")
}
