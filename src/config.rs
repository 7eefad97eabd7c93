//! x
#![allow(missing_docs)]
pub mod duration;
pub mod v1alpha1;
pub mod decode;
pub mod note;
pub mod feature_gates;
pub mod address;
pub mod node_name;
pub mod version;
pub mod watch;
