//! Which flows are due, and that they stay so until they were looked at.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, channel};

use jiff::Timestamp;

use super::thread::{FlowTable, Told, work};
use super::*;
use crate::agent::subscribers::tests::{addressing, in_force, synced};
use crate::conntrack::Reconciliation;
use crate::engine::Claim;
use crate::kernel::{CommitError, Rejection};
use crate::metrics::{BuildInfo, Metrics, Mode};
use crate::model::{EndConnections, ServicePortName};
use crate::netlink::conntrack::{Cleaned, ConntrackError};
use crate::status::SharedStatus;
use crate::sync::SyncError;
use crate::testing::objects::{name, port, service, slice};

fn dns(external: &[&str], endpoint: &str) -> InForce {
    let mut object = service("dns", &["10.96.0.10"]);
    object.ports.push(port("dns", Protocol::Udp, 53, None));
    object.external_ips = external.iter().map(|ip| ip.parse().unwrap()).collect();
    let endpoints = slice("dns-x", "dns", ("dns", Protocol::Udp, 53), &[endpoint]);
    in_force(object, endpoints)
}

fn flows() -> (Flows, Receiver<Job>) {
    let (sender, jobs) = channel();
    (Flows::new(sender, &addressing(), None), jobs)
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
    assert!(job.udp.contains_key(&name("dns")));
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
    let ports = &job.udp[&name("dns")];
    assert!(ports.current[0].addresses.contains(&"198.51.100.1".parse().unwrap()));
    assert_eq!(ports.previous[0].addresses.len(), 1);
}

fn web(node_port: Option<u16>) -> InForce {
    let mut object = service("web", &["10.96.0.11"]);
    object.ports.push(port("http", Protocol::Tcp, 80, node_port));
    object.ports.push(port("quic", Protocol::Udp, 80, node_port));
    in_force(object, slice("web-x", "web", ("http", Protocol::Tcp, 80), &["10.244.0.3"]))
}

// C2, C8: an address that comes to the node may have flows to NodePorts from before. They are due
// when the rules say so.
#[test]
fn a_new_address_of_the_node_makes_flows_to_node_ports_due() {
    let (mut flows, jobs) = flows();
    flows.turn(&turn(vec![web(Some(30080)), dns(&[], "10.244.0.1")], Ok(())));
    jobs.try_recv().expect("the first");
    let with_addresses = |addresses: &[&str]| {
        let mut addressing = addressing();
        addressing.local_addresses.v4 = addresses.iter().map(|ip| ip.parse().unwrap()).collect();
        Some(addressing)
    };
    let come = || with_addresses(&["192.0.2.1", "192.0.2.2"]);
    flows.turn(&Turn { addressing: come(), ..turn(vec![], Err(refused())) });
    assert!(jobs.try_recv().is_err(), "not in force");
    flows.turn(&turn(vec![], Ok(())));
    let job = jobs.try_recv().expect("the second");
    assert_eq!(job.node_port_addresses.len(), 2);
    assert_eq!(job.udp.keys().collect::<Vec<_>>(), [&name("web")]);
    assert_eq!(job.tcp.keys().collect::<Vec<_>>(), [&name("web")]);

    let gone = Turn { addressing: with_addresses(&["192.0.2.1"]), ..Turn::default() };
    flows.turn(&gone);
    assert!(jobs.try_recv().is_err(), "nothing begins on an address that is gone");
    flows.turn(&Turn { addressing: come(), ..Turn::default() });
    assert_eq!(jobs.try_recv().expect("no rule had to change").udp.len(), 1);
    flows.turn(&turn(vec![web(None)], Ok(())));
    jobs.try_recv().expect("no NodePort any more");
    flows.turn(&Turn { addressing: with_addresses(&["192.0.2.3"]), ..Turn::default() });
    assert!(jobs.try_recv().is_err());
}

