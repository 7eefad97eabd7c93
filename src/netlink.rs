//! Stub.

pub mod xtables;
