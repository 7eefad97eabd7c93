//! The ports: health, metrics and debug pages, health-check node ports, and what their failure does.

use std::collections::BTreeSet;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener};

use jiff::Timestamp;
use kubeweir::metrics::Mode;
use kubeweir::model::{Family, Kind};
use kubeweir::testing::api_server::Ask;
use kubeweir::testing::lab::{NODE_IP, NODE_NAME, Place};
use serde_json::{Value, json};
use socket2::SockRef;

use crate::objects::{balanced, node, service, slice};
use crate::site::{HEALTHZ, METRICS, Proxy, Site};
use crate::upstream_metrics::UPSTREAM;

const CHECK: u16 = 32000;

/// Occupies a port of the node.
fn occupy(site: &Site, address: &str, port: u16) -> TcpListener {
    let address: IpAddr = address.parse().unwrap();
    site.node().run(|| TcpListener::bind(SocketAddr::new(address, port)).unwrap())
}

/// Stops listening now: a program that another test is just starting may hold the descriptor yet.
fn vacate(listener: TcpListener) {
    SockRef::from(&listener).shutdown(Shutdown::Both).unwrap();
}

// B-229, B-237, B-238, B-239: the health server of a running agent, over both families.
#[test]
fn health() {
    let site = Site::bare();
    let _proxy = site.start();
    let healthz = site.json(HEALTHZ, "/healthz");
    assert_eq!((&healthz["healthy"], &healthz["nodeEligible"]), (&json!(true), &json!(true)));
    for family in ["IPv4", "IPv6"] {
        assert_eq!(healthz["status"][family]["healthy"], true, "{healthz}");
    }
    let livez = site.json(HEALTHZ, "/livez");
    assert_eq!((&livez["healthy"], livez.get("nodeEligible")), (&json!(true), None));
    assert_eq!(site.get(HEALTHZ, "/metrics").status, 404);
    let over_v6 = site.get_at(SocketAddr::new(NODE_IP.v6, HEALTHZ), "/healthz");
    assert_eq!(over_v6.status, 200);
}

// B-230, B-231, B-232: the Node decides about /healthz alone.
#[test]
fn eligibility() {
    let site = Site::bare();
    let proxy = site.start();
    let mut tainted = node();
    tainted["spec"]["taints"] = json!([{ "key": "other", "effect": "NoSchedule" }]);
    site.server.put(&tainted);
    tainted["metadata"]["labels"]["topology.kubernetes.io/zone"] = "seen".into();
    site.server.put(&tainted);
    proxy.wait_log(&["zone=\"seen\""]);
    assert_eq!(site.get(HEALTHZ, "/healthz").status, 200, "another taint");
    let key = "ToBeDeletedByClusterAutoscaler";
    tainted["spec"]["taints"] = json!([{ "key": key, "effect": "NoSchedule" }]);
    site.server.put(&tainted);
    site.wait(&proxy, "503", || site.get(HEALTHZ, "/healthz").status == 503);
    assert_eq!(site.json(HEALTHZ, "/healthz")["nodeEligible"], false);
    assert_eq!(site.get(HEALTHZ, "/livez").status, 200);
}

// B-007, Q-17: without the health server nothing listens there, and health-check node ports answer.
#[test]
fn without_the_health_server() {
    let site = Site::bare();
    site.server.put(&balanced("web", 1, CHECK));
    site.server.put(&slice("web", Family::V4, &[Place::Pod(0)]));
    let kubeconfig = site.server.write_kubeconfig(site.directory.path()).unwrap();
    let proxy = site.launch(&[
        "--healthz-port=0",
        "--proxy-mode=nftables",
        "--conntrack-max-per-core=0",
        "--conntrack-tcp-timeout-established=0s",
        "--conntrack-tcp-timeout-close-wait=0s",
        &format!("--kubeconfig={}", kubeconfig.display()),
        &format!("--hostname-override={NODE_NAME}"),
    ]);
    site.wait(&proxy, "the first sync", || site.is_synced());
    site.wait(&proxy, "the health check", || site.listens(NODE_IP.v4, CHECK));
    let answer = site.get_at(SocketAddr::new(NODE_IP.v4, CHECK), "/");
    assert_eq!(answer.status, 200);
    assert!(!site.listens(IpAddr::from([127, 0, 0, 1]), HEALTHZ));
    assert!(proxy.log().contains("--healthz-port has been deprecated"), "{}", proxy.log());
}

