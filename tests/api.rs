//! The API client against a scripted API server: real HTTP, real TLS, both encodings.

// clippy.toml allows `unwrap` in test functions; this is for what they share.
#![allow(clippy::unwrap_used)]

#[path = "api/connection.rs"]
mod connection;
#[path = "api/events.rs"]
mod events;
#[path = "api/faults.rs"]
mod faults;
#[path = "api/handshake.rs"]
mod handshake;
#[path = "api/reach.rs"]
mod reach;
#[path = "api/reading.rs"]
mod reading;
#[path = "api/setup.rs"]
mod setup;
#[path = "api/trust.rs"]
mod trust;
