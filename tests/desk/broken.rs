//! "Done when": of three nodes one is broken, in each of the thirteen ways of `tests/inspect/broken.rs`;
//! `kubectl kubeweir status` and `diff` name the node and the cause, and nobody has a shell on it.
//!
//! An object that is wrong is wrong on all nodes. What breaks one node of many is an agent that has not
//! heard of a change, so that its clients meet the situation that the others have left behind: 1 to 9.

use std::fs;

use kubeweir::model::Kind;
use serde_json::{Value, json};

use super::cluster::{Cluster, DESK, manifests};

const FROZEN: &str = "node-b: not reached: kubeweir status there: asking the agent at \
                      127.0.0.1:10249/kubeweir/status: no answer within 5 s";

/// An object of the manifests, changed.
fn change(cluster: &Cluster, kind: &str, name: &str, change: impl FnOnce(&mut Value)) {
    let found = |object: &&Value| object["kind"] == kind && object["metadata"]["name"] == name;
    let mut object = manifests().iter().find(found).expect("it is among the manifests").clone();
    change(&mut object);
    cluster.server.put(&object);
}

/// `diff` until the two others have what the API wants; node-b's differences.
#[track_caller]
fn diff(cluster: &Cluster) -> String {
    cluster.wait("the others' syncs", |cluster| {
        cluster.ask(&["diff"]).stdout.contains("node-a, node-c: no difference")
    });
    let diff = cluster.ask(&["diff"]);
    diff.is(1, &["node-b:\n"]);
    diff.stdout
}

#[track_caller]
fn names(text: &str, way: &str, sentences: &[&str]) {
    for sentence in sentences {
        assert!(text.contains(sentence), "{way}: no {sentence:?} in:\n{text}");
    }
}

// Its connection to the API server is silent: it runs, and looks well to itself.
#[test]
fn an_agent_that_is_not_told() {
    let cluster = Cluster::start();
    let silence = format!(
        "table ip silence {{
            chain input {{ type filter hook input priority 0; ip saddr {DESK} drop; }}
            chain output {{ type filter hook output priority 0; ip daddr {DESK} drop; }}
        }}"
    );
    cluster.nodes["node-b"].nft(&silence).unwrap();
    // No Service more or less.
    change(&cluster, "EndpointSlice", "cart-1", |slice| {
        slice["endpoints"][0]["conditions"]["ready"] = true.into();
    });
    let lag = "  node-b: it lags: it has EndpointSlices of resourceVersion ";
    cluster.wait("what the others heard", |cluster| {
        let status = cluster.ask(&["status"]);
        let only = status.stdout.matches("it lags").count() == 1;
        status.code == 1 && status.stdout.contains(lag) && only
    });
}

// Ways 1 to 9: what was wrong was put right, and node-b has not heard of it.
#[test]
fn an_agent_that_hears_nothing() {
    let cluster = Cluster::start();
    cluster.freeze("node-b");
    cluster.ask(&["status"]).is(2, &[FROZEN]);

    change(&cluster, "EndpointSlice", "cart-1", |slice| {
        slice["endpoints"][0]["conditions"]["ready"] = true.into();
    });
    names(
        &diff(&cluster),
        "1: Pods are not ready",
        &[
            "  shop/cart:http (ip)",
            "10.96.0.11:80/tcp: endpoint 10.244.0.12:8080 is missing in the kernel",
        ],
    );
    change(&cluster, "EndpointSlice", "gate-1", |slice| {
        slice["endpoints"][0]["nodeName"] = "node-b".into();
    });
    names(
        &diff(&cluster),
        "2: policy Local and the Pods elsewhere",
        &["  shop/gate:https (ip)", "198.51.100.12:443/tcp"],
    );
    change(&cluster, "Service", "admin", |service| {
        service["spec"]["loadBalancerSourceRanges"] = json!(["172.20.0.0/16"]);
    });
    names(
        &diff(&cluster),
        "3: a client outside of loadBalancerSourceRanges",
        &["  shop/admin:https (ip)", "172.20.0.0/16 is missing in the kernel"],
    );
    change(&cluster, "Service", "session", |service| {
        service["spec"]["ports"][0]["port"] = 8080.into();
    });
    names(
        &diff(&cluster),
        "4: a wrong port",
        &["  shop/session:http (ip)", "10.96.0.14:8080/tcp is missing in the kernel"],
    );
    change(&cluster, "Service", "cart", |service| {
        service["spec"]["ports"][0]["protocol"] = "UDP".into();
    });
    names(
        &diff(&cluster),
        "5: a wrong protocol",
        &["10.96.0.11:80/udp is missing in the kernel", "10.96.0.11:80/tcp is in the kernel"],
    );
    cluster.server.delete(Kind::Service, "shop", "admin");
    names(
        &diff(&cluster),
        "6: a deleted Service",
        &["10.96.0.13:443/tcp is in the kernel, but not in the objects"],
    );
    change(&cluster, "Service", "web", |service| {
        service["spec"]["ports"][0]["nodePort"] = 30081.into();
    });
    names(
        &diff(&cluster),
        "8: a NodePort's number elsewhere",
        &["nodePort 30081/tcp is missing in the kernel", "nodePort 30080/tcp is in the kernel"],
    );
    change(&cluster, "Service", "web", |service| service["spec"]["externalIPs"] = json!([]));
    names(
        &diff(&cluster),
        "9: two Services that claim one address",
        &[
            "  test/intruder:http (ip)",
            "198.51.100.10:80/tcp: owner shop/web:http is in the kernel, but not in the objects",
            "198.51.100.10:80/tcp: owner test/intruder:http is missing in the kernel",
        ],
    );
    // Way 7: its address changed, so that NodePorts are dialled where it takes none.
    cluster.nodes["node-b"].ip("addr add 10.200.2.9/24 dev eth0").unwrap();
    let mut node = super::cluster::node("node-b", 2);
    node["status"]["addresses"] = json!([{ "type": "InternalIP", "address": "10.200.2.9" }]);
    cluster.server.put(&node);
    names(
        &diff(&cluster),
        "7: a NodePort on an address that takes none",
        &["no single service (ip)", "10.200.2.9 is missing in the kernel"],
    );
    cluster.thaw("node-b");
    cluster.wait("its sync", |cluster| cluster.ask(&["diff"]).code == 0);
}