// B-249, B-250, B-251, B-252: the pages of a running agent show what it was started with.
#[test]
fn pages() {
    let site = Site::bare();
    let proxy = site.start();
    let missing = ["/livez", "/readyz", "/", "/debug/flags/v", "/debug/pprof/"];
    for path in missing {
        assert_eq!(site.get(METRICS, path).status, 404, "{path}");
    }
    for path in ["/metrics", "/metrics/slis", "/healthz", "/healthz/ping"] {
        assert_eq!(site.get(METRICS, path).status, 200, "{path}");
    }
    assert_eq!(site.get(METRICS, "/proxyMode").text(), "nftables");
    let config = &site.json(METRICS, "/configz")["kubeproxy.config.k8s.io"];
    assert_eq!(config["kind"], "KubeProxyConfiguration");
    assert_eq!(config["nodePortAddresses"], json!(["primary"]));
    assert_eq!(config["conntrack"]["maxPerCore"], 0);
    let flagz = site.get(METRICS, "/flagz").text().to_owned();
    assert!(flagz.starts_with("\nkube-proxy flagz\n"), "{flagz}");
    assert!(flagz.contains("hostname-override"), "{flagz}");
    let statusz = site.get(METRICS, "/statusz").text().to_owned();
    assert!(statusz.starts_with("\nkube-proxy statusz\n"), "{statusz}");
    let status = || site.json(METRICS, "/kubeweir/status");
    assert_eq!(status()["node"], NODE_NAME);
    // The kernel has it before the agent says so.
    site.wait(&proxy, "its own word", || status()["families"]["IPv4"]["attached"] == true);
}

// B-240: a busy port is fatal with an Event where the configuration says so.
#[test]
fn hard_failure() {
    for (port, reason) in
        [(HEALTHZ, "FailedToStartProxierHealthcheck"), (METRICS, "FailedToStartMetricServer")]
    {
        let site = Site::bare();
        let _busy = occupy(&site, "127.0.0.1", port);
        let config = site.config(|config| {
            config["bindAddressHardFail"] = true.into();
            config["healthzBindAddress"] = "127.0.0.1:10256".into();
        });
        let name = format!("--hostname-override={NODE_NAME}");
        let (code, log) = site.launch(&[&config, &name]).end();
        assert_eq!(code, Some(1), "{log}");
        assert!(log.contains("\"Error running ProxyServer\""), "{log}");
        let event = site.wait_event(reason);
        assert_eq!(
            (&event["type"], &event["action"]),
            (&json!("Warning"), &json!("StartKubeProxy"))
        );
        assert_eq!(event["regarding"]["kind"], "Node");
        assert!(event["note"].as_str().unwrap().contains(&port.to_string()), "{event}");
    }
}

// B-240, B-248: without that it is tried again; the start is told by an Event either way.
#[test]
fn a_busy_port_is_tried_again() {
    let site = Site::bare();
    let busy = occupy(&site, "127.0.0.1", METRICS);
    let proxy = site.start();
    proxy.wait_log(&["127.0.0.1:10249", "in use"]);
    let event = site.wait_event("Starting");
    assert_eq!((&event["type"], &event["action"]), (&json!("Normal"), &json!("StartKubeProxy")));
    assert_eq!(event["reportingController"], "kube-proxy");
    assert_eq!(event.get("note"), None);
    assert_eq!(site.get(HEALTHZ, "/healthz").status, 200);
    vacate(busy);
    let localhost = IpAddr::from([127, 0, 0, 1]);
    site.wait(&proxy, "the metrics server", || site.listens(localhost, METRICS));
    assert_eq!(site.get(METRICS, "/proxyMode").text(), "nftables");
}

