//! The sub-commands for people, as people run them: the real binary on a node of namespaces.

#[path = "../listing/mod.rs"]
mod listing;

mod broken;
mod documents;
mod render;
mod scene;
mod top;
