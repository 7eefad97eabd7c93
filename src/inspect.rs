//! Answers for people: what a node would get, what differs, where a packet goes and why.
//!
//! Place in the flow: pure, beside the engine; [`crate::command`] feeds it with objects and tables
//! and prints what it says. It reads tables by what is in them, so that its answers do not depend on
//! what the agent meant to write. Must not know I/O, clocks or terminals.

pub mod diff;
pub mod explain;
pub mod features;
pub mod flows;
pub mod listing;
pub mod rates;
pub mod status;
pub mod view;
pub mod wanted;
