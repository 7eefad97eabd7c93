//! Test support: what stands for the world outside in tests and benches.
//!
//! Only compiled for tests and with the feature `testing`; nothing of the program uses it.

mod fake_kernel;

pub use fake_kernel::{CommitFailure, Culprit, DumpFailure, FakeKernel};
