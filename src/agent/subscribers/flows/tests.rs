//! Which flows are due, and that they stay so until they were looked at.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

use jiff::Timestamp;

use super::*;
use crate::agent::subscribers::tests::{in_force, surroundings, synced};
use crate::metrics::{BuildInfo, Mode};
use crate::model::Protocol;
use crate::sync::SyncError;
use crate::testing::objects::{name, port, service, slice};
use crate::transaction::{CommitError, Rejection};

fn dns(external: &[&str], endpoint: &str) -> InForce {
    let mut object = service("dns", &["10.96.0.10"]);
    object.ports.push(port("dns", Protocol::Udp, 53, None));
    object.external_ips = external.iter().map(|ip| ip.parse().unwrap()).collect();
    let endpoints = slice("dns-x", "dns", ("dns", Protocol::Udp, 53), &[endpoint]);
    in_force(object, endpoints)
}

fn flows() -> (Flows, Receiver<Job>) {
    let (sender, jobs) = channel();
    (Flows::new(sender, &surroundings()), jobs)
}

fn turn(in_force: Vec<InForce>, result: Result<(), SyncError>) -> Turn {
    Turn { syncs: vec![synced(in_force, result)], ..Turn::default() }
}

fn refused() -> SyncError {
    let (object, errno) = ("table".to_owned(), libc::ENOMEM);
    CommitError::Rejected(Rejection { op: None, element: None, object, errno }).into()
}

// B4: what a sync brought into force before it failed is due.
#[test]
fn flows_of_services_in_force_are_due_although_the_sync_failed() {
    let (mut flows, jobs) = flows();
    flows.turn(&turn(vec![dns(&[], "10.244.0.1")], Err(refused())));
    let job = jobs.try_recv().expect("a job");
    assert!(job.services.contains_key(&name("dns")));
}

// B16: a new frontend of a Service is a reason to look at flows, as a new endpoint is.
#[test]
fn a_new_frontend_makes_flows_due() {
    let (mut flows, jobs) = flows();
    flows.turn(&turn(vec![dns(&[], "10.244.0.1")], Ok(())));
    jobs.try_recv().expect("the first");
    flows.turn(&turn(vec![dns(&[], "10.244.0.1")], Ok(())));
    assert!(jobs.try_recv().is_err(), "nothing changed");
    flows.turn(&turn(vec![dns(&["198.51.100.1"], "10.244.0.1")], Ok(())));
    let job = jobs.try_recv().expect("the second");
    let ports = &job.services[&name("dns")];
    assert!(ports.current[0].addresses.contains(&"198.51.100.1".parse().unwrap()));
    assert_eq!(ports.previous[0].addresses.len(), 1);
}

/// Answers as it was told, and keeps which flows each reconciliation calls stale.
#[derive(Clone)]
struct Scripted {
    answers: Rc<RefCell<VecDeque<Result<Cleaned, ConntrackError>>>>,
    stale: Rc<RefCell<Vec<[bool; 2]>>>,
    end: Rc<RefCell<Option<Sender<Job>>>>,
}

fn flow_to(endpoint: &str) -> crate::conntrack::Flow {
    let at = |text: &str| text.parse().unwrap();
    let client = at("192.0.2.1:4000");
    crate::conntrack::Flow {
        original: crate::conntrack::Tuple { source: client, destination: at("10.96.0.10:53") },
        reply: crate::conntrack::Tuple { source: at(endpoint), destination: client },
        zone: None,
        id: None,
    }
}

impl FlowTable for Scripted {
    fn reconcile(
        &mut self,
        _: Family,
        reconciliation: &Reconciliation<'_>,
    ) -> Result<Cleaned, ConntrackError> {
        let stale = |endpoint| reconciliation.is_stale(&flow_to(endpoint));
        self.stale.borrow_mut().push([stale("10.244.0.1:53"), stale("10.244.0.2:53")]);
        let answer = self.answers.borrow_mut().pop_front().expect("an answer");
        if self.answers.borrow().is_empty() {
            self.end.borrow_mut().take();
        }
        answer
    }
}

// B5, C7: a job that fails, or is done in part, is done again, with what came meanwhile.
#[test]
fn a_failed_reconciliation_stays_due_until_it_was_done() {
    let (mut flows, jobs) = flows();
    flows.turn(&turn(vec![dns(&[], "10.244.0.1")], Ok(())));
    flows.turn(&turn(vec![dns(&[], "10.244.0.2")], Ok(())));
    let Flows { jobs: sender, .. } = flows;
    let error = || io::Error::from_raw_os_error(libc::ENOBUFS);
    let failed = Err(ConntrackError::List { family: Family::V4, source: error() });
    let partial = Ok(Cleaned { partial: true, ..Cleaned::default() });
    let scripted = Scripted {
        answers: Rc::new(RefCell::new([failed, partial, Ok(Cleaned::default())].into())),
        stale: Rc::default(),
        end: Rc::new(RefCell::new(Some(sender))),
    };
    let metrics = Metrics::new(Mode::Nftables, &BuildInfo::default(), Timestamp::now());
    let mut refusals = 1;
    work(&jobs, &metrics, || {
        if refusals > 0 {
            refusals -= 1;
            return Err(ConntrackError::Open(error()));
        }
        Ok(scripted.clone())
    });
    assert_eq!(*scripted.stale.borrow(), [[true, false]; 3]);
}
