//! Histories against the fake kernel.

mod audit;
mod batches;
mod faults;
mod histories;
mod kept;
mod refusals;
mod troubled;
mod worker;
