//! Histories against the fake kernel.

mod audit;
mod faults;
mod histories;
mod refusals;
mod worker;
