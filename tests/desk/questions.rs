//! `explain`, `flows` and `top` of all nodes.

use super::cluster::{Cluster, NODES};

// A pod and a Service by name; where all nodes agree, one answer.
#[test]
fn explain_says_once_what_all_nodes_say() {
    let cluster = Cluster::start();
    let refused = cluster.ask(&["explain", "web-0", "cart", "-n", "shop"]);
    refused.is(
        0,
        &[
            "all 3 nodes:\n  10.244.0.10 -> 10.96.0.11:80/tcp: refused",
            "shop/cart:http has no usable endpoints anywhere",
        ],
    );
    assert!(!refused.stdout.contains("steps"), "{}", refused.stdout);
    cluster
        .ask(&["explain", "shop/web-0", "shop/web:http", "-o", "wide"])
        .is(0, &["served", "steps (the"]);
    let one = cluster.ask(&[
        "explain",
        "10.244.0.12",
        "10.96.0.10:80",
        "--from-node",
        "node-c",
        "-o",
        "json",
    ]);
    let json = one.is(0, &[]).json();
    assert_eq!(json["nodes"].as_array().map(Vec::len), Some(1), "{json}");
    assert_eq!(json["nodes"][0]["answer"]["service"], "shop/web:http");
    for (from, to, sentence) in [
        ("web-9", "web", "looking up pod shop/web-9"),
        ("web-0", "wbe", "looking up Service shop/wbe"),
        ("web-0", "web:https", "the Service has no such port; it has 80/tcp"),
        ("fd00::1", "10.96.0.10:80", "it has no address of the source's family"),
        ("WEB", "web", "neither an address nor a name"),
    ] {
        cluster.ask(&["explain", from, to, "-n", "shop"]).is(2, &["error: ", sentence]);
    }
    let nowhere = ["explain", "web-0", "web", "-n", "shop", "--from-node", "node-x"];
    cluster.ask(&nowhere).is(2, &["error: there is no node node-x"]);
}

// Policy Local: the nodes have different answers, and each has its own.
#[test]
fn explain_names_the_nodes_that_say_otherwise() {
    let cluster = Cluster::start();
    cluster.freeze("node-b");
    cluster.server.delete(kubeweir::model::Kind::Service, "shop", "cart");
    cluster.wait("the others' syncs", |cluster| {
        cluster.ask(&["diff"]).stdout.contains("node-a, node-c: no difference")
    });
    let explained = cluster.ask(&["explain", "10.244.0.10", "10.96.0.11:80"]);
    explained.is(
        1,
        &[
            "node-a, node-c:\n  10.244.0.10 -> 10.96.0.11:80/tcp: dropped",
            "no Service has it",
            "node-b:\n  10.244.0.10 -> 10.96.0.11:80/tcp: refused",
            "shop/cart:http has no usable endpoints anywhere",
        ],
    );
}

#[test]
fn flows_have_their_node() {
    let cluster = Cluster::start();
    // Nobody answers there, so that the flow stays as it is.
    let dial =
        || std::net::UdpSocket::bind("10.200.2.2:0").and_then(|s| s.send_to(b"x", "10.96.0.20:53"));
    cluster.server.put(&serde_json::json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "namespace": "dns", "name": "dns" },
        "spec": { "clusterIP": "10.96.0.20", "clusterIPs": ["10.96.0.20"],
                  "ports": [{ "name": "dns", "port": 53, "protocol": "UDP" }] },
    }));
    cluster.server.put(&serde_json::json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "namespace": "dns", "name": "dns-1", "labels": { "kubernetes.io/service-name": "dns" } },
        "ports": [{ "name": "dns", "port": 53, "protocol": "UDP" }],
        "endpoints": [{ "addresses": ["10.244.9.9"] }],
    }));
    cluster.wait("the new Service", |cluster| {
        cluster
            .ask(&["explain", "10.200.2.2", "dns", "-n", "dns"])
            .stdout
            .contains("all 3 nodes:\n  10.200.2.2 -> 10.96.0.20:53/udp: served")
    });
    cluster.nodes["node-b"].run(dial).unwrap();
    let flows = cluster.ask(&["flows", "dns", "-n", "dns"]);
    let line = |line: &&str| line.starts_with("node-b  udp") && line.contains("10.244.9.9:53");
    assert!(flows.is(0, &["NODE"]).stdout.lines().any(|text| line(&text)), "{}", flows.stdout);
    assert_eq!(flows.stdout.lines().count(), 2, "{}", flows.stdout);
    cluster.ask(&["flows", "-n", "shop"]).is(0, &["no flows"]);
    assert_eq!(
        cluster.ask(&["flows", "-o", "json"]).json()["nodes"][1]["answer"][0]["state"],
        "UNREPLIED"
    );
    cluster.ask(&["flows", "none", "-n", "shop"]).is(
        2,
        &["all 3 nodes: not reached: kubeweir flows there: the kernel's tables have no Service shop/none"],
    );
}

#[test]
fn top_adds_up_what_nodes_count() {
    let counting = Cluster::start_with(|node, config| {
        config["kubeweir"]["serviceCounters"] = (node != "node-c").into();
    });
    let top = counting.ask(&["top", "--limit", "2"]);
    top.is(
        2,
        &[
            "SERVICE PORT",
            "BUSIEST NODE",
            "more, see --limit",
            "node-c: not reached: kubeweir top there: the agent at 127.0.0.1:10249 does not count connections",
        ],
    );
    let json = counting.ask(&["top", "-n", "shop", "-o", "json"]).json();
    for (node, answer) in NODES.iter().zip(json["nodes"].as_array().unwrap()).take(2) {
        assert_eq!(answer["node"], **node);
        let ports = answer["answer"].as_array().unwrap();
        assert!(
            !ports.is_empty()
                && ports.iter().all(|rate| rate["port"].as_str().unwrap().starts_with("shop/"))
        );
    }
}
