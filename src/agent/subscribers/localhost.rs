//! What the proxy of localhost NodePorts is to serve: what is in force, as everywhere else.

use crate::localhost::Desired;
use crate::sync::{Subscriber, Turn};

/// Tells the proxy.
pub struct Localhost(pub Desired);

impl Subscriber for Localhost {
    fn turn(&mut self, turn: &Turn) {
        for sync in &turn.syncs {
            for service in &sync.in_force {
                self.0.set(sync.report.family, &service.name, service.localhost.clone());
            }
        }
        self.0.publish();
    }
}
