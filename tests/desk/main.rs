//! `kubectl kubeweir` as a person runs it: three nodes with agents that run, behind a scripted API server
//! that runs programs in their namespaces.

#![allow(clippy::unwrap_used)] // a test binary, helpers included

mod broken;
mod cluster;
mod questions;
mod reach;
