//! The ways to the API server: HTTP versions, cuts, proxies.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::linux::net::TcpStreamExt;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use kubeweir::model::Kind;
use kubeweir::testing::ApiServer;
use kubeweir::testing::api_server::{Answer, Ask, Break, Fault};
use serde_json::{Value, json};

use super::setup::*;
use super::trust::showing;

// Upstream has one connection too; a balancer sees its pings.
#[test]
fn one_connection_carries_all_kinds_where_the_server_speaks_http2() {
    let setup = Setup::new();
    fill(&setup.server);
    let client = setup.client(setup.options());
    setup.watch(&client, Kind::Node);
    setup.wait("the first kind", || setup.server.open_streams(Kind::Node) == 1);
    for kind in [Kind::ServiceCidr, Kind::Service, Kind::EndpointSlice] {
        setup.watch(&client, kind);
    }
    wait_for_everything(&setup);
    let requests = setup.server.requests();
    assert!(requests.iter().all(|request| request.version == http::Version::HTTP_2));
    assert_eq!(setup.server.connections(), 1);
}

#[test]
fn a_server_without_http2_is_served_as_well() {
    let setup = Setup::new();
    setup.server.http1_only();
    fill(&setup.server);
    let setup = setup.watching(&Kind::ALL);
    wait_for_everything(&setup);
    let requests = setup.server.requests();
    assert!(requests.iter().all(|request| request.version == http::Version::HTTP_11));
}

// The scripted server held small events back until the client's delayed acknowledgement, 40 ms; Go's
// servers do not. The quickest round tells, whatever else the machine does: 800 ms if each event waits.
#[test]
fn an_event_does_not_wait_for_the_acknowledgement_of_the_one_before() {
    let server = ApiServer::start_plain(LOOPBACK).unwrap();
    let mut client = TcpStream::connect(server.address()).unwrap();
    client.set_read_timeout(Some(SOON)).unwrap();
    client.write_all(b"GET /api/v1/services?watch=true HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    let (mut text, mut buffer) = (String::new(), [0; 4096]);
    let mut round = |round: i32| {
        let start = Instant::now();
        for event in 0..20 {
            let name = format!("service-{round}-{event}.");
            server.put(&service(&name));
            while !text.contains(&name) {
                client.set_quickack(false).unwrap();
                let len = client.read(&mut buffer).unwrap();
                assert_ne!(len, 0, "the stream ended: {text}");
                text.push_str(&String::from_utf8_lossy(&buffer[..len]));
            }
        }
        start.elapsed()
    };
    let quickest = (0..5).map(&mut round).min().unwrap();
    assert!(quickest < Duration::from_millis(500), "{quickest:?} for 20 events");
}

/// How long it takes until an event arrives, and after a cut until every watch is there again.
fn mended_after(how: Break, http1: bool) -> Duration {
    let setup = Setup::new();
    if http1 {
        setup.server.http1_only();
    }
    fill(&setup.server);
    let setup = setup.watching(&Kind::ALL);
    let opened = Instant::now();
    setup.wait("watches of more than a second", || opened.elapsed() > Duration::from_millis(1100));
    let broken = Instant::now();
    setup.server.break_connections(how);
    setup.server.put(&service("later"));
    setup.wait_for(Kind::Service, &["shop/cart", "shop/later"]);
    if how == Break::Cut {
        setup.wait("every watch", || {
            let watches = |kind| setup.server.count(kind, Ask::Watch);
            Kind::ALL.into_iter().all(|kind| watches(kind) == 1)
        });
    }
    let took = broken.elapsed();
    for kind in Kind::ALL {
        assert_eq!(setup.lists(kind), 1, "{how:?}: {kind}");
    }
    took
}

// A balancer that restarts, drains, or forgets connections.
#[test]
fn connections_that_break_are_made_again_at_once() {
    for http1 in [false, true] {
        for how in [Break::Goodbye, Break::Cut] {
            let what = format!("{how:?}, HTTP/1.1 {http1}");
            quick(Duration::from_millis(700), &what, || mended_after(how, http1));
        }
    }
}

/// What a proxy was asked for: `CONNECT host:port`, `GET url`, or `socks host:port`.
type Asked = mpsc::Receiver<String>;

/// Reads up to the end of a head.
fn head(from: &mut impl Read) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && from.read(&mut byte).is_ok_and(|read| read == 1) {
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

fn splice(mut client: TcpStream, mut server: TcpStream) {
    let (mut to_client, mut from_server) =
        (client.try_clone().unwrap(), server.try_clone().unwrap());
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from_server, &mut to_client);
        let _ = to_client.shutdown(Shutdown::Both);
    });
    // The client closes when the test ends; how is of no interest.
    let _ = std::io::copy(&mut client, &mut server);
}

