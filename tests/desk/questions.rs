//! `explain`, `flows` and `top` of all nodes.

use std::net::TcpStream;
use std::process::Command;

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

// Nodes that refuse a client equally often are rare: that is no difference, and the desk adds it up.
#[test]
fn explain_adds_up_what_nodes_counted() {
    let cluster = Cluster::start();
    for (node, times) in [("node-b", 3), ("node-c", 1)] {
        cluster.nodes[node].run(|| {
            for _ in 0..times {
                TcpStream::connect("10.96.0.11:80").expect_err("it has no endpoints");
            }
        });
    }
    let refused = cluster.ask(&["explain", "web-0", "cart", "-n", "shop"]);
    let sentences =
        ["all 3 nodes:", "\n    refused 4 times so far, ", " times in the last minute: "];
    assert_eq!(refused.is(0, &sentences).stdout.matches("so far").count(), 1, "{}", refused.stdout);
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

// Everything of every node in one archive; with addresses, or without.
#[test]
fn dump_is_one_archive() {
    let mut cluster = Cluster::start();
    cluster.end("node-c");
    let archive = |name: &str| cluster.files().join(name).display().to_string();
    let whole = archive("whole.tar");
    cluster
        .ask(&["dump", &whole])
        .is(2, &["status.json of node-c: not reached: its agent does not run", &whole]);
    let text = |archive: &str, file: &str| {
        let extract = Command::new("tar").args(["-xOf", archive, file]).output().unwrap();
        assert!(extract.status.success(), "{file}: {}", String::from_utf8_lossy(&extract.stderr));
        String::from_utf8(extract.stdout).unwrap()
    };
    for (file, word) in [
        ("whole/node-a/status.json", "\"mode\": \"nftables\""),
        ("whole/node-b/diff.json", "\"equal\": true"),
        ("whole/node-a/check.json", "\"required\": true"),
        ("whole/node-b/log.txt", "the log of kubeweir-node-b at 10.200.0.1:443"),
        ("whole/node-a/pod.json", "\"value\": \"(left out)\""),
        ("whole/missing.txt", "node-c"),
    ] {
        let text = text(&whole, file);
        assert!(text.contains(word), "{file}: {text}");
        assert!(!text.contains("s3cret"), "{file}: {text}");
    }
    cluster.ask(&["dump", &whole]).is(2, &["error: writing", "exists"]);
    let bare = archive("bare.tar");
    cluster.ask(&["dump", &bare, "--redact"]).is(2, &[&bare]);
    let log = text(&bare, "bare/node-b/log.txt");
    assert!(log.contains("kubeweir-node-b at ipv4-") && log.contains(":443"), "{log}");
    let all = Command::new("tar").args(["-xOf", &bare]).output().unwrap();
    let all = String::from_utf8(all.stdout).unwrap();
    assert!(
        all.contains("ipv4-2") && !all.contains("10.200.") && !all.contains("198.51.100."),
        "{all}"
    );
}

#[test]
fn completions_and_manual_name_every_command() {
    let kubectl = |args: &[&str]| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_kubectl-kubeweir")).args(args).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let (manual, bash) = (kubectl(&["man"]), kubectl(&["completions", "bash"]));
    for command in ["status", "diff", "explain", "flows", "top", "dump"] {
        assert!(manual.contains(&format!("kubectl\\-kubeweir\\-{command}")), "{command}: {manual}");
        assert!(bash.contains(command), "{command}");
    }
    // kubectl runs it by this name.
    let directory = tempfile::tempdir().unwrap();
    let link = directory.path().join("kubectl_complete-kubeweir");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_kubectl-kubeweir"), &link).unwrap();
    let output = Command::new(&link).arg("ex").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("explain\t") && text.ends_with("\n:4\n"), "{text}");
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

// Krew's manifest has what CI builds for each system, and is what Krew reads.
#[test]
fn krew_finds_what_ci_builds() {
    let template = include_str!("../../charts/krew.yaml");
    let ci = include_str!("../../.github/workflows/ci.yaml");
    let mut archives = Vec::new();
    let lines = template.lines().map(|line| match line.split_once("{{addURIAndSha \"") {
        Some((indent, rest)) => {
            let uri = rest.split('"').next().unwrap().replace("{{ .TagName }}", "v1.0.0");
            archives.push(uri.rsplit('/').next().unwrap().to_owned());
            format!("{indent}uri: {uri}")
        }
        None => line.to_owned(),
    });
    let manifest: serde_json::Value =
        serde_saphyr::from_str(&lines.collect::<Vec<_>>().join("\n")).unwrap();
    let platforms = manifest["spec"]["platforms"].as_array().unwrap();
    assert_eq!((platforms.len(), archives.len()), (5, 5));
    for (platform, archive) in platforms.iter().zip(archives) {
        let labels = &platform["selector"]["matchLabels"];
        let (os, arch) = (labels["os"].as_str().unwrap(), labels["arch"].as_str().unwrap());
        assert_eq!(archive, format!("kubectl-kubeweir-{os}-{arch}.tar.gz"));
        assert!(
            ci.contains(&format!("system: {os}-{arch}}}")),
            "CI does not build for {os}-{arch}"
        );
        let exe = if os == "windows" { ".exe" } else { "" };
        assert_eq!(platform["bin"], format!("kubectl-kubeweir{exe}"));
    }
}
