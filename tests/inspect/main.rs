//! The sub-commands for people, as people run them: the real binary on a node of namespaces.

mod broken;
mod documents;
mod listing;
mod render;
mod scene;
mod top;
