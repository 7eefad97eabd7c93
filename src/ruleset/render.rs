//! Stub: nft text of a [`super::Ruleset`].
use super::{Rule, Ruleset};

/// The table as `nft list table` prints it.
pub fn render(_ruleset: &Ruleset) -> String {
    unimplemented!()
}

/// One rule as nft prints it.
pub fn render_rule(_rule: &Rule, _ruleset: &Ruleset) -> String {
    unimplemented!()
}
