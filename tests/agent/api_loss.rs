//! The API server goes and comes back; traffic stays.

use kubeweir::model::{Family, Kind, Protocol};
use kubeweir::testing::api_server::{Ask, Signal};
use kubeweir::testing::lab::{NODE_NAME, Outcome, PATIENCE, Place};

use crate::objects::{service, slice};
use crate::site::{HEALTHZ, SOON, Site};

fn lists(site: &Site) -> usize {
    let asks = [Ask::StreamingList, Ask::List, Ask::ListPage];
    Kind::ALL.into_iter().flat_map(|kind| asks.map(|ask| site.server.count(kind, ask))).sum()
}

// B-235: an outage changes neither rules nor health; afterwards each watch goes on where it was,
// without a single new list, and what changed meanwhile takes effect.
#[test]
fn outage() {
    let mut site = Site::lab();
    site.server.put(&service("web", 1));
    site.server.put(&slice("web", Family::V4, &[Place::Pod(0)]));
    let proxy = site.start();
    site.wait_served(&proxy, 1, "pod-0");
    Kind::ALL.into_iter().for_each(|kind| site.wait_watched(kind));
    let (rules, listed) = (site.table(Family::V4), lists(&site));
    let to = (kubeweir::testing::lab::cluster_ip(1, Family::V4), 80).into();
    let mut flow = site.lab_ref().open(Place::Pod(1), Protocol::Tcp, to).unwrap();

    site.server.stop();
    site.server.put(&slice("web", Family::V4, &[Place::Pod(2)]));
    proxy.wait_log(&["EndpointSlice", "refused"]);
    assert_eq!(site.table(Family::V4), rules);
    assert!(flow.ask(PATIENCE).answer().is_some(), "an open connection");
    let outcome = site.dial_cluster_ip(Place::Pod(1), Protocol::Tcp, 1);
    assert_eq!(outcome.answer().unwrap().server, "pod-0", "a new one");
    assert_eq!(site.get(HEALTHZ, "/healthz").status, 200);

    resume(&mut site);
    site.wait_served(&proxy, 1, "pod-2");
    Kind::ALL.into_iter().for_each(|kind| site.wait_watched(kind));
    assert_eq!(lists(&site), listed, "no list anew");
    assert!(flow.ask(PATIENCE).answer().is_some(), "the connection is still open");
}

fn resume(site: &mut Site) {
    let Site { ground, server, .. } = site;
    ground.node().run(|| server.resume().unwrap());
}

// B-192: history is gone when the server returns: one list per kind, and what was deleted meanwhile
// goes.
#[test]
fn restart_without_history() {
    let mut site = Site::lab();
    for (name, n, pod) in [("web", 1, 0), ("gone", 2, 2)] {
        site.server.put(&service(name, n));
        site.server.put(&slice(name, Family::V4, &[Place::Pod(pod)]));
    }
    let proxy = site.start();
    site.wait_served(&proxy, 2, "pod-2");
    Kind::ALL.into_iter().for_each(|kind| site.wait_watched(kind));
    let listed = lists(&site);
    for kind in Kind::ALL {
        site.server.signal(kind, Signal::Cut);
    }
    site.server.stop();
    site.server.delete(Kind::Service, "default", "gone");
    site.server.age(10_000);
    site.server.compact();
    resume(&mut site);
    let gone = |outcome: &Outcome| *outcome == Outcome::Silent;
    site.wait_outcome(&proxy, Place::Pod(1), 2, gone);
    Kind::ALL.into_iter().for_each(|kind| site.wait_watched(kind));
    assert_eq!(lists(&site) - listed, Kind::ALL.len());
    assert!(site.dial_cluster_ip(Place::Pod(1), Protocol::Tcp, 1).answer().is_some());
}

// B-190: an API server that is not there yet is waited for, and old rules serve meanwhile (B-191).
#[test]
fn start_without_an_api_server() {
    let mut site = Site::lab();
    site.server.put(&service("web", 1));
    site.server.put(&slice("web", Family::V4, &[Place::Pod(0)]));
    let proxy = site.start();
    site.wait_served(&proxy, 1, "pod-0");
    proxy.terminate();
    let config = site.config(|_| {});
    site.server.stop();
    let proxy = site.launch(&[&config, &format!("--hostname-override={NODE_NAME}")]);
    proxy.wait_log(&["Node", "refused"]);
    assert!(!site.listens(std::net::Ipv4Addr::LOCALHOST.into(), HEALTHZ));
    assert!(site.dial_cluster_ip(Place::Pod(1), Protocol::Tcp, 1).answer().is_some());
    site.server.put(&slice("web", Family::V4, &[Place::Pod(2)]));
    resume(&mut site);
    site.wait_served(&proxy, 1, "pod-2");
    site.server.wait("the Event", SOON, |server| server.count_events() > 0);
}