#[test]
fn a_contest_is_named_by_status() {
    let cluster = Cluster::start();
    let contest =
        "IPv4: 198.51.100.10:80/tcp belongs to shop/web:http, but test/intruder:http claims it too";
    cluster.ask(&["status"]).is(1, &[&format!("all 3 nodes: {contest}")]);
}

// Way 10.
#[test]
fn an_agent_that_does_not_run() {
    let mut cluster = Cluster::start();
    cluster.end("node-b");
    let why = "node-b: not reached: its agent does not run: pod kube-system/kubeweir-node-b: CrashLoopBackOff, \
               exit code 1, restarted 4 times";
    cluster.ask(&["status"]).is(2, &[why]);
    cluster.ask(&["diff"]).is(2, &["node-a, node-c: no difference", why]);
}

// Ways 11 and 12. An agent that runs repairs it: this one hangs.
#[test]
fn what_somebody_deleted() {
    let cluster = Cluster::start_with(|_, config| {
        config["kubeweir"]["tableOwnership"] = false.into();
    });
    cluster.freeze("node-b");
    let nft = |script: &str| cluster.nodes["node-b"].nft(script).unwrap();
    nft("delete element ip kube-proxy refused-services { 10.96.0.11 . tcp . 80 }");
    names(
        &diff(&cluster),
        "11: an element that someone deleted",
        &["  shop/cart:http (ip)", "10.96.0.11:80/tcp is missing in the kernel"],
    );
    nft("flush chain ip kube-proxy nat-prerouting");
    names(
        &diff(&cluster),
        "11: a rule that someone deleted",
        &["rule of chain nat-prerouting: ip daddr @frontend-ips jump", "is missing in the kernel"],
    );
    nft("delete table ip kube-proxy");
    names(
        &diff(&cluster),
        "12: a table that someone deleted",
        &["no single service (ip)", "table kube-proxy is missing in the kernel"],
    );
    cluster.ask(&["status"]).is(2, &[FROZEN]);
}

// Way 13: as in `tests/agent/quarantine.rs`, something takes an element away, or puts one there, right
// before each commit, so that the kernel refuses what the agent wants for one Service.
#[test]
fn a_service_that_the_kernel_refuses() {
    let cluster = Cluster::start_meddled(
        "node-b",
        "[ -e $MEDDLED ] && exit 0\n\
         nft 'delete element ip kube-proxy endpoints-1 { 10.96.0.66 . tcp . 80 }' 2>/dev/null ||\n\
         nft 'add element ip kube-proxy endpoints-1 { 10.96.0.66 . tcp . 80 : 10.244.9.9 . 9 }'\n\
         touch $MEDDLED",
    );
    let switch = cluster.files().join("meddling");
    fs::write(&switch, "").unwrap();
    change(&cluster, "Service", "cart", |service| {
        service["metadata"]["name"] = "culprit".into();
        service["spec"]["clusterIP"] = "10.96.0.66".into();
        service["spec"]["clusterIPs"] = json!(["10.96.0.66"]);
    });
    change(&cluster, "EndpointSlice", "cart-1", |slice| {
        slice["metadata"]["name"] = "culprit-1".into();
        slice["metadata"]["labels"]["kubernetes.io/service-name"] = "culprit".into();
        slice["endpoints"][0]["conditions"]["ready"] = true.into();
    });
    cluster.wait("the refusal", |cluster| {
        cluster.ask(&["status"]).stdout.contains("shop/culprit is set aside")
    });
    let status = cluster.ask(&["status"]);
    status.is(1, &["node-b: IPv4: shop/culprit is set aside, refused ", "element endpoints-1: "]);
    for well in [
        "node-a: IPv4: shop/culprit",
        "node-c: IPv4: shop/culprit",
        "all 3 nodes: IPv4: shop/culprit",
    ] {
        assert!(!status.stdout.contains(well), "{}", status.stdout);
    }
    let diff = cluster.ask(&["diff"]);
    diff.is(1, &["node-b:\n", "shop/culprit:http (ip)", "node-a, node-c: no difference"]);
    fs::remove_file(switch).unwrap();
    cluster
        .wait("the next try", |cluster| !cluster.ask(&["status"]).stdout.contains("is set aside"));
}