// A Service that claims what another one has makes none of the owner's flows due.
#[test]
fn a_frontend_of_another_service_is_not_judged_by_its_claimant() {
    let (mut flows, jobs) = flows();
    let mut synced = synced(vec![dns(&["198.51.100.1"], "10.244.0.1")], Ok(()));
    let claim = |service: &str| Claim {
        created: 0,
        port: ServicePortName { service: name(service), port: "".into(), protocol: Protocol::Udp },
    };
    let at = FrontendAt::Address("198.51.100.1".parse().unwrap());
    synced.state.conflicts.push(Conflict {
        frontend: FrontendKey { at, protocol: Protocol::Udp, port: 53 },
        owner: claim("older"),
        others: vec![claim("dns")],
    });
    flows.turn(&Turn { syncs: vec![synced], ..Turn::default() });
    let job = jobs.try_recv().expect("a job");
    let addresses = &job.udp[&name("dns")].current[0].addresses;
    assert_eq!(*addresses, ["10.96.0.10".parse::<IpAddr>().unwrap()]);
}

// Without the option nothing is told of a service, whatever becomes of its endpoints. A service's own
// word goes before the node's.
#[test]
fn connections_are_to_be_ended_only_where_that_is_asked_for() {
    let web = |own: EndConnections| {
        let mut web = web(None);
        Arc::make_mut(web.service.as_mut().expect("in force")).end_connections = own;
        web
    };
    let told = |of_node: Option<u64>, own: &[EndConnections]| -> Vec<Option<Duration>> {
        let (sender, jobs) = channel();
        let mut flows = Flows::new(sender, &addressing(), of_node.map(Duration::from_secs));
        own.iter().for_each(|&own| flows.turn(&turn(vec![web(own)], Ok(()))));
        let drained = jobs.try_iter().flat_map(|job| job.drained);
        drained.map(|(_, drained)| drained.map(|drained| drained.after)).collect()
    };
    let secs = |n| Some(Duration::from_secs(n));
    let after = |n| EndConnections::After(Duration::from_secs(n));
    assert_eq!(told(None, &[EndConnections::AsNode, EndConnections::Never]), []);
    assert_eq!(told(Some(30), &[EndConnections::AsNode]), [secs(30)]);
    assert_eq!(told(None, &[after(5)]), [secs(5)]);
    assert_eq!(told(Some(30), &[after(5), EndConnections::Never]), [secs(5), None]);
    assert_eq!(
        told(None, &[after(5), EndConnections::AsNode, EndConnections::AsNode]),
        [secs(5), None]
    );
}

/// Answers as it was told, and keeps which flows each reconciliation calls stale.
#[derive(Clone)]
struct Scripted {
    answers: Rc<RefCell<VecDeque<Result<Cleaned, ConntrackError>>>>,
    stale: Rc<RefCell<Vec<[bool; 2]>>>,
    echoes: Rc<RefCell<Vec<crate::conntrack::Tuple>>>,
    /// What is told after the flows were listed.
    comes: Rc<RefCell<Option<Job>>>,
    end: Rc<RefCell<Option<Sender<Job>>>>,
}

fn flow_to(endpoint: &str) -> crate::conntrack::Flow {
    let at = |text: &str| text.parse().unwrap();
    let client = at("192.0.2.1:4000");
    crate::conntrack::Flow {
        protocol: Protocol::Udp,
        replied: true,
        original: crate::conntrack::Tuple { source: client, destination: at("10.96.0.10:53") },
        reply: crate::conntrack::Tuple { source: at(endpoint), destination: client },
        zone: None,
        id: None,
    }
}

impl Scripted {
    fn new<const N: usize>(
        answers: [Result<Cleaned, ConntrackError>; N],
        end: Sender<Job>,
    ) -> Self {
        Scripted {
            answers: Rc::new(RefCell::new(answers.into())),
            stale: Rc::default(),
            echoes: Rc::default(),
            comes: Rc::default(),
            end: Rc::new(RefCell::new(Some(end))),
        }
    }
}

impl FlowTable for Scripted {
    fn reconcile(
        &mut self,
        _: Family,
        reconciliation: &Reconciliation<'_>,
        confirm: &mut dyn FnMut(&mut Vec<crate::conntrack::Flow>),
    ) -> Result<Cleaned, ConntrackError> {
        let mut found = ["10.244.0.1:53", "10.244.0.2:53"].map(flow_to).to_vec();
        found.retain(|flow| reconciliation.is_stale(flow));
        if let (Some(job), Some(end)) = (self.comes.take(), &*self.end.borrow()) {
            end.send(job).expect("the thread listens");
        }
        confirm(&mut found);
        let stale = |endpoint| found.contains(&flow_to(endpoint));
        self.stale.borrow_mut().push([stale("10.244.0.1:53"), stale("10.244.0.2:53")]);
        let answer = self.answers.borrow_mut().pop_front().expect("an answer");
        let echoes = answer.as_ref().is_ok_and(|cleaned| !cleaned.untranslated.is_empty());
        if self.answers.borrow().is_empty() && !echoes {
            self.end.borrow_mut().take();
        }
        answer
    }

