//! What other threads tell the one that records Events and ends the process.

use super::AgentError;
use crate::api::{Event, Reason, Regarding};
use crate::model::ObjectName;

/// Something for an Event, or for the end of the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// The kernel refused a service.
    Quarantined { service: ObjectName, reason: String },
    /// Connections to an endpoint that is gone were ended; says how many.
    ConnectionsEnded {
        /// Of which service.
        service: ObjectName,
        /// What.
        note: String,
    },
    /// The conntrack table is nearly full; says how full.
    ConntrackPressure(String),
    /// The node's podCIDRs are not what they were at start, in NodeCIDR mode (B-058).
    PodCidrsChanged,
    /// The Node was deleted (B-059).
    NodeDeleted,
}

impl Note {
    /// The Event that tells of it.
    ///
    /// Errors: it ends the process.
    pub fn event(self) -> Result<Event, AgentError> {
        let (reason, regarding, note) = match self {
            Note::PodCidrsChanged => return Err(AgentError::PodCidrsChanged),
            Note::NodeDeleted => return Err(AgentError::NodeDeleted),
            Note::Quarantined { service, reason } => {
                (Reason::ServiceQuarantined, Regarding::Service(service), reason)
            }
            Note::ConnectionsEnded { service, note } => {
                (Reason::ConnectionsEnded, Regarding::Service(service), note)
            }
            Note::ConntrackPressure(note) => (Reason::ConntrackNearLimit, Regarding::Node, note),
        };
        Ok(Event { reason, regarding, note })
    }
}