/// The longest pause after a first refusal without `Retry-After`.
const PAUSE: Duration = Duration::from_millis(1600);

/// What a server may be like.
type Oddity = (&'static str, fn(&Setup));

fn refused(setup: &Setup, ask: Ask, times: usize, answer: Answer) {
    setup.server.fail(Fault { kind: None, ask, times, answer });
}

// An API server may be old, behind a proxy, busy, cut off now and then, and with odd certificates, all
// at once: it is served soon after it can be reached.
#[test]
fn oddities_together_cost_less_than_two_seconds() {
    let ways: [Option<fn(SocketAddr) -> (String, Asked)>; 3] = [
        None,
        Some(|server| {
            let (proxy, asked) = http_proxy(server);
            (format!("http://{proxy}"), asked)
        }),
        Some(|server| {
            let (proxy, asked) = socks_proxy(server);
            (format!("socks5://{proxy}"), asked)
        }),
    ];
    let old: Oddity = ("etcd too old, lists in pages", |setup| {
        refused(setup, Ask::StreamingList, usize::MAX, refuse(500, "InternalError", None));
        setup.server.page_size(1);
    });
    let busy: Oddity = ("throttled", |setup| {
        refused(setup, Ask::List, 1, refuse(429, "TooManyRequests", None));
        refused(setup, Ask::Watch, 1, refuse(429, "TooManyRequests", None));
    });
    let cut: Oddity = ("cut", |setup| {
        for kind in Kind::ALL {
            setup.server.fail(fault(kind, Ask::StreamingList, 1, Answer::Drop));
            setup.server.fail(fault(kind, Ask::List, 1, Answer::Drop));
        }
    });
    let small: Oddity = ("in small pieces", |setup| setup.server.chunk(7));
    let plain: Oddity = ("HTTP/1.1 and JSON", |setup| {
        setup.server.http1_only();
        setup.server.json_only();
    });
    let sets: [&[Oddity]; 4] =
        [&[old, busy, plain], &[old, cut, small], &[cut, small, plain], &[old, cut, busy, small]];
    let chains =
        ["good-self-signed-ca-flag", "good-ca-flag-intermediate-last", "good-rsa1024-sha384"];
    let each = ways.into_iter().flat_map(|way| sets.map(|oddities| (way, oddities)));
    for ((way, oddities), chain) in each.zip(chains.into_iter().cycle()) {
        let names: Vec<_> = oddities.iter().map(|(name, _)| *name).collect();
        let what = format!("{chain}, {names:?}, proxied {}", way.is_some());
        println!("{what}");
        // Who is told that there are too many requests waits once more.
        let asked_to_wait = if names.contains(&"throttled") { PAUSE } else { Duration::ZERO };
        quick(Duration::from_secs(2) + asked_to_wait, &what, || served_after(way, oddities, chain));
    }
}

/// How long it takes from the moment when a server of this sort can be reached by this way.
fn served_after(
    way: Option<fn(SocketAddr) -> (String, Asked)>,
    oddities: &[Oddity],
    chain: &str,
) -> Duration {
    let mut setup = showing(super::trust::chain(chain));
    fill(&setup.server);
    setup.server.delete(Kind::Service, "shop", "a");
    oddities.iter().for_each(|(_, odd)| odd(&setup));
    let options = setup.options();
    let proxy = way.map(|way| way(setup.server.address()));
    if let Some((proxy, _)) = &proxy {
        rename(options.kubeconfig.as_ref().unwrap(), |cluster| {
            cluster["proxy-url"] = proxy.clone().into();
        });
    }
    setup.server.stop();
    let client = setup.client(options);
    for kind in Kind::ALL {
        setup.watch(&client, kind);
    }
    setup.wait("attempts", || setup.failures() >= Kind::ALL.len());
    setup.server.resume().unwrap();
    let reachable = Instant::now();
    wait_for_everything(&setup);
    let took = reachable.elapsed();
    let proxied = proxy.is_none_or(|(_, asked)| asked.try_iter().next().is_some());
    assert!(proxied, "the proxy was not asked");
    took
}

/// A server; each client is served on a thread of its own, and what it asks for is told.
fn listening(
    serve: impl Fn(TcpStream, &mpsc::Sender<String>) + Clone + Send + 'static,
) -> (SocketAddr, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (asked, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (client, serve, asked) = (client.unwrap(), serve.clone(), asked.clone());
            std::thread::spawn(move || serve(client, &asked));
        }
    });
    (address, receiver)
}