    fn end(
        &mut self,
        _: IpAddr,
        _: &dyn Fn(&crate::conntrack::Entry) -> bool,
        _: &dyn Fn(&[crate::conntrack::Flow]),
    ) -> Result<(usize, bool), ConntrackError> {
        panic!("nothing is to be ended")
    }

    fn delete(&mut self, flows: &[crate::conntrack::Flow]) {
        self.echoes.borrow_mut().extend(flows.iter().map(|flow| flow.original));
        self.end.borrow_mut().take();
    }
}

/// Nobody listens.
fn told() -> Told {
    Told {
        metrics: Arc::new(Metrics::new(Mode::Nftables, &BuildInfo::default(), Timestamp::now())),
        notes: tokio::sync::mpsc::unbounded_channel().0,
        status: SharedStatus::default(),
        inbox: Arc::default(),
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
    let scripted = Scripted::new([failed, partial, Ok(Cleaned::default())], sender);
    let mut refusals = 1;
    work(&jobs, "here".into(), &told(), || {
        if refusals > 0 {
            refusals -= 1;
            return Err(ConntrackError::Open(error()));
        }
        Ok(scripted.clone())
    });
    assert_eq!(*scripted.stale.borrow(), [[true, false]; 3]);
}

// Its endpoint came after the job, and before the flows were listed.
#[test]
fn a_flow_to_an_endpoint_that_has_just_come_is_spared() {
    let (mut flows, jobs) = flows();
    flows.turn(&turn(vec![dns(&[], "10.244.0.3")], Ok(())));
    let first = jobs.try_recv().expect("a job");
    flows.turn(&turn(vec![dns(&[], "10.244.0.2")], Ok(())));
    let second = jobs.try_recv().expect("another");
    let Flows { jobs: sender, .. } = flows;
    sender.send(first).expect("a receiver");
    let scripted = Scripted::new([Ok(Cleaned::default()), Ok(Cleaned::default())], sender);
    scripted.comes.replace(Some(second));
    work(&jobs, "here".into(), &told(), || Ok(scripted.clone()));
    assert_eq!(*scripted.stale.borrow(), [[true, false]; 2]);
}

// Seen in the record: an endpoint goes, and its Service, before anybody has looked at flows. A steady
// sender to that endpoint ends with both, whichever job is done.
#[test]
fn a_service_that_goes_while_its_flows_wait_takes_those_of_former_endpoints_along() {
    let (mut flows, jobs) = flows();
    flows.turn(&turn(vec![dns(&[], "10.244.0.2")], Ok(())));
    flows.turn(&turn(vec![InForce { service: None, ..dns(&[], "10.244.0.2") }], Ok(())));
    let Flows { jobs: sender, .. } = flows;
    let scripted = Scripted::new([Ok(Cleaned::default())], sender);
    work(&jobs, "here".into(), &told(), || Ok(scripted.clone()));
    assert_eq!(*scripted.stale.borrow(), [[true, true]]);
}

// An answer of whoever was there before the Service may be on its way when the flow is deleted: it
// would begin a flow backwards, by which the client's packets go on past the Service.
#[test]
fn what_an_answer_on_its_way_begins_is_deleted_too() {
    let (mut flows, jobs) = flows();
    flows.turn(&turn(vec![dns(&[], "10.244.0.1")], Ok(())));
    let Flows { jobs: sender, .. } = flows;
    let untranslated = flow_to("10.96.0.10:53");
    let cleaned = Cleaned { deleted: 1, untranslated: vec![untranslated], ..Cleaned::default() };
    let scripted = Scripted::new([Ok(cleaned)], sender);
    work(&jobs, "here".into(), &told(), || Ok(scripted.clone()));
    assert_eq!(*scripted.echoes.borrow(), [untranslated.reply]);
}
