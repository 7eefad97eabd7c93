//! A table is read back from time to time, also when nobody told of a change.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::refusals::{V4, cluster, expected, start};
use super::still;
use crate::kernel::{CommitError, Committed, DumpError, Kernel, Transaction};
use crate::model::Family;
use crate::ruleset::{Element, Name, Ruleset};
use crate::sync::{Inbox, Limits, Synchronizer, Worker};
use crate::testing::FakeKernel;
use crate::testing::normal::normal_form;

/// A kernel that others can reach.
#[derive(Clone)]
struct Shared(Arc<Mutex<FakeKernel>>);

impl Kernel for Shared {
    fn commit(&mut self, transaction: &Transaction) -> Result<Committed, CommitError> {
        self.0.lock().unwrap().commit(transaction)
    }

    fn dump(&mut self, family: Family) -> Result<Ruleset, DumpError> {
        self.0.lock().unwrap().dump(family)
    }

    fn dump_set(&mut self, family: Family, set: &Name) -> Result<Vec<Element>, DumpError> {
        self.0.lock().unwrap().dump_set(family, set)
    }
}

// B-197: what nobody told of is found, and put right, when the time for a full sync has come.
#[test]
fn an_unnoticed_change_is_found_by_the_periodic_full_sync() {
    assert_eq!(Limits::AUDIT, Duration::from_secs(3600));
    let kernel = Shared(Arc::new(Mutex::new(FakeKernel::new())));
    let Synchronizer { engine, .. } = start(cluster(3), FakeKernel::new());
    let survey = still(&engine);
    let synchronizer = Synchronizer::new(engine, kernel.clone());
    let inbox = Arc::new(Inbox::new());
    let limits = Limits {
        min_interval: Duration::ZERO,
        retry: Duration::from_secs(30),
        audit: Duration::from_millis(10),
    };
    let worker = Worker::new(synchronizer, inbox.clone(), survey, Vec::new(), limits);
    let thread = std::thread::spawn(move || worker.run());
    let wanted = expected(cluster(3));
    let until_right = || {
        let end = Instant::now() + Duration::from_secs(20);
        while normal_form(kernel.0.lock().unwrap().ruleset(V4)) != wanted {
            assert!(Instant::now() < end, "it stays wrong");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    until_right();
    *kernel.0.lock().unwrap().ruleset_mut(V4) = Ruleset::empty(V4);
    until_right();
    inbox.close();
    thread.join().unwrap();
}