/// A proxy of the old sort: tunnels, and whole URLs.
fn http_proxy(server: SocketAddr) -> (SocketAddr, Asked) {
    listening(move |mut client, asked| {
        let head = head(&mut client);
        let line = head.lines().next().unwrap_or_default();
        let credentials = head.lines().find(|line| line.to_lowercase().starts_with("proxy-auth"));
        let what = line.rsplit_once(' ').map_or("", |(what, _)| what);
        let _ = asked.send(format!("{what} {}", credentials.unwrap_or_default()));
        let Ok(mut upstream) = TcpStream::connect(server) else { return };
        if line.starts_with("CONNECT") {
            client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        } else {
            let (start, end) = head.split_at(head.find("http://").unwrap());
            let end = end.strip_prefix("http://").unwrap();
            let end = &end[end.find('/').unwrap()..];
            upstream.write_all(format!("{start}{end}").as_bytes()).unwrap();
        }
        splice(client, upstream);
    })
}

fn take(client: &mut TcpStream, length: u8) -> Vec<u8> {
    let mut bytes = vec![0; length.into()];
    client.read_exact(&mut bytes).unwrap();
    bytes
}

/// A SOCKS5 proxy without authentication.
fn socks_proxy(server: SocketAddr) -> (SocketAddr, Asked) {
    listening(move |mut client, asked| {
        let methods = take(&mut client, 2)[1];
        take(&mut client, methods);
        client.write_all(&[5, 0]).unwrap();
        let host = match take(&mut client, 4)[3] {
            1 => format!("{:?}", take(&mut client, 4)),
            3 => {
                let length = take(&mut client, 1)[0];
                String::from_utf8(take(&mut client, length)).unwrap()
            }
            other => panic!("address type {other}"),
        };
        take(&mut client, 2);
        let _ = asked.send(format!("socks {host}"));
        client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).unwrap();
        if let Ok(server) = TcpStream::connect(server) {
            splice(client, server);
        }
    })
}

/// Changes the cluster of a kubeconfig.
fn rename(kubeconfig: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&std::fs::read(kubeconfig).unwrap()).unwrap();
    change(&mut value["clusters"][0]["cluster"]);
    std::fs::write(kubeconfig, value.to_string()).unwrap();
}

/// A name that no resolver knows: only a proxy can lead there.
const NAME: &str = "api.kubeweir.invalid";

/// The list of Nodes through what these variables say, in a process of its own.
fn reach(setup: &Setup, kubeconfig: &Path, variables: &[(&str, String)]) {
    let before = setup.server.requests().len();
    let output = Command::new(env!("CARGO_BIN_EXE_kubeweir"))
        .args(["render", "--node=node-a", "--kubeconfig"])
        .arg(kubeconfig)
        .env_clear()
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(setup.server.requests().len() > before, "{variables:?}: {said}");
}

