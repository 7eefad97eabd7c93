//! Stub: walks a packet through a [`super::Ruleset`].
/// A packet.
pub struct Packet;
/// A step.
pub struct Step;
/// The outcome.
pub struct WalkOutcome;
/// Walks.
pub fn walk() {
    unimplemented!()
}
