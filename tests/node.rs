//! Interface addresses of the real kernel, in a namespace.

#![allow(clippy::unwrap_used)] // a test binary, helpers included

mod netns;

use std::net::IpAddr;
use std::time::Duration;

use kubeweir::model::{Family, NodeAddresses, PerFamily};
use kubeweir::node::addresses;
use kubeweir::node::nodeport::{NodePortAddress, NodePortAddresses, nodeport_addresses};
use kubeweir::program::NodePortMatch;
use netns::{in_netns, run};
use tokio::sync::watch;

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().expect("a literal address")).collect()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// Waits until the watch shows these addresses.
async fn until(receiver: &mut watch::Receiver<NodeAddresses>, wanted: &[&str]) {
    let wanted = NodeAddresses(ips(wanted));
    let reached = receiver.wait_for(|addresses| *addresses == wanted);
    let outcome = tokio::time::timeout(Duration::from_secs(10), reached).await.map(|r| r.is_ok());
    assert_eq!(outcome, Ok(true), "waited for {wanted:?}, have {:?}", *receiver.borrow());
}

// addresses that come and go are followed, sorted, both families.
#[test]
fn changes_are_delivered() {
    in_netns(|| {
        run(&["ip", "link", "add", "kw0", "type", "veth", "peer", "name", "kw1"], "");
        runtime().block_on(async {
            let (sender, mut receiver) = watch::channel(NodeAddresses::default());
            let watching = tokio::spawn(addresses::watch(sender));
            until(&mut receiver, &["127.0.0.1", "::1"]).await;
            run(&["ip", "address", "add", "192.0.2.7/24", "dev", "kw0"], "");
            until(&mut receiver, &["127.0.0.1", "192.0.2.7", "::1"]).await;
            run(&["ip", "address", "add", "fd00::7/64", "dev", "kw0"], "");
            until(&mut receiver, &["127.0.0.1", "192.0.2.7", "::1", "fd00::7"]).await;
            run(&["ip", "link", "delete", "kw0"], "");
            until(&mut receiver, &["127.0.0.1", "::1"]).await;
            drop(receiver);
            let end = tokio::time::timeout(Duration::from_secs(10), watching).await;
            end.expect("it ends with its receivers").expect("no panic").expect("no error");
        });
    });
}

#[test]
fn many_changes_end_in_the_right_state() {
    in_netns(|| {
        let batch: String =
            (1..=250).map(|n| format!("address add 10.7.0.{n}/32 dev lo\n")).collect();
        let all: Vec<String> = (1..=250).map(|n| format!("10.7.0.{n}")).collect();
        let mut all: Vec<&str> =
            all.iter().map(String::as_str).chain(["127.0.0.1", "::1"]).collect();
        all.sort_by_key(|text| text.parse::<IpAddr>().expect("a literal address"));
        runtime().block_on(async {
            let (sender, mut receiver) = watch::channel(NodeAddresses::default());
            tokio::spawn(addresses::watch(sender));
            until(&mut receiver, &["127.0.0.1", "::1"]).await;
            run(&["ip", "-batch", "-"], &batch);
            until(&mut receiver, &all).await;
        });
    });
}

// The node's own end of a point-to-point link counts, not the peer's.
#[test]
fn point_to_point_links_have_a_local_end() {
    in_netns(|| {
        run(&["ip", "address", "add", "192.0.2.1", "peer", "192.0.2.99", "dev", "lo"], "");
        let read = runtime().block_on(addresses::read()).expect("a list of addresses");
        assert_eq!(read, NodeAddresses(ips(&["127.0.0.1", "192.0.2.1", "::1"])));
    });
}

// B-152, B-155: what the kernel reports and what the configuration names meet.
#[test]
fn nodeport_addresses_of_a_real_node() {
    in_netns(|| {
        run(&["ip", "address", "add", "192.0.2.7/24", "dev", "lo"], "");
        run(&["ip", "address", "add", "198.51.100.7/24", "dev", "lo"], "");
        let assigned = runtime().block_on(addresses::read()).expect("a list of addresses");
        let cidrs = ["192.0.2.0/24", "127.0.0.0/8"]
            .map(|c| NodePortAddress::Cidr(c.parse().expect("a literal CIDR")));
        let configured = NodePortAddresses(cidrs.to_vec());
        let [v4, v6] = [ips(&["192.0.2.7"])[0], ips(&["::1"])[0]];
        let node_ips = PerFamily { v4, v6 };
        let decision = nodeport_addresses(&configured, &node_ips, &assigned, Family::V4, false);
        assert_eq!(decision.matched, NodePortMatch::Addresses(ips(&["192.0.2.7"])));
        assert_eq!(decision.hints.len(), 1, "the loopback address is reported");
    });
}
