//! Credentials, configuration, limits and measures.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

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
    // A name that was the other server's goes with it, as in client-go.
    let other = "https://192.0.2.1:1\",\"tls-server-name\":\"other.test";
    std::fs::write(&path, text.replace(&setup.server.url(), other)).unwrap();
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

// The second half of a pair was missing or contradicted the first, and what counted was a guess. What
// client-go does with each: it refuses all but the last five.
#[test]
fn fields_that_contradict_each_other_are_refused_as_in_client_go() {
    let setup = Setup::new();
    let path = setup.options().kubeconfig.unwrap();
    let original: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let (certificate, key) = setup.server.demand_certificate();
    let data = |text: &str| json!(ByteString(text.as_bytes().to_vec()));
    std::fs::write(setup.directory.path().join("client.crt"), &certificate).unwrap();
    let insecure = "stands beside insecure-skip-tls-verify: specifying a root certificates file \
                    with the insecure flag is not allowed";
    let plugin = json!({ "apiVersion": "client.authentication.k8s.io/v1", "command": "/missing" });
    let with = |mut object: Value, field: &str, value: Value| {
        object[field] = value;
        object
    };
    let ca = json!({ "certificate-authority": "ca.crt" });
    let data_ca = json!({ "certificate-authority-data": data(&setup.server.ca_pem()) });
    let skip = |cluster: &Value| with(cluster.clone(), "insecure-skip-tls-verify", json!(true));
    let proxy = |url: &str| with(ca.clone(), "proxy-url", json!(url));
    let no_url = "is not a URL of scheme http, https or socks5";
    let nobody = json!({});
    let (no_key, missing) = ("is missing beside client-certificate", "is missing");
    let cases = [
        (skip(&ca), nobody.clone(), Some(("certificate-authority", insecure))),
        (skip(&data_ca), nobody.clone(), Some(("certificate-authority-data", insecure))),
        (proxy("ftp://192.0.2.1:21"), nobody.clone(), Some(("proxy-url", no_url))),
        (proxy("socks4://192.0.2.1:1080"), nobody.clone(), Some(("proxy-url", no_url))),
        (proxy("socks5h://192.0.2.1:1080"), nobody.clone(), Some(("proxy-url", no_url))),
        (proxy("proxy.test:3128"), nobody.clone(), Some(("proxy-url", no_url))),
        (ca.clone(), json!({ "client-certificate": "client.crt" }), Some(("client-key", no_key))),
        (
            ca.clone(),
            json!({ "client-certificate-data": data(&certificate), "client-key-data": "" }),
            Some(("client-key", no_key)),
        ),
        (
            ca.clone(),
            json!({ "exec": with(plugin.clone(), "command", json!("")) }),
            Some(("exec.command", missing)),
        ),
        (
            ca.clone(),
            json!({ "exec": with(plugin.clone(), "apiVersion", Value::Null) }),
            Some(("exec.apiVersion", missing)),
        ),
        (ca.clone(), json!({ "client-key-data": data(&key) }), None),
        (ca.clone(), json!({ "exec": plugin }), None),
        (skip(&json!({ "certificate-authority": "" })), nobody.clone(), None),
        (ca.clone(), json!({ "client-certificate": "", "client-key": "", "tokenFile": "" }), None),
        (skip(&with(ca, "server", json!("http://192.0.2.1"))), nobody, None),
    ];
    for (mut cluster, user, want) in cases {
        let shown = format!("{cluster} {user}");
        if cluster.get("server").is_none() {
            cluster["server"] = json!(setup.server.url());
        }
        let mut kubeconfig = original.clone();
        kubeconfig["clusters"][0]["cluster"] = cluster;
        kubeconfig["users"][0]["user"] = user;
        std::fs::write(&path, kubeconfig.to_string()).unwrap();
        let client = Client::new(options(Some(path.clone()), None), Arc::new(|_| {}));
        let said = client.err().map(|error| error.to_string());
        let want =
            want.map(|(field, reason)| format!("kubeconfig {}: {field} {reason}", path.display()));
        assert_eq!(said, want, "{shown}");
    }
}

#[test]
fn qps_and_burst_limit_requests() {
    let setup = Setup::new();
    let limited = Options { qps: 1.0, burst: 1, ..setup.options() };
    let client = setup.client(limited);
    // The runtime's only thread is kept until there are four: they ask at the same moment.
    let (go, wait) = mpsc::channel();
    setup.runtime.spawn(async move { wait.recv().is_ok() });
    for kind in Kind::ALL {
        setup.watch(&client, kind);
    }
    let begun = Instant::now();
    go.send(()).unwrap();
    setup.wait("four lists", || setup.exchanges.lock().unwrap().len() == 4);
    // Not from the first request on: a handshake delays it, and no other.
    let spread = setup.server.requests()[3].at - begun;
    assert!(spread >= Duration::from_secs(3), "{spread:?}");
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
    let mut pod = std::process::Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", script])
        .env("ACCOUNT", "/var/run/secrets/kubernetes.io/serviceaccount")
        .env("FILES", setup.directory.path())
        .env("TEST", std::env::current_exe().unwrap())
        .env("KUBERNETES_SERVICE_HOST", setup.server.address().ip().to_string())
        .env("KUBERNETES_SERVICE_PORT", setup.server.address().port().to_string())
        .spawn()
        .unwrap();
    setup.wait("the pod's watch", || setup.server.open_streams(Kind::Node) == 1);
    // The kubelet replaces a token before it ends.
    setup.server.demand_token("of-the-pod-later");
    setup.server.put(&service("a"));
    std::fs::write(setup.directory.path().join("demanded"), "").unwrap();
    assert!(pod.wait().unwrap().success());
    let requests = setup.server.requests();
    assert_eq!(requests[0].headers["authorization"], "Bearer of-the-pod");
    assert_eq!(requests[0].answered, Some(200));
    let last = requests.iter().rfind(|request| request.kind == Some(Kind::Service)).unwrap();
    assert_eq!(last.headers["authorization"], "Bearer of-the-pod-later");
}

#[test]
#[ignore = "run by a_pod_uses_its_service_account, in a namespace of its own"]
fn in_a_pod() {
    let setup = Setup::new();
    let client = setup.client(options(None, None));
    setup.watch(&client, Kind::Node);
    setup.wait_for(Kind::Node, &["node-a"]);
    let [files, account] = ["FILES", "ACCOUNT"].map(|name| std::env::var(name).unwrap());
    setup.wait("another token", || std::path::Path::new(&files).join("demanded").exists());
    std::fs::write(format!("{account}/token"), "of-the-pod-later\n").unwrap();
    setup.watch(&client, Kind::Service);
    setup.wait_for(Kind::Service, &["shop/a"]);
}

// Rancher puts clusters behind a path; a slash at its end is none of the API's.
#[test]
fn the_path_of_a_server_stands_in_front_of_what_is_asked() {
    for end in ["/k8s/clusters/c-x", "/k8s/clusters/c-x/"] {
        let setup = Setup::new();
        let path = setup.options().kubeconfig.unwrap();
        let url = setup.server.url();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace(&url, &format!("{url}{end}"))).unwrap();
        setup.watch(&setup.client(options(Some(path.clone()), None)), Kind::Node);
        let asked = || {
            let requests = setup.server.requests();
            let paths: Vec<_> = requests.into_iter().map(|request| request.path).collect();
            let want = "/k8s/clusters/c-x/api/v1/nodes";
            assert!(paths.iter().all(|path| path == want), "{paths:?}");
            paths.len()
        };
        setup.wait("a request", || asked() > 0);
    }
}
