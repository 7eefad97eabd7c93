//! Manifests: objects from files, for edge boxes, labs and tests, with no cluster.
//!
//! Place in the flow: reads a directory (or single files), decodes documents with [`crate::wire`],
//! and delivers differences to a [`crate::source::Sink`]. Knows nothing of rules.
//!
//! A file is used whole or not at all: while it has a document that cannot be read or an object that
//! cannot be decoded, its last good version stays in force. A file that never had a good version
//! contributes the objects that are good. Of several objects of one name the first counts, in the
//! order of file names; the others are reported.

mod directory;
mod file;
mod follow;

pub use directory::{Directory, load};
pub use file::{FileContent, ManifestError, parse};
pub use follow::{FollowError, follow};
