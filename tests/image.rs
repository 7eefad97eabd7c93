//! The image: what is in it, that its archive is sound, and that it serves when it is run as the
//! chart's DaemonSet says: capabilities, read-only root, mounts, the node's network.
//!
//! Needs root, crun and Helm (`make setup helm`).

#![allow(clippy::unwrap_used)] // a test binary, helpers included

#[path = "image/archive.rs"]
mod archive;
#[path = "image/bundle.rs"]
mod bundle;
#[path = "chart/helm.rs"]
#[allow(dead_code)] // the chart's own tests use the rest
mod helm;
#[path = "image/node.rs"]
mod node;

use std::net::SocketAddr;

use kubeweir::model::Family;
use kubeweir::testing::lab::{Place, cluster_ip};
use serde_json::Value;

use archive::Archive;
use node::{Node, PORT};

/// Bytes of everything but the binary: the C library, libgcc, libm, libmnl, libnftnl, licences.
const LIBRARIES_AT_MOST: u64 = 6 << 20;

#[test]
fn the_image_has_the_binary_its_libraries_and_their_licences() {
    let archive = Archive::of_this_build();
    let files = archive.files();
    let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    println!("{files:#?}");
    let libraries: Vec<&str> = names
        .iter()
        .filter(|name| name.starts_with("lib"))
        .map(|name| name.rsplit('/').next().unwrap())
        .map(|name| if name.starts_with("ld-linux") { "the loader" } else { name })
        .collect();
    let expected =
        ["libc.so.6", "libgcc_s.so.1", "libm.so.6", "libmnl.so.0", "libnftnl.so.11", "the loader"];
    assert_eq!(libraries, expected);
    let rest: Vec<&str> = names.into_iter().filter(|name| !name.starts_with("lib")).collect();
    let expected = [
        "usr/local/bin/kube-proxy",
        "usr/local/bin/kubeweir",
        "usr/share/doc/kubeweir/copyright",
        "usr/share/doc/libc6/copyright",
        "usr/share/doc/libgcc-s1/copyright",
        "usr/share/doc/libmnl0/copyright",
        "usr/share/doc/libnftnl11/copyright",
    ];
    assert_eq!(rest, expected);
    let others = files.iter().filter(|(name, _)| name != "usr/local/bin/kubeweir");
    let size: u64 = others.map(|(_, size)| size).sum();
    assert!(size <= LIBRARIES_AT_MOST, "{size} bytes beside the binary");
}

#[test]
fn the_archive_is_an_oci_image_that_starts_as_kube_proxy() {
    let archive = Archive::of_this_build();
    archive.check_digests();
    let config = archive.config();
    assert_eq!(config["config"]["Entrypoint"], serde_json::json!(["/usr/local/bin/kube-proxy"]));
    assert_eq!(config["os"], "linux");
    let label = |name: &str| config["config"]["Labels"][name].as_str().unwrap_or_default();
    assert_eq!(label("org.opencontainers.image.version"), "test");
    assert_eq!(label("org.opencontainers.image.licenses"), "Apache-2.0");
    let user: &Value = &config["config"]["User"];
    assert!(user.is_null(), "capabilities of a container go to root alone");
}

#[test]
fn the_same_files_make_the_same_archive() {
    let archive = Archive::of_this_build();
    assert!(archive.bytes() == Archive::of_this_build().bytes());
}

// B-262: after a privileged --init-only, CAP_NET_ADMIN alone will do.
#[test]
fn the_daemon_set_with_an_init_container_serves_goes_on_and_is_taken_back() {
    let node = Node::new("");
    assert_ne!(node.established_timeout(), "86400");
    node.run_init();
    assert_eq!(node.established_timeout(), "86400", "the init container writes the sysctls");

    let frontend = SocketAddr::new(cluster_ip(0, Family::V4), PORT);
    let pod = node.start();
    node.wait_until(Place::Pod(1), frontend, Some("pod-0"));
    node.wait_until(Place::Outside, node.node_port(), Some("pod-0"));
    pod.check_no_errors();

    // The pod ends: rules stay and serve.
    drop(pod);
    assert_eq!(node.dial(Place::Pod(1), frontend).as_deref(), Some("pod-0"));

    // A new pod, as in a rolling update, takes over and sees what changed meanwhile.
    node.move_service_to(2);
    assert_eq!(node.dial(Place::Pod(1), frontend).as_deref(), Some("pod-0"));
    let pod = node.start();
    node.wait_until(Place::Pod(1), frontend, Some("pod-2"));
    pod.check_no_errors();
    drop(pod);

    // Taken back.
    assert_ne!(node.tables(), "");
    node.run_cleanup();
    assert_eq!(node.tables(), "");
    node.wait_until(Place::Pod(1), frontend, None);
}

#[test]
fn the_privileged_daemon_set_serves() {
    let node = Node::new("privileged: true");
    let pod = node.start();
    let frontend = SocketAddr::new(cluster_ip(0, Family::V4), PORT);
    node.wait_until(Place::Pod(1), frontend, Some("pod-0"));
    assert_eq!(node.established_timeout(), "86400", "no init container, the same sysctls");
    pod.check_no_errors();
}

// B-260: kubeadm's DaemonSet with nothing but the image exchanged; and back: what upstream's kube-proxy
// does first in iptables mode is to delete the tables.
#[test]
fn kubeadms_daemon_set_serves_and_leaves_tables_that_others_can_delete() {
    let node = Node::kubeadm();
    let pod = node.start();
    let frontend = SocketAddr::new(cluster_ip(0, Family::V4), PORT);
    node.wait_until(Place::Pod(1), frontend, Some("pod-0"));
    node.wait_until(Place::Outside, node.node_port(), Some("pod-0"));
    pod.check_no_errors();
    drop(pod);
    for table in node.tables().lines() {
        node.nft(&format!("delete {table}"));
    }
    assert_eq!(node.tables(), "");
}

/// What upstream's nftables mode begins every transaction with; refused where the table is, or was
/// left as, an owned one.
fn add_tables_as_upstream(node: &Node) {
    for family in ["ip", "ip6"] {
        node.nft(&format!("add table {family} kube-proxy {{ comment \"rules for kube-proxy\"; }}"));
    }
}

// The way back to upstream's nftables mode, when the kubelet ends the pod in order.
#[test]
fn ended_in_order_it_leaves_tables_that_upstream_takes_over() {
    let node = Node::new("");
    node.run_init();
    let pod = node.start();
    let frontend = SocketAddr::new(cluster_ip(0, Family::V4), PORT);
    node.wait_until(Place::Pod(1), frontend, Some("pod-0"));
    pod.end();
    add_tables_as_upstream(&node);
    assert_eq!(node.dial(Place::Pod(1), frontend).as_deref(), Some("pod-0"));
}

// The same after a crash: by a next pod without ownership.
#[test]
fn without_ownership_the_tables_are_ones_that_upstream_takes_over() {
    let node = Node::new("privileged: true");
    let frontend = SocketAddr::new(cluster_ip(0, Family::V4), PORT);
    let owner = node.start();
    node.wait_until(Place::Pod(1), frontend, Some("pod-0"));
    drop(owner);
    let pod = node.start_with(&["--table-ownership=false"]);
    node.wait_for_plain_tables();
    assert_eq!(node.dial(Place::Pod(1), frontend).as_deref(), Some("pod-0"));
    drop(pod);
    add_tables_as_upstream(&node);
    assert_eq!(node.dial(Place::Pod(1), frontend).as_deref(), Some("pod-0"));
}
