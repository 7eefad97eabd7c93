//! The metrics port over a real socket on loopback: what a scrape contains, compared with the table of
//! upstream's metrics, and the debug pages.
//!
//! Metrics are recorded here by the test itself: that shows names, types, labels and buckets, and not
//! that anything ever moves them. What does is in `tests/agent/moved.rs`, at the event and through the
//! whole binary.

#![allow(clippy::unwrap_used)] // a test binary, helpers included

mod http_client;
mod scrape;
mod upstream_metrics;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get as on_get;
use jiff::Timestamp;
use kubeweir::conntrack::Statistics;
use kubeweir::http_server;
use kubeweir::kernel::{CommitError, Committed, Rejection};
use kubeweir::metrics::server::{Pages, Statusz};
use kubeweir::metrics::{
    BuildInfo, FeatureStage, MetricKind, Metrics, Mode, NoLocalEndpoints, Request, RuleCounts,
    ServiceCount, reference,
};
use kubeweir::model::{Family, Kind, ObjectName, Protocol, Skip, SkipLevel};
use serde_json::{Value, json};

use http_client::{Answer, get, request};
use scrape::Scrape;
use upstream_metrics::{Row, UPSTREAM};

/// A metrics server and what it serves.
struct Fixture {
    metrics: Arc<Metrics>,
    verbosity: Arc<Mutex<Option<i32>>>,
    address: SocketAddr,
}

impl Fixture {
    async fn start(mode: Mode) -> Fixture {
        Fixture::with_pages(mode, |pages| pages).await
    }

    async fn with_pages(mode: Mode, change: impl FnOnce(Pages) -> Pages) -> Fixture {
        let build = BuildInfo { git_version: "v1.37.0+test".to_owned(), ..BuildInfo::default() };
        let metrics = Arc::new(Metrics::new(mode, &build, Timestamp::constant(1_700_000_000, 0)));
        let verbosity = Arc::new(Mutex::new(None));
        let set = Arc::clone(&verbosity);
        let pages = change(Pages {
            proxy_mode: "nftables".to_owned(),
            configuration: json!({ "kind": "KubeProxyConfiguration", "mode": "nftables" }),
            flags: Some(BTreeMap::from([("v".to_owned(), "2".to_owned())])),
            status: Some(Statusz {
                started: Timestamp::constant(1_700_000_000, 5),
                compiler_version: "rustc 1.89".to_owned(),
                binary_version: "v1.37.0+test".to_owned(),
                emulation_version: "1.37".to_owned(),
            }),
            profiling: Some(Arc::new(move |v| *set.lock().expect("not poisoned") = Some(v))),
            extra: Router::new().route("/kubeweir/status", on_get(|| async { "extra" })),
        });
        let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener = http_server::bind("metrics", any_port, true).await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        tokio::spawn(kubeweir::metrics::server::run(listener, Arc::clone(&metrics), pages));
        Fixture { metrics, verbosity, address }
    }

    async fn scrape(&self) -> Scrape {
        let answer = get(self.address, "/metrics").await;
        assert_eq!(answer.status, 200);
        let expected = "text/plain; version=0.0.4; charset=utf-8";
        assert_eq!(answer.header("Content-Type"), Some(expected));
        Scrape::parse(answer.text())
    }
}