/// Status, weight and body's count of a health-check node port.
fn check(site: &Site, family: Family, port: u16) -> (u16, String, u64) {
    let answer = site.get_at(SocketAddr::new(NODE_IP[family], port), "/any/path");
    let weight = answer.header("X-Load-Balancing-Endpoint-Weight").unwrap_or_default().to_owned();
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!(body["service"], json!({ "namespace": "default", "name": "web" }));
    (answer.status, weight, body["localEndpoints"].as_u64().unwrap())
}

fn wait_check(site: &Site, proxy: &Proxy, wanted: (u16, &str, u64)) {
    let wanted = (wanted.0, wanted.1.to_owned(), wanted.2);
    site.wait(proxy, &format!("{wanted:?}"), || check(site, Family::V4, CHECK) == wanted);
}

// B-241, B-242, B-243, B-244, B-245: listeners on the NodePort addresses of both families; the
// weight follows the ready local endpoints.
#[test]
fn health_checks_follow_endpoints() {
    let site = Site::bare();
    site.server.put(&balanced("web", 1, CHECK));
    let all = [Place::Pod(0), Place::Pod(1), Place::RemotePod(0)];
    site.server.put(&slice("web", Family::V4, &all));
    site.server.put(&slice("web", Family::V6, &all[..1]));
    let proxy = site.start();
    for family in Family::BOTH {
        site.wait(&proxy, "the health check", || site.listens(NODE_IP[family], CHECK));
    }
    assert!(!site.listens(IpAddr::from([127, 0, 0, 1]), CHECK), "no NodePort address");
    wait_check(&site, &proxy, (200, "2", 2));
    let mut slice = slice("web", Family::V4, &all);
    slice["endpoints"][1]["conditions"] =
        json!({ "ready": false, "serving": true, "terminating": true });
    site.server.put(&slice);
    wait_check(&site, &proxy, (200, "1", 1));
    slice["endpoints"][0]["conditions"] = slice["endpoints"][1]["conditions"].clone();
    site.server.put(&slice);
    site.server.delete(Kind::EndpointSlice, "default", "web-v6");
    wait_check(&site, &proxy, (503, "0", 0));
}

// B-246: a new port moves the listener, the end of the Service closes it.
#[test]
fn health_checks_follow_the_service() {
    let site = Site::bare();
    site.server.put(&balanced("web", 1, CHECK));
    let proxy = site.start();
    let listens = |port| site.listens(NODE_IP.v4, port);
    site.wait(&proxy, "the first port", || listens(CHECK));
    site.server.put(&balanced("web", 1, CHECK + 1));
    site.wait(&proxy, "the other port", || listens(CHECK + 1) && !listens(CHECK));
    site.server.delete(Kind::Service, "default", "web");
    site.wait(&proxy, "the end", || !listens(CHECK + 1));
}

// B-247: a busy port is an Event on the Service, and is tried again with the next sync.
#[test]
fn a_busy_health_check_port() {
    let site = Site::bare();
    let busy = occupy(&site, &NODE_IP.v4.to_string(), CHECK);
    site.server.put(&balanced("web", 1, CHECK));
    site.server.put(&slice("web", Family::V4, &[Place::Pod(0)]));
    let proxy = site.start();
    let event = site.wait_event("FailedToStartServiceHealthcheck");
    assert_eq!((&event["type"], &event["action"]), (&json!("Warning"), &json!("Listen")));
    assert_eq!(event["regarding"]["name"], "web");
    let note = event["note"].as_str().unwrap();
    let start = format!("node {NODE_NAME} failed to start healthcheck \"default/web\" on port");
    assert!(note.starts_with(&start), "{note}");
    vacate(busy);
    site.server.put(&slice("web", Family::V4, &[Place::Pod(0), Place::Pod(1)]));
    site.wait(&proxy, "the health check", || site.listens(NODE_IP.v4, CHECK));
    wait_check(&site, &proxy, (200, "2", 2));
}