// HTTPS_PROXY with a scheme other than http ended the process, and so did ALL_PROXY.
#[test]
fn proxies_of_every_sort_lead_to_the_server() {
    let setup = Setup::new();
    fill(&setup.server);
    let kubeconfig = setup.options().kubeconfig.unwrap();
    let address = setup.server.address();
    rename(&kubeconfig, |cluster| {
        cluster["server"] = format!("https://{NAME}:{}", address.port()).into();
        cluster["tls-server-name"] = address.ip().to_string().into();
    });
    let (http, asked_http) = http_proxy(address);
    let (socks, asked_socks) = socks_proxy(address);
    let target = format!("CONNECT {NAME}:{}", address.port());
    let cases = [
        ("HTTPS_PROXY", format!("http://{http}"), &asked_http, target.clone()),
        ("https_proxy", http.to_string(), &asked_http, target.clone()),
        (
            "HTTPS_PROXY",
            format!("http://me:pw@{http}"),
            &asked_http,
            format!("{target} Proxy-Authorization: Basic bWU6cHc="),
        ),
        ("HTTPS_PROXY", format!("socks5://{socks}"), &asked_socks, format!("socks {NAME}")),
        ("HTTPS_PROXY", format!("socks5h://{socks}"), &asked_socks, format!("socks {NAME}")),
    ];
    for (variable, value, asked, want) in cases {
        reach(&setup, &kubeconfig, &[(variable, value), ("ALL_PROXY", "nonsense://x".into())]);
        let got: Vec<String> = asked.try_iter().collect();
        assert_eq!(got[0].trim(), want);
    }
    rename(&kubeconfig, |cluster| {
        cluster["proxy-url"] = format!("socks5://{socks}").into();
    });
    reach(&setup, &kubeconfig, &[("HTTPS_PROXY", "http://192.0.2.1:1".into())]);
    assert_eq!(asked_socks.try_iter().next().unwrap(), format!("socks {NAME}"));
}

// The proxy's certificate is checked as the server's own, by the kubeconfig's CA, as Go does it.
#[test]
fn a_proxy_behind_tls_leads_to_the_server() {
    let setup = Setup::new();
    fill(&setup.server);
    let kubeconfig = setup.options().kubeconfig.unwrap();
    let address = setup.server.address();
    let (plain, asked) = http_proxy(address);
    let front = setup.server.tls_front(plain).unwrap();
    rename(&kubeconfig, |cluster| {
        cluster["server"] = format!("https://{NAME}:{}", address.port()).into();
        cluster["tls-server-name"] = address.ip().to_string().into();
    });
    reach(&setup, &kubeconfig, &[("HTTPS_PROXY", format!("https://{front}"))]);
    let got: Vec<String> = asked.try_iter().collect();
    assert_eq!(got[0].trim(), format!("CONNECT {NAME}:{}", address.port()));
}

// Without TLS a proxy is given the whole URL, and no tunnel.
#[test]
fn plain_http_goes_through_http_proxy() {
    let setup = Setup { server: ApiServer::start_plain(LOOPBACK).unwrap(), ..Setup::new() };
    fill(&setup.server);
    let kubeconfig = setup.options().kubeconfig.unwrap();
    let address = setup.server.address();
    rename(&kubeconfig, |cluster| cluster["server"] = format!("http://{NAME}").into());
    let (http, asked) = http_proxy(address);
    reach(&setup, &kubeconfig, &[("HTTP_PROXY", format!("http://me:pw@{http}"))]);
    let got: Vec<String> = asked.try_iter().collect();
    assert!(got[0].starts_with(&format!("GET http://{NAME}/")), "{got:?}");
    assert!(got[0].to_lowercase().ends_with("proxy-authorization: basic bwu6chc="), "{got:?}");
}

