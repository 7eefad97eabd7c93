//! Test support: builders, the fake kernel, the scripted API server, the namespace lab.
//!
//! Compiled for this crate's tests and with feature `testing`; never part of the shipped binary.

pub mod api_server;
mod fake_kernel;
pub mod lab;
pub mod normal;
pub mod objects;
mod slowness;

pub use api_server::ApiServer;
pub use fake_kernel::{FakeKernel, Fault};
pub use slowness::slowed;
