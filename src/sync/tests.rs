//! Histories against the fake kernel.

mod batches;
mod faults;
mod histories;
mod kept;
mod refusals;
mod troubled;
mod worker;

use crate::engine::Engine;
use crate::model::PerFamily;
use crate::program::NodeAddressing;
use crate::sync::Survey;

/// Of a node that stays where it is.
fn still(engine: &Engine) -> Survey {
    let options = engine.options().clone();
    let local_addresses = PerFamily::default();
    let addressing = NodeAddressing { options, local_addresses };
    Box::new(move |_, _| addressing.clone())
}
