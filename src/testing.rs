//! Test support: builders, the fake kernel, the scripted API server, the namespace lab.
//!
//! Compiled for this crate's tests and with feature `testing`; never part of the shipped binary.

pub mod api_server;
mod fake_kernel;
pub mod lab;
pub mod normal;
pub mod objects;

use std::sync::LazyLock;
use std::time::{Duration, Instant};

pub use api_server::ApiServer;
pub use fake_kernel::{FakeKernel, Fault};

use crate::kernel::Kernel;
use crate::model::Family;
use crate::ruleset::Ownership;

/// What the deadlines of tests are multiplied by; `tests/kernels` measures it in its guests.
const VARIABLE: &str = "KUBEWEIR_SLOWNESS";

static SLOWNESS: LazyLock<u32> = LazyLock::new(|| match std::env::var(VARIABLE) {
    Ok(text) => text.parse().unwrap_or_else(|_| panic!("{VARIABLE}={text} is not a number")),
    Err(_) => 1,
});

/// Whether this machine is emulated, or as slow.
pub fn is_slow() -> bool {
    *SLOWNESS > 1
}

/// How long an owner may stay whose socket is closed.
const RELEASED: Duration = Duration::from_secs(10);

/// Waits until no other socket owns a table of ours. One that this process has closed stays open in a
/// child that another test has just forked, until that child runs its program.
///
/// # Panics
///
/// If that takes too long, or the kernel does not answer.
pub fn wait_unowned(kernel: &mut impl Kernel) {
    let deadline = Instant::now() + slowed(RELEASED);
    for family in Family::BOTH {
        let mut owner = || {
            let ruleset = kernel.dump(family).expect("a ruleset");
            ruleset.table.map_or(Ownership::Nobody, |table| table.owner)
        };
        while let Ownership::Other(port) = owner() {
            assert!(Instant::now() < deadline, "{family}: netlink port {port} owns the table");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A deadline as it is on this machine: written down for an ordinary one, and longer where
/// `KUBEWEIR_SLOWNESS` says that everything takes so many times longer, so that slowness does not look
/// like a fault.
pub fn slowed(deadline: Duration) -> Duration {
    deadline * *SLOWNESS
}
