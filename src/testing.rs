//! What tests and the demo share.
//!
//! Place in the flow: outside it; only built with feature `testing`. Nothing that runs in
//! production may depend on it.

pub mod api_server;

pub use api_server::ApiServer;
