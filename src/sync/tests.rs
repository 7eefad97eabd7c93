//! Histories against the fake kernel.

mod audit;
mod faults;
mod histories;
mod kept;
mod refusals;
mod worker;
