//! Histories against the fake kernel.

mod faults;
mod histories;
mod refusals;
