//! Credentials, configuration, limits and measures.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use k8s_openapi::ByteString;
use kubeweir::api::{Client, Observe, Options};
use kubeweir::model::Kind;
use kubeweir::testing::ApiServer;
use kubeweir::testing::api_server::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::setup::*;

#[test]
fn a_rotated_token_is_read_again() {
    let setup = Setup::new();
    setup.server.demand_token("first");
    setup.server.put(&service("a"));
    let setup = setup.watching(&[Kind::Service]);
    setup.server.demand_token("second");
    std::fs::write(setup.directory.path().join("token"), "second").unwrap();
    setup.server.signal(Kind::Service, Signal::End);
    setup.wait("a watch with the new token", || {
        let requests = setup.server.requests();
        requests.iter().any(|r| r.headers["authorization"] == "Bearer second")
    });
    setup.server.put(&service("b"));
    setup.wait_for(Kind::Service, &["shop/a", "shop/b"]);
    let answered: Vec<_> = setup.server.requests().iter().map(|r| r.answered).collect();
    assert_eq!(answered, [Some(200), Some(401), Some(200)]);
    assert_eq!(setup.lists(Kind::Service), 1);
}

#[test]
fn a_rotated_ca_is_read_again_and_the_old_one_is_not_trusted() {
    let setup = Setup::new();
    setup.server.put(&service("a"));
    let mut setup = setup.watching(&[Kind::Service]);
    setup.server.stop();
    setup.server.rotate_ca();
    setup.server.put(&service("b"));
    setup.server.resume().unwrap();
    let before = setup.failures();
    setup.wait("a refused handshake", || setup.failures() > before);
    assert_eq!(setup.server.requests().len(), 1, "nothing is told to a server without trust");
    std::fs::write(setup.directory.path().join("ca.crt"), setup.server.ca_pem()).unwrap();
    setup.wait_for(Kind::Service, &["shop/a", "shop/b"]);
    assert_eq!(setup.lists(Kind::Service), 1);
}

// B-261: a kubeconfig is used by every other test; here the master in its place and alone.
#[test]
fn master_replaces_the_server_of_a_kubeconfig_and_works_alone() {
    let setup = Setup::new();
    setup.server.put(&service("a"));
    let mut overridden = setup.options();
    let path = overridden.kubeconfig.clone().unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace(&setup.server.url(), "https://192.0.2.1:1")).unwrap();
    overridden.master = Some(setup.server.url());
    setup.watch(&setup.client(overridden), Kind::Service);
    setup.wait_for(Kind::Service, &["shop/a"]);

    let plain = ApiServer::start_plain(LOOPBACK).unwrap();
    plain.put(&node("node-a"));
    for master in [plain.url(), plain.address().to_string()] {
        setup.watch(&setup.client(options(None, Some(master))), Kind::Node);
    }
    setup.wait_for(Kind::Node, &["node-a"]);
    plain.wait("both clients", SOON, |plain| plain.open_streams(Kind::Node) == 2);
    assert!(plain.requests().iter().all(|request| !request.headers.contains_key("authorization")));
}

// B-261: what kubeconfigs of real clusters look like.
#[test]
fn kubeconfigs_carry_credentials_in_many_ways() {
    let setup = Setup::new();
    setup.server.demand_token("secret");
    setup.server.put(&node("node-a"));
    let path = setup.options().kubeconfig.unwrap();
    let original: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    std::fs::write(setup.directory.path().join("token-line"), "secret\n").unwrap();
    let ca = ByteString(setup.server.ca_pem().into_bytes());
    let url = setup.server.url();
    let plugin = r#"echo '{"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential",
        "status": {"token": "secret"}}'"#;
    let exec = json!({
        "apiVersion": "client.authentication.k8s.io/v1", "interactiveMode": "Never",
        "command": "sh", "args": ["-c", plugin],
    });
    let (proxy, tunnelled) = tunnel();
    let ca_file = json!({ "server": url, "certificate-authority": "ca.crt" });
    let token = json!({ "token": "secret" });
    let cases = [
        ("files", ca_file.clone(), json!({ "tokenFile": "token" })),
        ("a line in a token file", ca_file.clone(), json!({ "tokenFile": "token-line" })),
        ("inline", json!({ "server": url, "certificate-authority-data": ca }), token.clone()),
        ("unverified", json!({ "server": url, "insecure-skip-tls-verify": true }), token.clone()),
        ("plugin", ca_file.clone(), json!({ "exec": exec })),
        (
            "proxy",
            json!({ "server": url, "certificate-authority": "ca.crt", "proxy-url": proxy }),
            token,
        ),
    ];
    for (count, (name, cluster, user)) in cases.into_iter().enumerate() {
        let mut kubeconfig = original.clone();
        kubeconfig["clusters"][0]["cluster"] = cluster;
        kubeconfig["users"][0]["user"] = user;
        std::fs::write(&path, kubeconfig.to_string()).unwrap();
        setup.watch(&setup.client(options(Some(path.clone()), None)), Kind::Node);
        setup.wait(name, || setup.replaced(Kind::Node) == count + 1);
    }
    assert!(setup.server.requests().iter().all(|request| request.answered == Some(200)));
    assert_eq!(tunnelled.try_recv().unwrap(), setup.server.address().to_string());
}