/// Records something in every metric, in both families, so that a scrape has every name and label.
fn record_everything(metrics: &Metrics) {
    for family in Family::BOTH {
        record_proxy(metrics, family);
        record_agent(metrics, family);
        metrics.localhost.listeners(family, 1);
        metrics.localhost.not_opened(family);
        metrics.localhost.failed(family, "dial");
        drop(metrics.localhost.opened(family));
    }
    metrics.proxy.endpoint_change(true);
    metrics.proxy.service_change(1);
    metrics.proxy.healthz_answered(StatusCode::OK);
    metrics.proxy.livez_answered(StatusCode::OK);
    metrics.process.feature("NFTablesProxyMode", FeatureStage::Ga, true);
    metrics.client.throttled("GET", "10.0.0.1:6443", Duration::ZERO);
    metrics.client.requested(Request {
        method: "GET",
        host: "10.0.0.1:6443",
        status: Some(200),
        took: Duration::from_millis(3),
        request_bytes: 0,
        response_bytes: Some(100),
    });
    let count = ServiceCount {
        namespace: "ns",
        service: "web",
        port_name: "http",
        protocol: Protocol::Tcp,
        family: Family::V4,
        reason: None,
        count: 42,
    };
    let connections = move |each: &mut dyn FnMut(ServiceCount<'_>)| each(count);
    metrics.export_connections(Box::new(connections), 10);
    let refused = ServiceCount { reason: Some("no-endpoints"), ..count };
    let drops = move |each: &mut dyn FnMut(ServiceCount<'_>)| each(refused);
    metrics.export_service_drops(Box::new(drops), 10);
    let dropped = || Family::BOTH.map(|family| (family, "no-endpoints", 5)).to_vec();
    metrics.export_rule_counts(Box::new(move || {
        Some(RuleCounts { dropped: dropped(), invalid: 2, accepted_on_localhost: 3 })
    }));
    metrics.export_conntrack(Box::new(|| Some(Statistics { entries: 7, ..Statistics::default() })));
}

fn record_proxy(metrics: &Metrics, family: Family) {
    let proxy = &metrics.proxy;
    for full in [true, false] {
        proxy.sync_duration(family, full, Duration::from_millis(3));
        proxy.sync_failed(family, full);
    }
    proxy.sync_success(family, Timestamp::UNIX_EPOCH);
    proxy.queued(family, Timestamp::UNIX_EPOCH);
    proxy.cleanup_failed(family);
    proxy.network_programming(family, Duration::from_secs(1));
    proxy.no_local_endpoints(family, NoLocalEndpoints { internal: 1, external: 2 });
    proxy.conntrack_reconciled(family, Some(Duration::from_millis(3)), 1);
    proxy.no_iptables_rules(family);
}

fn record_agent(metrics: &Metrics, family: Family) {
    let agent = &metrics.agent;
    agent.connections_ended(family, 2);
    agent.committed(family, &Committed { messages: 3, bytes: 400, elapsed: Duration::ZERO });
    agent.commit_failed(family, &rejected(libc::EBUSY));
    agent.commit_failed(family, &rejected(12345));
    agent.commit_failed(family, &CommitError::Unknown(std::io::ErrorKind::Other.into()));
    let source = std::io::ErrorKind::Other.into();
    agent.commit_failed(family, &CommitError::Unsent { bytes: 1, source });
    agent.elements(family, "endpoints", 7);
    agent.repaired(family);
    agent.skipped(&Skip {
        kind: Kind::Service,
        object: ObjectName::new("ns", "web"),
        field: "spec.externalIPs[0]".to_owned(),
        reason: "no address".to_owned(),
        level: SkipLevel::Error,
    });
}

fn rejected(errno: i32) -> CommitError {
    CommitError::Rejected(Rejection { op: None, element: None, object: "batch".to_owned(), errno })
}

// B-253, B-254: in each mode exactly upstream's metrics, with their types, labels and buckets.
#[tokio::test]
async fn scrape_has_upstreams_metrics() {
    for mode in Mode::ALL {
        let fixture = Fixture::start(mode).await;
        record_everything(&fixture.metrics);
        if mode == Mode::Nftables {
            let refused = || Family::BOTH.map(|family| (family, Protocol::Udp, 1)).to_vec();
            fixture.metrics.export_refused(Box::new(refused));
        }
        let scrape = fixture.scrape().await;
        let expected: Vec<&Row> = UPSTREAM.iter().filter(|row| row.modes.contains(&mode)).collect();

        let names: BTreeSet<&str> = expected.iter().map(|row| row.name).collect();
        let found = scrape.kinds.keys().map(String::as_str);
        let found: BTreeSet<&str> = found.filter(|name| name.starts_with("kubeproxy_")).collect();
        assert_eq!(found, names, "{mode:?}");

        for row in expected {
            let name = row.name;
            assert_eq!(scrape.kinds[name], row.kind, "{mode:?}: {name}");
            let labels: BTreeSet<&str> = row.labels.iter().copied().collect();
            assert_eq!(scrape.labels(name), labels, "{mode:?}: {name}");
            if row.labels.contains(&"ip_family") {
                let families: BTreeSet<_> =
                    scrape.of(name).filter_map(|sample| sample.label("ip_family")).collect();
                assert_eq!(families, BTreeSet::from(["IPv4", "IPv6"]), "{mode:?}: {name}");
            }
            if row.kind == "histogram" {
                let buckets: Vec<&str> = row.buckets.split_whitespace().chain(["+Inf"]).collect();
                assert_eq!(scrape.buckets(name), buckets, "{mode:?}: {name}");
            }
        }
    }
}

// B-253: a fresh process exports the metrics without labels, at zero, and none of those with.
#[tokio::test]
async fn labelled_metrics_appear_with_their_first_observation() {
    for mode in Mode::ALL {
        let scrape = Fixture::start(mode).await.scrape().await;
        for row in UPSTREAM.iter().filter(|row| row.modes.contains(&mode)) {
            let expected = row.labels.is_empty().then_some(0.0);
            assert_eq!(scrape.value(row.name, &[]), expected, "{mode:?}: {}", row.name);
            let exported = scrape.kinds.contains_key(row.name);
            assert_eq!(exported, row.labels.is_empty(), "{mode:?}: {}", row.name);
        }
    }
}

// B-255, B-258, B-259: what each recording changes.
#[tokio::test]
async fn recordings_change_their_series_only() {
    let fixture = Fixture::start(Mode::Nftables).await;
    let proxy = &fixture.metrics.proxy;
    proxy.sync_duration(Family::V4, true, Duration::from_millis(3));
    proxy.sync_duration(Family::V4, false, Duration::from_millis(3));
    proxy.sync_duration(Family::V4, false, Duration::from_secs(20));
    proxy.queued(Family::V4, Timestamp::constant(1_700_000_000, 500_000_000));
    proxy.sync_failed(Family::V6, true);
    proxy.no_local_endpoints(Family::V4, NoLocalEndpoints { internal: 1, external: 2 });
    proxy.network_programming(Family::V4, Duration::from_millis(400));
    proxy.conntrack_reconciled(Family::V4, Some(Duration::from_millis(3)), 0);
    let scrape = fixture.scrape().await;
    let v4 = ("ip_family", "IPv4");
    let value = |name: &str, labels: &[(&str, &str)]| scrape.value(name, labels);

    let prefix = "kubeproxy_sync";
    for (kind, count, fast) in [("", 3.0, 2.0), ("_full", 1.0, 1.0), ("_partial", 2.0, 1.0)] {
        let name = format!("{prefix}{kind}_proxy_rules_duration_seconds");
        assert_eq!(value(&format!("{name}_count"), &[v4]), Some(count), "{name}");
        let up_to_4_ms = [v4, ("le", "0.004")];
        assert_eq!(value(&format!("{name}_bucket"), &up_to_4_ms), Some(fast), "{name}");
    }
    let queued = "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds";
    assert_eq!(value(queued, &[v4]), Some(1_700_000_000.5));
    let last = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";
    assert_eq!(value(last, &[v4]), None, "no success yet");
    let failures = "kubeproxy_sync_proxy_rules_nftables_sync_failures_total";
    assert_eq!(value(failures, &[("ip_family", "IPv6")]), Some(1.0));
    assert_eq!(value(failures, &[v4]), None, "the other family did not fail");
    let local = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
    assert_eq!(value(local, &[v4, ("traffic_policy", "internal")]), Some(1.0));
    assert_eq!(value(local, &[v4, ("traffic_policy", "external")]), Some(2.0));
    let deleted = "kubeproxy_conntrack_reconciler_deleted_entries_total";
    assert_eq!(value(deleted, &[v4]), Some(0.0), "a search without a find is one, too");
    let programming = "kubeproxy_network_programming_duration_seconds";
    assert_eq!(value(&format!("{programming}_bucket"), &[v4, ("le", "0.25")]), Some(0.0));
    assert_eq!(value(&format!("{programming}_bucket"), &[v4, ("le", "0.5")]), Some(1.0));

    proxy.sync_success(Family::V4, Timestamp::constant(1_700_000_009, 0));
    let scrape = fixture.scrape().await;
    assert_eq!(scrape.value(last, &[v4]), Some(1_700_000_009.0));
    assert_eq!(scrape.value(queued, &[v4]), Some(1_700_000_000.5), "success is no request");
}

// B-259: failures are counted under the configured mode's names.
#[tokio::test]
async fn failures_are_counted_by_mode() {
    let restore = "kubeproxy_sync_proxy_rules_iptables_restore_failures_total";
    let partial = "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total";
    for (mode, partial_failures) in [(Mode::Iptables, Some(1.0)), (Mode::Ipvs, None)] {
        let fixture = Fixture::start(mode).await;
        fixture.metrics.proxy.sync_failed(Family::V4, true);
        fixture.metrics.proxy.sync_failed(Family::V4, false);
        let scrape = fixture.scrape().await;
        assert_eq!(scrape.value(restore, &[]), Some(2.0), "{mode:?}");
        assert_eq!(scrape.value(partial, &[]), partial_failures, "{mode:?}");
    }
}

// changes count up, and are pending until a sync takes them.
#[tokio::test]
async fn changes_are_pending_until_taken() {
    let fixture = Fixture::start(Mode::Nftables).await;
    let proxy = &fixture.metrics.proxy;
    let read = async || {
        let scrape = fixture.scrape().await;
        ["endpoint_changes_total", "endpoint_changes_pending"]
            .into_iter()
            .chain(["service_changes_total", "service_changes_pending"])
            .map(|name| scrape.value(&format!("kubeproxy_sync_proxy_rules_{name}"), &[]))
            .map(|value| value.expect("exported from the start"))
            .collect::<Vec<f64>>()
    };
    proxy.endpoint_change(true);
    proxy.endpoint_change(false);
    proxy.service_change(1);
    proxy.service_change(2);
    assert_eq!(read().await, [2.0, 1.0, 2.0, 2.0]);
    proxy.endpoint_changes_taken();
    proxy.service_changes_taken();
    assert_eq!(read().await, [2.0, 0.0, 2.0, 0.0]);
}

/// The reference says of every exported metric what it is, and knows none that is never exported.
#[tokio::test]
async fn reference_is_what_is_exported() {
    let documented = reference();
    assert!(documented.is_sorted_by(|a, b| a.name < b.name));
    for mode in Mode::ALL {
        let fixture = Fixture::start(mode).await;
        record_everything(&fixture.metrics);
        if mode == Mode::Nftables {
            fixture.metrics.export_refused(Box::new(|| vec![(Family::V4, Protocol::Udp, 1)]));
        }
        get(fixture.address, "/healthz").await;
        let mut scrape = fixture.scrape().await;
        let slis = get(fixture.address, "/metrics/slis").await;
        let slis = Scrape::parse(slis.text());
        scrape.kinds.extend(slis.kinds);
        scrape.samples.extend(slis.samples);

        let of_mode = || documented.iter().filter(|doc| doc.modes.contains(&mode));
        let names: BTreeSet<&str> = of_mode().map(|doc| doc.name.as_str()).collect();
        let found: BTreeSet<&str> = scrape.kinds.keys().map(String::as_str).collect();
        assert_eq!(found, names, "{mode:?}");
        for doc in of_mode() {
            let kind = match doc.kind {
                MetricKind::Counter => "counter",
                MetricKind::Gauge => "gauge",
                MetricKind::Histogram => "histogram",
            };
            assert_eq!(scrape.kinds[&doc.name], kind, "{}", doc.name);
            let labels: BTreeSet<&str> = doc.labels.iter().map(String::as_str).collect();
            assert_eq!(scrape.labels(&doc.name), labels, "{}", doc.name);
            assert!(!doc.help.is_empty(), "{}", doc.name);
        }
    }
}

/// Kubeweir's own series: outcomes of commits with a closed set of errnos, skips, connections. How they
/// are spelled, not that anything counts them.
#[tokio::test]
async fn own_metrics_have_bounded_labels() {
    let fixture = Fixture::start(Mode::Nftables).await;
    record_everything(&fixture.metrics);
    let scrape = fixture.scrape().await;
    let v4 = ("ip_family", "IPv4");
    let rejected = "kubeweir_rejected_commits_total";
    assert_eq!(scrape.value(rejected, &[v4, ("errno", "EBUSY")]), Some(1.0));
    assert_eq!(scrape.value(rejected, &[v4, ("errno", "other")]), Some(1.0));
    assert_eq!(scrape.value("kubeweir_unknown_outcomes_total", &[v4]), Some(1.0));
    assert_eq!(scrape.value("kubeweir_unsent_commits_total", &[v4]), Some(1.0));
    assert_eq!(scrape.value("kubeweir_commit_bytes_total", &[v4]), Some(400.0));
    assert_eq!(scrape.buckets("kubeweir_commit_duration_seconds")[0], "0.00001");
    let skip = [("kind", "Service"), ("level", "error")];
    assert_eq!(scrape.value("kubeweir_decode_skips_total", &skip), Some(2.0));
    let dropped = [v4, ("reason", "no-endpoints")];
    assert_eq!(scrape.value("kubeweir_dropped_packets_total", &dropped), Some(5.0));
    let web = [("namespace", "ns"), ("service", "web"), ("port_name", "http"), ("protocol", "tcp")];
    assert_eq!(scrape.value("kubeweir_service_connections_total", &web), Some(42.0));
}

#[derive(prost::Message)]
struct FamilyName {
    #[prost(string, tag = "1")]
    name: String,
}

/// Protobuf when the client prefers it: delimited messages, the same families as in the text.
#[tokio::test]
async fn scrape_is_protobuf_on_request() {
    let fixture = Fixture::start(Mode::Nftables).await;
    let accept = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;\
                  encoding=delimited;q=0.7,text/plain;q=0.3";
    let answer = request(fixture.address, "GET", "/metrics", &[("Accept", accept)], "").await;
    let content_type = answer.header("Content-Type").expect("a content type");
    assert!(content_type.starts_with("application/vnd.google.protobuf"), "{content_type}");
    let mut rest = answer.body.as_slice();
    let mut names = BTreeSet::new();
    while !rest.is_empty() {
        let family = <FamilyName as prost::Message>::decode_length_delimited(&mut rest);
        names.insert(family.expect("a delimited message").name);
    }
    let text = fixture.scrape().await;
    assert_eq!(names, text.kinds.into_keys().collect());
}

fn plain(answer: &Answer) -> (u16, Option<&str>, Option<&str>, &str) {
    let (kind, sniff) = (answer.header("Content-Type"), answer.header("X-Content-Type-Options"));
    (answer.status, kind, sniff, answer.text())
}

const PLAIN: Option<&str> = Some("text/plain; charset=utf-8");
const NOSNIFF: Option<&str> = Some("nosniff");

// B-249, B-250, B-251: the pages that exist, their bodies, and those that do not.
#[tokio::test]
async fn pages_exist_as_upstream() {
    let fixture = Fixture::start(Mode::Nftables).await;
    for path in ["/metrics", "/metrics/slis", "/healthz", "/healthz/ping"].into_iter().chain([
        "/proxyMode",
        "/configz",
        "/flagz",
        "/statusz",
        "/kubeweir/status",
    ]) {
        assert_eq!(get(fixture.address, path).await.status, 200, "{path}");
    }
    for path in ["/", "/livez", "/readyz", "/metrics/other", "/proxymode"] {
        let answer = get(fixture.address, path).await;
        assert_eq!(plain(&answer), (404, PLAIN, NOSNIFF, "404 page not found\n"), "{path}");
    }
    let answer = get(fixture.address, "/proxyMode").await;
    assert_eq!(plain(&answer), (200, PLAIN, NOSNIFF, "nftables"));

    let answer = get(fixture.address, "/configz").await;
    assert_eq!(answer.header("Content-Type"), Some("application/json"));
    let body: Value = serde_json::from_str(answer.text()).expect("JSON");
    let configuration = json!({ "kind": "KubeProxyConfiguration", "mode": "nftables" });
    assert_eq!(body, json!({ "kubeproxy.config.k8s.io": configuration }));
}

// B-252: debug pages exist only with profiling; a PUT of a number sets the verbosity.
#[tokio::test]
async fn debug_pages_need_profiling() {
    let debug = ["/debug/pprof/", "/debug/pprof/cmdline", "/debug/flags", "/debug/flags/v"];
    let without = |pages| Pages { profiling: None, ..pages };
    let closed = Fixture::with_pages(Mode::Nftables, without).await;
    for path in debug {
        assert_eq!(request(closed.address, "PUT", path, &[], "4").await.status, 404, "{path}");
    }
    let open = Fixture::start(Mode::Nftables).await;
    for path in &debug[..3] {
        assert_eq!(get(open.address, path).await.status, 200, "{path}");
    }
    assert_eq!(get(open.address, "/debug/pprof/heap").await.status, 501, "a named deviation");
    assert_eq!(get(open.address, "/debug/flags/v").await.status, 406);
    let verbosity = || *open.verbosity.lock().expect("not poisoned");
    let long = "1".repeat(1000);
    for (body, status) in [("many", 400), (long.as_str(), 413)] {
        let answer = request(open.address, "PUT", "/debug/flags/v", &[], body).await;
        assert_eq!((answer.status, verbosity()), (status, None), "{body}");
    }
    let answer = request(open.address, "PUT", "/debug/flags/v", &[], "4").await;
    assert_eq!((answer.status, verbosity()), (200, Some(4)));
}

// B-249: /healthz is a ping with upstream's query parameters, and feeds the SLIs until a DELETE.
#[tokio::test]
async fn healthz_pings_and_feeds_the_slis() {
    let fixture = Fixture::start(Mode::Nftables).await;
    let slis = async || Scrape::parse(get(fixture.address, "/metrics/slis").await.text());
    let fresh = slis().await;
    assert_eq!(fresh.value("process_start_time_seconds", &[]), Some(1_700_000_000.0));
    assert_eq!(fresh.kinds.len(), 1, "{fresh:?}");

    let verbose = "[+]ping ok\nhealthz check passed\n";
    let excluded = "[+]ping excluded: ok\nhealthz check passed\n";
    for (path, expected) in [
        ("/healthz", "ok"),
        ("/healthz?verbose", verbose),
        ("/healthz?exclude=ping", "ok"),
        ("/healthz?exclude=ping&verbose=true", excluded),
        ("/healthz/ping", "ok"),
    ] {
        let answer = get(fixture.address, path).await;
        assert_eq!(plain(&answer), (200, PLAIN, NOSNIFF, expected), "{path}");
    }
    let asked = slis().await;
    let ping = [("name", "ping"), ("type", "healthz")];
    assert_eq!(asked.value("kubernetes_healthcheck", &ping), Some(1.0));
    let passed = [ping[0], ping[1], ("status", "success")];
    assert_eq!(asked.value("kubernetes_healthchecks_total", &passed), Some(2.0));

    let answer = request(fixture.address, "DELETE", "/metrics/slis", &[], "").await;
    assert_eq!(answer.status, 200);
    assert_eq!(slis().await.kinds.len(), 1);
}

// B-249: /flagz and /statusz as text, as objects, refused, and absent without their gates.
#[tokio::test]
async fn flagz_and_statusz_have_both_forms() {
    let fixture = Fixture::start(Mode::Nftables).await;
    for (page, title, line) in [
        ("/flagz", "\nkube-proxy flagz\n", "\nv: 2\n"),
        ("/statusz", "\nkube-proxy statusz\n", "\nBinary version: v1.37.0+test\n"),
        ("/statusz", "\nkube-proxy statusz\n", "\nStarted: Tue Nov 14 22:13:20 UTC 2023\n"),
        (
            "/statusz",
            "\nkube-proxy statusz\n",
            "\nPaths: /configz /debug /flagz /healthz /metrics /proxyMode /statusz\n",
        ),
    ] {
        let answer = get(fixture.address, page).await;
        assert!(answer.text().starts_with(title), "{page}: {}", answer.text());
        assert!(answer.text().contains(line), "{page}: {}", answer.text());
    }
    let object = async |page: &str, accept: &str| {
        let answer = request(fixture.address, "GET", page, &[("Accept", accept)], "").await;
        (answer.status, serde_json::from_str::<Value>(answer.text()).unwrap_or_default())
    };
    let (status, body) =
        object("/flagz", "application/json;v=v1alpha1;g=config.k8s.io;as=Flagz").await;
    let metadata = json!({ "name": "kube-proxy" });
    let expected = json!({
        "kind": "Flagz", "apiVersion": "config.k8s.io/v1alpha1", "metadata": metadata,
        "flags": { "v": "2" },
    });
    assert_eq!((status, body), (200, expected));
    let (status, body) =
        object("/statusz", "application/json;v=v1beta1;g=config.k8s.io;as=Statusz").await;
    assert_eq!((status, &body["kind"]), (200, &json!("Statusz")));
    assert_eq!(body["apiVersion"], "config.k8s.io/v1beta1");
    assert_eq!(body["startTime"], "2023-11-14T22:13:20Z");
    assert_eq!(body["emulationVersion"], "1.37");
    for (page, kind, pointer, value) in [
        ("/flagz", "Flagz", "/flags/v", json!("2")),
        ("/statusz", "Statusz", "/binaryVersion", json!("v1.37.0+test")),
    ] {
        // k/k #135309: YAML by the same parameters; CBOR stands behind a gate that is off.
        let accept =
            |media: &str, version: &str| format!("{media};v={version};g=config.k8s.io;as={kind}");
        for version in ["v1beta1", "v1alpha1"] {
            let yaml = accept("application/yaml", version);
            let answer = request(fixture.address, "GET", page, &[("Accept", &yaml)], "").await;
            assert_eq!(answer.header("Content-Type"), Some("application/yaml"));
            let body: Value = serde_saphyr::from_str(answer.text()).unwrap();
            assert_eq!(body.pointer(pointer), Some(&value), "{body}");
            assert_eq!(answer.header("Warning").is_some(), version == "v1alpha1", "{version}");
        }
        let cbor = accept("application/cbor", "v1beta1");
        for refused in ["application/json", "application/yaml", "application/xml", &cbor] {
            assert_eq!(object(page, refused).await.0, 406, "{page} {refused}");
        }
        let either = format!("{},*/*", accept("application/json", "v1"));
        let answer = request(fixture.address, "GET", page, &[("Accept", &either)], "").await;
        assert!(answer.text().starts_with("\nkube-proxy "), "{}", answer.text());
    }

    let off = |pages| Pages { flags: None, status: None, ..pages };
    let fixture = Fixture::with_pages(Mode::Nftables, off).await;
    for page in ["/flagz", "/statusz"] {
        assert_eq!(get(fixture.address, page).await.status, 404, "{page}");
    }
}