// B-253, B-254, B-255, B-256, B-257: a scrape of a working agent has upstream's families, with upstream's
// types, labels and buckets; the latency is observed once for each trigger time.
#[test]
fn metrics() {
    let site = Site::bare();
    site.server.put(&balanced("web", 1, CHECK));
    site.server.put(&slice("web", Family::V4, &[Place::RemotePod(0)]));
    let proxy = site.start();
    site.get(HEALTHZ, "/healthz");
    site.get(HEALTHZ, "/livez");
    let mut changed = slice("web", Family::V4, &[Place::RemotePod(1)]);
    let trigger = "endpoints.kubernetes.io/last-change-trigger-time";
    changed["metadata"]["annotations"][trigger] = Timestamp::now().to_string().into();
    site.server.put(&changed);
    let latency = "kubeproxy_network_programming_duration_seconds_count";
    let v4 = [("ip_family", "IPv4")];
    site.wait(&proxy, "a latency", || site.scrape().value(latency, &v4) == Some(1.0));
    let partial = "kubeproxy_sync_partial_proxy_rules_duration_seconds_count";
    assert!(site.scrape().value(partial, &v4) >= Some(1.0));
    let flows = "kubeproxy_conntrack_reconciler_deleted_entries_total";
    site.wait(&proxy, "a search for flows", || site.scrape().value(flows, &v4) == Some(0.0));

    let scrape = site.scrape();
    for row in UPSTREAM.iter().filter(|row| row.modes.contains(&Mode::Nftables)) {
        // Series of failures appear with the first one, those of localhost NodePorts with their gate.
        let Some(kind) = scrape.kinds.get(row.name) else {
            let later = row.name.ends_with("_failures_total")
                || row.name.starts_with("kubeproxy_nftables_localhost_nodeport_");
            assert!(later, "{} is missing", row.name);
            continue;
        };
        assert_eq!(kind, row.kind, "{}", row.name);
        let labels: BTreeSet<&str> = row.labels.iter().copied().collect();
        assert_eq!(scrape.labels(row.name), labels, "{}", row.name);
        let bounds: Vec<&str> = row.buckets.split_whitespace().collect();
        let exported = scrape.buckets(row.name);
        let (infinity, finite) = exported.split_last().unwrap_or((&"+Inf", &[]));
        assert_eq!((finite, *infinity), (&bounds[..], "+Inf"), "{}", row.name);
    }
    let external = [("traffic_policy", "external"), ("ip_family", "IPv4")];
    let no_local = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
    assert_eq!(scrape.value(no_local, &external), Some(2.0), "both ports");
    let internal = [("traffic_policy", "internal"), ("ip_family", "IPv4")];
    assert_eq!(scrape.value(no_local, &internal), Some(0.0));
    let names =
        ["rest_client_requests_total", "process_start_time_seconds", "kubernetes_build_info"];
    for name in names.into_iter().chain(["kubernetes_feature_enabled"]) {
        assert!(scrape.kinds.contains_key(name), "{name}");
    }
}

// It was promised and never counted: only the log knew.
#[test]
fn an_object_that_cannot_be_used_is_counted() {
    let site = Site::bare();
    let mut nonsense = service("nonsense", 1);
    nonsense["spec"]["ports"][0]["port"] = 70_000.into();
    site.server.put(&nonsense);
    let proxy = site.start();
    let skips = |level| {
        let labels = [("kind", "Service"), ("level", level)];
        site.scrape().value("kubeweir_decode_skips_total", &labels).unwrap_or_default()
    };
    site.wait(&proxy, "one skip", || skips("error") >= 1.0);
    proxy.wait_log(&["skipped part of an object", "default/nonsense"]);
}

// Feature gate WatchListClient was accepted and had no effect.
#[test]
fn without_the_gate_no_streaming_list_is_asked_for() {
    let site = Site::bare();
    let _proxy = site.start_config(|config| {
        config["featureGates"] = json!({ "WatchListClient": false });
    });
    Kind::ALL.into_iter().for_each(|kind| site.wait_watched(kind));
    let requests = site.server.requests();
    assert!(requests.iter().all(|request| request.ask != Ask::StreamingList), "{requests:#?}");
}
