//! Packets through a real kernel: objects in, sockets out.
//!
//! Each test builds a lab of network namespaces, lets the engine program its node over netlink, and
//! dials from everywhere. Tables 5.4 to 5.7 and 5.11 of the behaviour reference are the source of
//! what is expected.

#![allow(clippy::unwrap_used)] // a test binary, helpers included

mod affinity;
mod case;
mod changes;
mod counted;
mod explained;
mod matrix;
mod node_ports;
mod ranges;
mod rig;
mod sctp;
mod selection;
mod shares;
mod unserved;
