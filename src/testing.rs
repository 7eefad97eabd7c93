//! Test support: builders, the fake kernel, the scripted API server, the namespace lab.
//!
//! Compiled for this crate's tests and with feature `testing`; never part of the shipped binary.

pub mod api_server;
mod fake_kernel;
pub mod lab;
pub mod normal;
pub mod objects;

use std::sync::LazyLock;
use std::time::Duration;

pub use api_server::ApiServer;
pub use fake_kernel::{FakeKernel, Fault};

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

/// A deadline as it is on this machine: written down for an ordinary one, and longer where
/// `KUBEWEIR_SLOWNESS` says that everything takes so many times longer, so that slowness does not look
/// like a fault.
pub fn slowed(deadline: Duration) -> Duration {
    deadline * *SLOWNESS
}
