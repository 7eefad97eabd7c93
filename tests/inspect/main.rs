//! The sub-commands for people, as people run them: the real binary on a node of namespaces.

// Clippy knows tests by their attribute; what they share has none.
#![allow(clippy::unwrap_used)]

mod broken;
mod cluster;
mod dashboard;
mod documents;
mod flows;
mod listing;
mod render;
mod scene;
mod top;
