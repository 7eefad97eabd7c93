//! The running agent.
mod flows;
mod observer;
pub mod status;
mod traffic;
