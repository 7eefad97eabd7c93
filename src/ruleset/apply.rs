//! Stub: applies operations to a [`super::Ruleset`] with the kernel's checks.
use super::Ruleset;
use crate::transaction::{Rejection, Transaction};

/// Why a transaction cannot be applied: what the kernel would answer.
pub type ApplyError = Rejection;

/// Applies a transaction to a table, whole or not at all.
pub fn apply(_ruleset: &mut Ruleset, _transaction: &Transaction) -> Result<(), ApplyError> {
    unimplemented!()
}
