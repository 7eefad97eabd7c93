//! Broken situations: what a person sees who asks about them with `explain`, `status` and `diff`.
//!
//! 1. pods are not ready
//! 2. policy Local and the pods elsewhere
//! 3. a client outside of loadBalancerSourceRanges
//! 4. a wrong port
//! 5. a wrong protocol
//! 6. a deleted Service
//! 7. a NodePort on an address that takes none
//! 8. a NodePort's number on another address of the Service
//! 9. two Services that claim one address
//! 10. an agent that does not run while endpoints change
//! 11. an element or a rule that someone deleted
//! 12. a table that someone deleted
//! 13. a Service that the kernel refuses

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use kubeweir::model::Protocol;
use kubeweir::status::{FamilyStatus, PATH, QuarantinedService, Status};
use kubeweir::testing::lab::{Dial, Netns, Place};

use super::scene::{Said, Scene, binary, kubeweir, unprivileged};

fn says(said: &Said, code: i32, sentence: &str) {
    let text = format!("{}{}", said.stdout, said.stderr);
    assert!(text.contains(sentence), "no {sentence:?} in:\n{text}");
    assert_eq!(said.code, code, "{text}");
}

const POD: &str = "10.244.0.10";
const OUTSIDE: &str = "172.20.0.2";

// Situations 1 to 9.
#[test]
fn explain_tells_the_cause() {
    let scene = Scene::with_agent(&[]);
    let cases = [
        (
            "pods are not ready",
            POD,
            "10.96.0.11:80",
            "shop/cart:http has no usable endpoints anywhere: check its EndpointSlices",
        ),
        (
            "policy Local, pods elsewhere",
            OUTSIDE,
            "198.51.100.12:443",
            "shop/gate:https has a traffic policy of Local and no endpoint on this node",
        ),
        (
            "client outside the source ranges",
            OUTSIDE,
            "198.51.100.13:443",
            "172.20.0.2 is in none of the loadBalancerSourceRanges of shop/admin:https: \
             203.0.113.0/28, 203.0.113.64/28",
        ),
        (
            "wrong port",
            POD,
            "10.96.0.10:8080",
            "10.96.0.10 is the ClusterIP of shop/web (80/tcp), which does not have port 8080/tcp",
        ),
        (
            "wrong protocol",
            POD,
            "10.96.0.10:80/udp",
            "10.96.0.10 is the ClusterIP of shop/web (80/tcp), which does not have port 80/udp",
        ),
        (
            "deleted Service",
            POD,
            "10.96.0.99:80",
            "10.96.0.99 is in the cluster's service network, but no Service has it",
        ),
        (
            "NodePort at another address",
            OUTSIDE,
            "172.20.0.1:30080",
            "30080/tcp is a NodePort of shop/web:http, but 172.20.0.1 is not an address that \
             accepts NodePorts; these are: 192.168.10.1",
        ),
        (
            "NodePort number at the ClusterIP's address",
            OUTSIDE,
            "198.51.100.10:30080",
            "198.51.100.10 is an address of shop/web (80/tcp), but port 30080/tcp is not",
        ),
        (
            "nothing to do with Services",
            POD,
            "192.0.2.1:80",
            "no Service has 192.0.2.1:80/tcp: it goes on as any other packet",
        ),
    ];
    for (name, from, to, sentence) in cases {
        let said = scene.kubeweir(&["explain", from, to]);
        assert!(said.stdout.contains(sentence), "{name}: no {sentence:?} in:\n{}", said.stdout);
        assert_eq!((said.code, said.stderr.as_str()), (0, ""), "{name}");
    }
    says(
        &scene.kubeweir(&["status"]),
        1,
        "198.51.100.10:80/tcp belongs to shop/web:http, but test/intruder:http claims it too",
    );
    for note in [
        "notes:\n  IPv4: refused, no usable endpoint anywhere: shop/cart:http",
        "IPv4: dropped from outside, externalTrafficPolicy: Local and no endpoint here: shop/gate:https",
    ] {
        says(&scene.kubeweir(&["status"]), 1, note);
    }
}