/// Answers every request by one to this URL with the same path; says what it was asked.
fn redirector(status: &'static str, to: String) -> (SocketAddr, Asked) {
    listening(move |mut client, asked| {
        let head = head(&mut client);
        let path = head.split(' ').nth(1).unwrap_or_default();
        let answer = format!(
            "HTTP/1.1 {status}\r\nLocation: {to}{path}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        // A test that has seen enough does not listen any more.
        let _ = asked.send(head.clone());
        let _ = client.write_all(answer.as_bytes());
    })
}

// Balancers send to where the server is, with whatever status; the token is for whom it was meant.
#[test]
fn redirects_are_followed_without_the_token() {
    for status in
        ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"]
    {
        let setup = Setup { server: ApiServer::start_plain(LOOPBACK).unwrap(), ..Setup::new() };
        setup.server.put(&service("a"));
        let kubeconfig = setup.options().kubeconfig.unwrap();
        let (first, asked) = redirector(status, setup.server.url());
        let mut value: Value =
            serde_json::from_slice(&std::fs::read(&kubeconfig).unwrap()).unwrap();
        value["clusters"][0]["cluster"]["server"] = format!("http://{first}").into();
        value["users"][0]["user"]["token"] = "secret".into();
        std::fs::write(&kubeconfig, value.to_string()).unwrap();
        setup.watch(&setup.client(options(Some(kubeconfig), None)), Kind::Service);
        setup.wait_for(Kind::Service, &["shop/a"]);
        assert!(asked.try_iter().next().unwrap().to_lowercase().contains("bearer secret"));
        let requests = setup.server.requests();
        assert!(requests.iter().all(|request| !request.headers.contains_key("authorization")));
        assert_eq!(requests[0].ask, Ask::StreamingList, "{status}");
    }
}

// HTTPS_PROXY went to the proxy even for this very machine.
#[test]
fn a_server_on_this_machine_is_reached_directly() {
    let setup = Setup::new();
    fill(&setup.server);
    let kubeconfig = setup.options().kubeconfig.unwrap();
    for value in ["http://192.0.2.1:1", "socks5://192.0.2.1:1", "https://192.0.2.1:1", "http://a b"]
    {
        reach(&setup, &kubeconfig, &[("HTTPS_PROXY", value.into()), ("HTTP_PROXY", value.into())]);
    }
    rename(&kubeconfig, |cluster| {
        cluster["server"] = format!("https://localhost:{}", setup.server.address().port()).into();
        cluster["tls-server-name"] = setup.server.address().ip().to_string().into();
        cluster["proxy-url"] = json!("");
    });
    reach(&setup, &kubeconfig, &[("HTTPS_PROXY", "http://192.0.2.1:1".into())]);
}

// "did not deliver its lists within 30 s", and nothing about why.
#[test]
fn a_command_that_reaches_no_server_says_why() {
    type Way = (&'static str, fn(&mut Setup, &Path));
    let ways: [Way; 4] = [
        ("onnection refused", |setup, _| setup.server.stop()),
        ("invalid peer certificate", |setup, _| setup.server.rotate_ca()),
        ("Unauthorized", |setup, _| setup.server.demand_token("another")),
        ("exec plugin \"/missing\" of the kubeconfig: cannot be run: No such file", |_, path| {
            let mut value: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
            value["users"][0]["user"] = json!({ "exec": {
                "apiVersion": "client.authentication.k8s.io/v1", "command": "/missing",
            } });
            std::fs::write(path, value.to_string()).unwrap();
        }),
    ];
    // Together: a command looks for its server for half a minute.
    let running = ways.map(|(want, spoil)| {
        let mut setup = Setup::new();
        let path = setup.options().kubeconfig.unwrap();
        spoil(&mut setup, &path);
        let command = Command::new(env!("CARGO_BIN_EXE_kubeweir"))
            .args(["render", "--node=node-a", "--kubeconfig"])
            .arg(path)
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        (want, setup, command)
    });
    for (want, _setup, command) in running {
        let output = command.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(want), "{want}: {said}");
    }
}