/// An HTTP proxy for one connection: its URL, and where it was asked to connect to.
fn tunnel() -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (asked, tunnelled) = mpsc::channel();
    std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            client.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        let target = head.strip_prefix("CONNECT ").unwrap().split(' ').next().unwrap();
        asked.send(target.to_owned()).unwrap();
        let mut server = TcpStream::connect(target).unwrap();
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        let (mut to_client, mut from_server) =
            (client.try_clone().unwrap(), server.try_clone().unwrap());
        std::thread::spawn(move || std::io::copy(&mut from_server, &mut to_client));
        // The client closes when the test ends; how is of no interest.
        let _ = std::io::copy(&mut client, &mut server);
    });
    (url, tunnelled)
}

#[test]
fn an_unusable_configuration_is_an_error_that_names_it() {
    let directory = TempDir::new().unwrap();
    let missing = directory.path().join("missing");
    let broken = directory.path().join("broken");
    std::fs::write(&broken, "clusters: 7").unwrap();
    let observe: Observe = Arc::new(|_| {});
    let cases = [
        (options(None, Some("http://a b".into())), "is not a URL"),
        (options(Some(missing), None), "missing"),
        (options(Some(broken), None), "broken"),
    ];
    for (options, want) in cases {
        let error = Client::new(options, Arc::clone(&observe)).unwrap_err();
        assert!(error.to_string().contains(want), "{error}");
    }
}

#[test]
fn qps_and_burst_limit_requests() {
    let setup = Setup::new();
    let limited = Options { qps: 4.0, burst: 1, ..setup.options() };
    let client = setup.client(limited);
    for kind in Kind::ALL {
        setup.watch(&client, kind);
    }
    setup.wait("four lists", || setup.exchanges.lock().unwrap().len() == 4);
    let requests = setup.server.requests();
    let spread = requests[3].at - requests[0].at;
    assert!(spread >= Duration::from_millis(700), "{spread:?}");
    let exchanges = setup.exchanges.lock().unwrap();
    let throttled = exchanges.iter().filter(|exchange| !exchange.throttled.is_zero()).count();
    assert_eq!(throttled, 3);
}

#[test]
fn every_exchange_is_measured() {
    let setup = Setup::new();
    setup.server.refuse_streaming_lists();
    let setup = setup.watching(&[Kind::Service]);
    let host = setup.server.address().to_string();
    // The watch begins after its list was delivered.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while setup.exchanges.lock().unwrap().len() < 3 && std::time::Instant::now() < deadline {
        std::thread::yield_now();
    }
    let exchanges = setup.exchanges.lock().unwrap();
    let seen: Vec<_> = exchanges
        .iter()
        .map(|exchange| {
            assert_eq!(exchange.host, host);
            assert_eq!(exchange.method, "GET");
            (exchange.code, exchange.response_bytes.is_some())
        })
        .collect();
    assert_eq!(seen, [(Some(422), false), (Some(200), true), (Some(200), false)]);
}

// B-261: in a pod, with nothing given. The child runs in a mount namespace with a service account of
// its own; see `in_a_pod`.
#[test]
fn a_pod_uses_its_service_account() {
    let setup = Setup::new();
    setup.server.demand_token("of-the-pod");
    setup.server.put(&node("node-a"));
    setup.options();
    let script = "mount -t tmpfs tmpfs /var/run && mkdir -p $ACCOUNT && \
                  cp $FILES/token $FILES/ca.crt $ACCOUNT && echo kube-system >$ACCOUNT/namespace && \
                  exec $TEST --exact connection::in_a_pod --ignored";
    let status = std::process::Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script])
        .env("ACCOUNT", "/var/run/secrets/kubernetes.io/serviceaccount")
        .env("FILES", setup.directory.path())
        .env("TEST", std::env::current_exe().unwrap())
        .env("KUBERNETES_SERVICE_HOST", setup.server.address().ip().to_string())
        .env("KUBERNETES_SERVICE_PORT", setup.server.address().port().to_string())
        .status()
        .unwrap();
    assert!(status.success());
    let requests = setup.server.requests();
    assert_eq!(requests[0].headers["authorization"], "Bearer of-the-pod");
    assert_eq!(requests[0].answered, Some(200));
}

#[test]
#[ignore = "run by a_pod_uses_its_service_account, in a namespace of its own"]
fn in_a_pod() {
    let setup = Setup::new();
    setup.watch(&setup.client(options(None, None)), Kind::Node);
    setup.wait_for(Kind::Node, &["node-a"]);
}
