//! Which nodes are asked, what becomes of those that do not answer, and what programs get.

use std::fs;

use serde_json::{Value, json};

use super::cluster::{Cluster, NODES, pod};

/// What the manifests are known for: one address is claimed twice, so that no node is without a problem.
const CONTESTED: &str =
    "198.51.100.10:80/tcp belongs to shop/web:http, but test/intruder:http claims it too";

fn settled() -> Cluster {
    let cluster = Cluster::start();
    cluster.server.delete(kubeweir::model::Kind::Service, "test", "intruder");
    cluster.wait("the contest's end", |cluster| cluster.ask(&["status"]).code == 0);
    cluster
}

#[test]
fn three_nodes_that_are_well() {
    let cluster = settled();
    let status = cluster.ask(&["status"]);
    status.is(
        0,
        &[
            "NODE",
            "LAST SYNC",
            "all 3 nodes: IPv4: refused, no usable endpoint anywhere: shop/cart:http",
        ],
    );
    for node in NODES {
        let line = status.stdout.lines().find(|line| line.starts_with(node)).expect("a line each");
        assert!(
            line.contains("nftables") && line.contains("well") && line.contains("ago"),
            "{line}"
        );
    }
    assert_eq!(status.stderr, "", "no progress where there is no terminal");
    cluster
        .ask(&["status", "-o", "wide"])
        .is(0, &["kube-system/kubeweir-node-a", "FAILED SYNCS", "NOT LET THROUGH/MIN"]);
    let json = cluster.ask(&["status", "-o", "json"]).json();
    let node = &json["nodes"][1];
    assert_eq!(
        (&node["node"], &node["answer"]["status"]["mode"]),
        (&"node-b".into(), &"nftables".into())
    );
    let yaml: Value =
        serde_saphyr::from_str(&cluster.ask(&["status", "-o", "yaml"]).stdout).unwrap();
    assert_eq!(yaml["nodes"][1]["answer"]["problems"], json!([]));
    cluster.ask(&["diff"]).is(0, &["all 3 nodes: no difference"]);
    let json = cluster.ask(&["diff", "-o", "json"]).json();
    assert_eq!(json["nodes"][2]["answer"]["equal"], true, "{json}");
}

// Programs in pods are run over the protocol of servers before 1.30, too.
#[test]
fn an_older_server_is_spoken_to() {
    let cluster = Cluster::start();
    cluster.server.only_v4();
    cluster.ask(&["diff"]).is(0, &["all 3 nodes: no difference"]);
    cluster.ask(&["status"]).is(1, &[CONTESTED, "all 3 nodes: IPv4: "]);
}

#[test]
fn nodes_are_selected_by_label() {
    let cluster = Cluster::start();
    let diff = cluster.ask(&["diff", "-l", "rack=node-b"]);
    diff.is(0, &["node-b: no difference"]);
    assert!(!diff.stdout.contains("node-a"), "{}", diff.stdout);
    let asked = cluster.server.requests().into_iter().filter(|r| r.path.ends_with("/exec")).count();
    assert_eq!(asked, 1, "nobody else was asked");
}

// One hangs, one refuses, and the third has its answer all the same.
#[test]
fn who_does_not_answer_is_named_with_the_reason() {
    let cluster = settled();
    cluster.silence("node-a");
    cluster.break_runtime("node-b", "error executing command in container: no running task found");
    // As long as the others may take on a slow machine; node-a never answers.
    let status = cluster.ask(&["status", "--timeout", "15s"]);
    status.is(
        2,
        &[
            "node-a: not reached: pod kube-system/kubeweir-node-a: no answer within 15 s",
            "node-b: not reached: pod kube-system/kubeweir-node-b: running kubeweir there: \
             Internal error occurred: error executing command in container: no running task found",
        ],
    );
    assert!(status.stdout.lines().any(|line| line.starts_with("node-c") && line.contains("well")));
    cluster.swap_program("node-a");
    let diff = cluster.ask(&["diff", "-o", "json"]);
    diff.is(2, &[]);
    let json = diff.json();
    assert_eq!(json["nodes"][0]["unreached"], "kubeweir diff there: no such command");
    assert_eq!(json["nodes"][2]["answer"]["equal"], true);
}

#[test]
fn a_node_without_an_agent_is_named() {
    let mut cluster = settled();
    cluster.end("node-c");
    cluster.server.put(&json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node-d" },
    }));
    cluster.server.put(&json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": "node-w", "labels": { "kubernetes.io/os": "windows" } },
    }));
    let status = cluster.ask(&["status"]);
    status.is(
        2,
        &[
            "node-c: not reached: its agent does not run: pod kube-system/kubeweir-node-c: CrashLoopBackOff, \
             exit code 1, restarted 4 times",
            "node-d: not reached: no pod of an agent is on this node",
        ],
    );
    assert!(!status.stdout.contains("node-w"), "Windows has no agent: {}", status.stdout);
}

// As kubectl: $KUBECONFIG, several files, a context; and what is wrong is said once.
#[test]
fn the_cluster_is_found_as_kubectl_finds_it() {
    let cluster = Cluster::start();
    let here = cluster.files().join("kubeconfig");
    let mut other: Value = serde_json::from_str(&fs::read_to_string(&here).unwrap()).unwrap();
    other["current-context"] = "elsewhere".into();
    other["clusters"][0]["name"] = "elsewhere".into();
    other["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1".into();
    other["contexts"][0] =
        json!({ "name": "elsewhere", "context": { "cluster": "elsewhere", "user": "default" } });
    let first = cluster.files().join("first");
    fs::write(&first, other.to_string()).unwrap();
    let list = format!("{}:/nonexistent:{}", first.display(), here.display());
    let files = [("KUBECONFIG", list.as_str())];
    cluster.run(&["diff", "--context", "default"], &files).is(0, &["all 3 nodes: no difference"]);
    cluster.run(&["diff"], &files).is(2, &["error: listing"]);
    cluster.run(&["diff", "--context", "none"], &files).is(2, &["error: cannot load kubeconfig"]);
    cluster.run(&["diff", "--kubeconfig", "/nonexistent"], &[]).is(2, &["/nonexistent"]);
    cluster.ask(&["diff", "--agents-namespace", "elsewhere"]).is(
        2,
        &[
            "error: no agent in namespace elsewhere with labels app.kubernetes.io/name=kubeweir or k8s-app=kube-proxy",
            "Name them with --agents-namespace and --agents-selector.",
        ],
    );
    cluster.ask(&["dif"]).is(2, &["diff"]);
    let mut kubeadm = pod("node-a");
    kubeadm["metadata"]["labels"] = json!({ "k8s-app": "kube-proxy" });
    kubeadm["metadata"]["namespace"] = "proxies".into();
    cluster.server.put_pod(kubeadm);
    cluster
        .ask(&["diff", "--agents-namespace", "proxies", "-l", "rack=node-a"])
        .is(0, &["node-a: no difference"]);
}

// Who waits for longer than a second at a terminal sees how far it is.
#[test]
fn progress_is_for_terminals() {
    let cluster = settled();
    cluster.silence("node-a");
    let kubeconfig = cluster.files().join("kubeconfig");
    let command = format!(
        "{} diff --timeout 15s --kubeconfig {}",
        env!("CARGO_BIN_EXE_kubectl-kubeweir"),
        kubeconfig.display()
    );
    let said = cluster.run_program("script", &["-qec", &command, "/dev/null"]);
    said.is(
        2,
        &[
            "2 of 3 nodes have answered",
            "not reached: pod kube-system/kubeweir-node-a: no answer within 15 s",
            "node-b, node-c: no difference",
        ],
    );
}
