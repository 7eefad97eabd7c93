//! Histories against the fake kernel.

mod histories;
mod refusals;