#[test]
fn explain_tells_where_served_flows_go() {
    let scene = Scene::with_agent(&[]);
    let manifests = scene.manifests().display().to_string();
    let cases: [(&[&str], &[&str]); 5] = [
        (
            &["shop/web-0", "shop/cart:80/tcp", "-f", &manifests],
            &["10.244.0.10 -> 10.96.0.11:80/tcp: refused"],
        ),
        (
            &[POD, "shop/web:http", "-f", &manifests],
            &[
                "10.244.0.10 -> 10.96.0.10:80/tcp: served",
                "shop/web:http: 3 endpoints",
                "10.244.1.10:8080              33.3 %  sees the client",
                "10.244.0.10:8080              33.3 %  sees the node",
                "replaced by the node's: the endpoint dials itself",
                "otherwise the client's address is kept",
            ],
        ),
        (
            &[OUTSIDE, "192.168.10.1:30080"],
            &["an external address or NodePort with policy Cluster", "steps (the likeliest way):"],
        ),
        (
            &[OUTSIDE, "10.96.0.10:80", "--interface", "eth1"],
            &["a ClusterIP dialled from outside the pod networks"],
        ),
        (
            &["192.168.10.1", "198.51.100.12:443"],
            &["externalTrafficPolicy: Local does not bind the node itself", "10.244.1.10:8443"],
        ),
    ];
    for (args, sentences) in cases {
        let said = scene.kubeweir(&[&["explain"], args].concat());
        for sentence in sentences {
            says(&said, 0, sentence);
        }
    }
    let json = scene.kubeweir(&["explain", POD, "10.96.0.11:80", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json.stdout).expect("JSON");
    assert_eq!((&json["verdict"], &json["service"]), (&"refused".into(), &"shop/cart:http".into()));
    for (args, sentence) in [
        (["explain", "shop/web-0", "10.96.0.10:80"], "names need -f or --kubeconfig"),
        (["explain", "web-0", "10.96.0.10:80"], "neither an address nor NAMESPACE/POD"),
        (["explain", POD, "shop/web:http"], "names need -f or --kubeconfig to look them up"),
        (["explain", POD, "[fd00::1]:80"], "not of the source's address family"),
    ] {
        says(&scene.kubeweir(&args), 2, sentence);
    }
}

#[test]
fn explain_tells_of_a_remembered_client() {
    let scene = Scene::with_agent(&[]);
    let explain = || scene.kubeweir(&["explain", "10.244.0.12", "10.96.0.14:80"]);
    says(&explain(), 0, "session affinity: this client is not remembered yet");
    let to = "10.96.0.14:80".parse().expect("an address");
    let outcome = scene.lab.dial(Place::Pod(2), Dial::new(Protocol::Tcp, to), 1).remove(0);
    let endpoint = outcome.answer().expect("an endpoint answers").endpoint;
    says(&explain(), 0, &format!("session affinity: this client goes to {endpoint} again, for 35"));
}

// Situations 10 to 12.
#[test]
fn diff_tells_what_the_kernel_lacks() {
    let mut scene = Scene::with_agent(&[]);
    says(&scene.diff(&[]), 0, "no difference");
    let counting = scene.diff(&["--service-counters"]);
    says(&counting, 1, "set connections-services is missing in the kernel");
    says(&counting, 1, "note: the rules themselves differ; does diff have the agent's flags");
    assert!(!counting.stdout.contains("shop/"), "no service differs: {}", counting.stdout);
    scene.stop_agent();
    says(&scene.kubeweir(&["status"]), 2, "Is the agent running?");
    says(&scene.diff(&[]), 0, "no difference");

    scene.edit(
        "services.yaml",
        "{addresses: [10.244.1.10], nodeName: elsewhere}\n---\n# Broken: its only",
        "{addresses: [10.244.1.11], nodeName: elsewhere}\n---\n# Broken: its only",
    );
    let stale = scene.diff(&[]);
    for frontend in ["10.96.0.10:80/tcp", "198.51.100.10:80/tcp", "nodePort 30080/tcp"] {
        let old = format!(
            "{frontend}: endpoint 10.244.1.10:8080 is in the kernel, but not in the objects"
        );
        says(&stale, 1, &old);
        says(&stale, 1, &format!("{frontend}: endpoint 10.244.1.11:8080 is missing in the kernel"));
    }
    assert!(stale.stdout.starts_with("shop/web:http (ip)\n"), "{}", stale.stdout);
    assert_eq!(stale.stdout.lines().count(), 7, "nothing else: {}", stale.stdout);
    says(&scene.diff(&["--service", "shop/cart"]), 0, "no difference");
    let json: serde_json::Value =
        serde_json::from_str(&scene.diff(&["-o", "json"]).stdout).expect("JSON");
    assert_eq!(json["equal"], false);
    let difference = &json["families"][0]["services"]["shop/web:http"][0];
    assert_eq!(difference["only"], "found", "{json}");

    scene
        .lab
        .node
        .nft("delete element ip kube-proxy refused-services { 10.96.0.11 . tcp . 80 }")
        .unwrap();
    says(&scene.diff(&[]), 1, "10.96.0.11:80/tcp is missing in the kernel");
    scene.lab.node.nft("flush chain ip kube-proxy nat-prerouting").unwrap();
    says(
        &scene.diff(&[]),
        1,
        "rule of chain nat-prerouting: ip daddr @frontend-ips jump frontends is missing in the kernel",
    );

    scene.lab.node.nft("delete table ip kube-proxy").unwrap();
    says(&scene.diff(&[]), 1, "table kube-proxy is missing in the kernel");
    says(
        &scene.kubeweir(&["explain", POD, "10.96.0.10:80"]),
        0,
        "there is no table kube-proxy of this family: no proxy has programmed this node",
    );
}

#[test]
fn what_cannot_be_answered_exits_2_with_advice() {
    says(&kubeweir(&["diff"]), 2, "Name manifests with -f FILE");
    says(&kubeweir(&["diff", "-f", "/nonexistent"]), 2, "reading /nonexistent: No such file");
    let missing = kubeweir(&["render", "-f", "/dev/null", "--service", "shop/web"]);
    says(&missing, 0, "note: shop/web has no rules: there is no such Service");
    says(&unprivileged(&["check"]), 2, "Run this as root (CAP_NET_ADMIN)");
    says(&kubeweir(&["explain", "10.0.0.1", "10.96.0.1"]), 2, "Write a pod as default/web-0");
    says(
        &kubeweir(&["render", "-f", "/dev/null", "--service", "web"]),
        2,
        "for example default/web",
    );
    let island = Netns::new("island").unwrap();
    let unreachable = || kubeweir(&["explain", "10.0.0.1", "10.96.0.1:80"]);
    says(&island.run(unreachable), 2, "with --interface NAME");
    says(&kubeweir(&["status", "--address", "127.0.0.1:1"]), 2, "--address IP:PORT");
}

// Situation 13. The kernel of this scene refuses nothing: an agent's page says that one did.
// `tests/agent/quarantine.rs` holds that the agent says so when one does.
#[test]
fn status_tells_which_service_the_kernel_refused() {
    let refused = QuarantinedService {
        service: "shop/web".to_owned(),
        reason: "add element in endpoints-4: No space left on device (os error 28)".to_owned(),
        refusals: 3,
    };
    let mut family = FamilyStatus { quarantine: vec![refused], ..FamilyStatus::default() };
    family.summary.attached = true;
    let families = [("IPv4".to_owned(), family)].into();
    let page = serde_json::to_string(&Status { families, ..Status::default() }).unwrap();
    let router = axum::Router::new().route(PATH, axum::routing::get(move || async move { page }));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    runtime.spawn(async move { axum::serve(listener, router).await });
    says(
        &kubeweir(&["status", "--address", &address]),
        1,
        "problems:\n  IPv4: shop/web is set aside, refused 3 times so far: \
         add element in endpoints-4: No space left on device",
    );
}

// Colour is for terminals only, and watching goes on.
#[test]
fn on_a_terminal() {
    let scene = Scene::with_agent(&[]);
    let conflict = "IPv4: 198.51.100.10:80/tcp belongs to shop/web:http";
    let piped = scene.kubeweir(&["status"]);
    assert!(piped.stdout.contains(conflict) && !piped.stdout.contains('\x1b'), "{}", piped.stdout);
    let on_terminal = |args: &str, environment: &str| {
        let mut script = terminal(&scene, args, environment);
        let mut text = String::new();
        script.stdout.take().expect("piped").read_to_string(&mut text).expect("UTF-8");
        script.wait().expect("it ended");
        text
    };
    let red = format!("\x1b[31m{conflict}");
    let status = on_terminal("status", "env");
    assert!(status.contains(&red), "{status}");
    let plain = on_terminal("status", "NO_COLOR=1");
    assert!(plain.contains(conflict) && !plain.contains('\x1b'), "{plain}");
    let explained = on_terminal(&format!("explain {POD} 10.96.0.11:80"), "env");
    assert!(explained.starts_with("\x1b[31m10.244.0.10 -> 10.96.0.11:80/tcp: refused\x1b[0m"));
    let mut watching = terminal(&scene, "status --watch", "env");
    let pictures = BufReader::new(watching.stdout.take().expect("piped")).split(b'\x1b');
    let begins = |piece: &Vec<u8>| piece.starts_with(b"[2Jkubeweir ");
    let again = pictures.map(|piece| piece.expect("readable")).filter(begins).take(3);
    assert_eq!(again.count(), 3, "a new picture each time");
    watching.kill().expect("it runs");
    watching.wait().expect("it ended");
}

/// A command on a terminal of 80 columns; what it prints comes through the pipe.
fn terminal(scene: &Scene, args: &str, environment: &str) -> Child {
    let command = format!("stty rows 30 cols 80; {environment} {} {args}", binary().display());
    let mut script = Command::new("script");
    script.args(["-qec", &command, "/dev/null"]).stdin(Stdio::null()).stdout(Stdio::piped());
    scene.lab.node.run(|| script.spawn()).expect("util-linux has script")
}

// Who reads no more ends the watching, too.
#[test]
fn watching_ends_with_its_reader() {
    let scene = Scene::with_agent(&[]);
    let watch = format!("{} status --watch | head -n 1", binary().display());
    let run = || Command::new("timeout").args(["20", "sh", "-c", &watch]).output();
    let output = scene.lab.node.run(run).expect("coreutils");
    assert!(output.status.success(), "{output:?}");
}
