//! The netlink adapter against the real kernel and stock nft, each test in a namespace of its own.
//!
//! Needs root and `nft`; without them the tests fail rather than pass unseen.

#![allow(clippy::unwrap_used)] // a test binary, helpers included

#[path = "netlink/commit.rs"]
mod commit;
#[path = "netlink/confined.rs"]
mod confined;
#[path = "netlink/life.rs"]
mod life;
#[path = "netlink/neighbours.rs"]
mod neighbours;
mod netns;
#[path = "netlink/outcomes.rs"]
mod outcomes;
#[path = "netlink/round_trip.rs"]
mod round_trip;
#[path = "netlink/shapes.rs"]
mod shapes;
