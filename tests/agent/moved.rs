//! Each metric at the event that moves it: a scrape before, the event, a scrape after.
//!
//! `tests/metrics.rs` shows how metrics are spelled. Here, and in these other tests of the binary, each
//! is moved by what it counts:
//!
//! - `kubeproxy_network_programming_duration_seconds`, `kubernetes_build_info`,
//!   `process_start_time_seconds`: `servers::metrics`
//! - `kubeproxy_sync_proxy_rules_nftables_sync_failures_total`: `table::one_family_fails`
//! - `kubeproxy_conntrack_reconciler_sync_duration_seconds`,
//!   `kubeproxy_conntrack_reconciler_deleted_entries_total`: `udp::stale_flows`
//! - `kubeproxy_nftables_localhost_nodeport_listeners`,
//!   `kubeproxy_nftables_localhost_nodeport_rejected_packets_total`:
//!   `localhost::named_localhost_is_served`
//! - `kubeproxy_nftables_localhost_nodeport_listener_creation_failures_total`:
//!   `localhost::a_taken_port`
//! - `kubeweir_dropped_packets_total`, `kubeproxy_iptables_ct_state_invalid_dropped_packets_total`,
//!   `kubeproxy_iptables_localhost_nodeports_accepted_packets_total`: `modes::blank_is_iptables`; the
//!   other reasons: `counted::each_reason_counts_what_it_did_not_let_through` of `tests/packets`
//! - `kubeweir_decode_skips_total`: `servers::an_object_that_cannot_be_used_is_counted`,
//!   `manifests::what_is_skipped_is_counted`
//! - `kubeweir_quarantined_services`, and `kubeweir_rejected_commits_total` by an errno of an element:
//!   `quarantine::a_service_the_kernel_refuses_is_set_aside_and_taken_back`
//! - `kubeweir_ended_connections_total`:
//!   `flows::connections_to_endpoints_that_are_gone_are_ended_on_request`
//! - `kubeweir_conntrack_entries`, `kubeweir_conntrack_entries_limit`,
//!   `kubeweir_conntrack_early_drops_total`:
//!   `conntrack::figures_are_the_kernels_and_a_full_table_is_told`
//! - `kubeweir_conntrack_invalid_packets_total`, `kubeweir_conntrack_insert_failures_total`,
//!   `kubeweir_conntrack_drops_total`: `conntrack::flows_that_cannot_be_tracked_are_counted`
//!
//! Races and hash collisions in the kernel move these, and no test can bring them about. They are held
//! equal to what `conntrack -S` says by the first of these two tests:
//!
//! - `kubeweir_conntrack_search_restarts_total`, `kubeweir_conntrack_clashes_resolved_total`,
//!   `kubeweir_conntrack_chains_too_long_total`
//!
//! No event moves these: they are constants, 0 because no rule of ours is one of iptables
//! (`tests/deviations.md`), or read by the library from `/proc` at each scrape.
//!
//! - `registered_metrics_total`, `disabled_metrics_total`, `hidden_metrics_total`
//! - `kubeproxy_sync_proxy_rules_iptables_total`, `kubeproxy_sync_proxy_rules_iptables_last`
//! - `process_cpu_seconds_total`, `process_max_fds`, `process_open_fds`,
//!   `process_resident_memory_bytes`, `process_threads`, `process_virtual_memory_bytes`

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;

use kubeweir::metrics::reference;
use kubeweir::model::{Family, Kind, Protocol};
use kubeweir::testing::api_server::{Answer, Ask, Fault, Signal};
use kubeweir::testing::lab::{Dial, NODE_NAME, Outcome, PATIENCE, Place, SILENCE, cluster_ip};
use serde_json::{Value, json};

use crate::meddler;
use crate::objects::{balanced, node, node_port, port, service, slice};
use crate::scrape::Scrape;
use crate::site::{HEALTHZ, METRICS, Proxy, Site};
use crate::table::Owner;

type Labels<'a> = &'a [(&'a str, &'a str)];

const V4: Labels = &[("ip_family", "IPv4")];
const V6: Labels = &[("ip_family", "IPv6")];

const ELEMENTS: &str = "kubeweir_elements";
const PENDING: &str = "kubeweir_pending_services";
const REJECTED: &str = "kubeweir_rejected_commits_total";
const LAST: &str = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";

/// The value of a series; 0 where it is not there yet.
fn of(scrape: &Scrape, name: &str, labels: Labels) -> f64 {
    scrape.value(name, labels).unwrap_or_default()
}

fn now(site: &Site, name: &str, labels: Labels) -> f64 {
    of(&site.scrape(), name, labels)
}

/// Waits until a series has this value.
fn wait_is(site: &Site, proxy: &Proxy, name: &str, labels: Labels, value: f64) {
    let what = format!("{name} {labels:?} {value}");
    site.wait(proxy, &what, || now(site, name, labels) == value);
}

/// Waits until a series is above its value in an earlier scrape.
fn wait_moved(site: &Site, proxy: &Proxy, before: &Scrape, name: &str, labels: Labels) {
    let (what, old) = (format!("{name} {labels:?} to move"), of(before, name, labels));
    site.wait(proxy, &what, || now(site, name, labels) > old);
}

/// Waits until the first sync of both families is in the metrics.
fn wait_counted(site: &Site, proxy: &Proxy) {
    site.wait(proxy, "the first sync's metrics", || {
        site.listens(Ipv4Addr::LOCALHOST.into(), METRICS) && {
            let scrape = site.scrape();
            [V4, V6].iter().all(|family| scrape.value(LAST, family).is_some())
        }
    });
}

fn start(site: &Site, change: impl FnOnce(&mut Value)) -> Proxy {
    let proxy = site.start_config(change);
    wait_counted(site, &proxy);
    proxy
}

/// Elements of the named sets and maps of a family's table, as nft lists them.
fn listed_elements(site: &Site, family: &str) -> f64 {
    let list = ["-j", "list", "table", family, "kube-proxy"];
    let table: Value = serde_json::from_str(&site.node().feed("nft", &list, "").unwrap()).unwrap();
    let elements = |object: &Value| -> usize {
        ["set", "map"].iter().filter_map(|kind| object[kind]["elem"].as_array()).map(Vec::len).sum()
    };
    table["nftables"].as_array().unwrap().iter().map(elements).sum::<usize>() as f64
}

#[test]
fn commits_and_elements_by_a_service() {
    let site = Site::bare();
    let proxy = start(&site, |_| {});
    let before = site.scrape();
    site.server.put(&service("web", 1));
    for family in Family::BOTH {
        site.server.put(&slice("web", family, &[Place::Pod(0), Place::RemotePod(0)]));
    }
    for (labels, family) in [(V4, "ip"), (V6, "ip6")] {
        for name in [
            "kubeweir_commit_duration_seconds_count",
            "kubeweir_commit_duration_seconds_sum",
            "kubeweir_commit_bytes_total",
            "kubeweir_commit_messages_total",
            ELEMENTS,
        ] {
            wait_moved(&site, &proxy, &before, name, labels);
        }
        let all = [labels[0], ("set", "all")];
        let is_listed = || now(&site, ELEMENTS, &all) == listed_elements(&site, family);
        site.wait(&proxy, "as many elements as nft lists", is_listed);
    }
    let full = site.scrape();
    site.server.delete(Kind::Service, "default", "web");
    for (labels, family) in [(V4, "ip"), (V6, "ip6")] {
        site.wait(&proxy, "fewer elements", || {
            let count = now(&site, ELEMENTS, labels);
            count < of(&full, ELEMENTS, labels) && count == listed_elements(&site, family)
        });
    }
}

#[test]
fn changes_by_objects_and_pending_until_the_sync() {
    // Total and pending; a Service is counted once per family.
    const SERVICES: [&str; 2] = [
        "kubeproxy_sync_proxy_rules_service_changes_total",
        "kubeproxy_sync_proxy_rules_service_changes_pending",
    ];
    const ENDPOINTS: [&str; 2] = [
        "kubeproxy_sync_proxy_rules_endpoint_changes_total",
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
    ];
    let site = Site::bare();
    site.server.put(&service("web", 1));
    site.server.put(&slice("web", Family::V4, &[Place::Pod(0)]));
    // The first sync is not held back; the next one would be an hour later.
    let proxy = start(&site, |config| {
        config["nftables"]["minSyncPeriod"] = "1h".into();
        config["nftables"]["syncPeriod"] = "1h".into();
    });
    for ([total, pending], count) in [(SERVICES, 2.0), (ENDPOINTS, 1.0)] {
        wait_is(&site, &proxy, total, &[], count);
        assert_eq!(now(&site, pending, &[]), 0.0, "{pending}: taken by the sync");
    }
    site.server.put(&service("later", 2));
    site.server.put(&slice("later", Family::V4, &[Place::Pod(0)]));
    for ([total, pending], count) in [(SERVICES, 4.0), (ENDPOINTS, 2.0)] {
        wait_is(&site, &proxy, total, &[], count);
        wait_is(&site, &proxy, pending, &[], 1.0);
    }
    site.server.delete(Kind::Service, "default", "later");
    wait_is(&site, &proxy, SERVICES[0], &[], 6.0);
}

#[test]
fn durations_and_times_by_syncs() {
    let any = "kubeproxy_sync_proxy_rules_duration_seconds_count";
    let full = "kubeproxy_sync_full_proxy_rules_duration_seconds_count";
    let partial = "kubeproxy_sync_partial_proxy_rules_duration_seconds_count";
    let queued = "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds";
    let site = Site::bare();
    let proxy = start(&site, |_| {});
    let before = site.scrape();
    for labels in [V4, V6] {
        for name in [any, full] {
            assert!(of(&before, name, labels) >= 1.0, "{name}: the first sync is full");
        }
    }
    site.server.put(&service("web", 1));
    for labels in [V4, V6] {
        for name in [any, partial, LAST, queued] {
            wait_moved(&site, &proxy, &before, name, labels);
        }
    }
}

#[test]
fn no_local_endpoints_by_where_endpoints_are() {
    let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
    let site = Site::bare();
    let proxy = start(&site, |_| {});
    let wait = |policy, count| {
        wait_is(&site, &proxy, name, &[V4[0], ("traffic_policy", policy)], count);
    };
    let mut internal = service("internal", 1);
    internal["spec"]["internalTrafficPolicy"] = "Local".into();
    let mut external = node_port("external", 2, 30080);
    external["spec"]["externalTrafficPolicy"] = "Local".into();
    for (policy, object) in [("internal", internal), ("external", external)] {
        wait(policy, 0.0);
        site.server.put(&object);
        site.server.put(&slice(policy, Family::V4, &[Place::RemotePod(0)]));
        // Both ports.
        wait(policy, 2.0);
    }
    wait("internal", 2.0);
    for policy in ["internal", "external"] {
        site.server.put(&slice(policy, Family::V4, &[Place::RemotePod(0), Place::Pod(0)]));
        wait(policy, 0.0);
    }
}

#[test]
fn answers_of_the_health_server_by_requests() {
    let site = Site::bare();
    let proxy = start(&site, |_| {});
    let count = |page, code| {
        let name = match page {
            "healthz" => "kubeproxy_proxy_healthz_total",
            _ => "kubeproxy_proxy_livez_total",
        };
        now(&site, name, &[("code", code)])
    };
    for page in ["healthz", "livez"] {
        for asked in 0..2 {
            assert_eq!(count(page, "200"), f64::from(asked), "{page}");
            assert_eq!(site.get(HEALTHZ, &format!("/{page}")).status, 200);
        }
        assert_eq!(count(page, "200"), 2.0, "{page}");
    }
    let mut going = node();
    going["spec"]["taints"] =
        json!([{ "key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule" }]);
    site.server.put(&going);
    assert_eq!(count("healthz", "503"), 0.0);
    site.wait(&proxy, "503", || site.get(HEALTHZ, "/healthz").status == 503);
    assert_eq!(count("healthz", "503"), 1.0);
    assert_eq!(site.get(HEALTHZ, "/livez").status, 200);
    assert_eq!((count("livez", "503"), count("livez", "200")), (0.0, 3.0));
}

#[test]
fn conflicts_by_two_services_with_one_frontend() {
    let name = "kubeweir_frontend_conflicts";
    let site = Site::bare();
    site.server.put(&service("first", 1));
    let proxy = start(&site, |_| {});
    assert_eq!(now(&site, name, &[]), 0.0);
    let mut second = service("second", 2);
    second["spec"]["externalIPs"] = json!(["10.96.0.1", "198.51.100.9"]);
    site.server.put(&second);
    // TCP and UDP of the first one's ClusterIP; the other address is nobody else's.
    wait_is(&site, &proxy, name, &[], 2.0);
    site.server.delete(Kind::Service, "default", "second");
    wait_is(&site, &proxy, name, &[], 0.0);
}

// Somebody owns the table of IPv6: what is for it waits, and each try is counted under the names that
// the mode's operators know.
#[test]
fn refusals_and_pending_services_by_a_table_that_is_taken() {
    let restore = "kubeproxy_sync_proxy_rules_iptables_restore_failures_total";
    for mode in ["nftables", "iptables"] {
        let site = Site::bare();
        let owner = Owner::of_v6(&site);
        site.server.put(&service("web", 1));
        let config = site.config(|config| config["mode"] = mode.into());
        let proxy = site.launch(&[&config, &format!("--hostname-override={NODE_NAME}")]);
        site.wait(&proxy, "the server", || site.listens(Ipv4Addr::LOCALHOST.into(), METRICS));
        let eperm = [V6[0], ("errno", "EPERM")];
        site.wait(&proxy, "a refusal", || now(&site, REJECTED, &eperm) >= 1.0);
        wait_is(&site, &proxy, PENDING, &[], 1.0);
        let before = site.scrape();
        assert_eq!(before.value(REJECTED, V4), None);
        wait_moved(&site, &proxy, &before, REJECTED, &eperm);
        if mode == "iptables" {
            wait_moved(&site, &proxy, &before, restore, V6);
            assert_eq!(before.value(restore, V4), None);
        }
        drop(owner);
        wait_is(&site, &proxy, PENDING, &[], 0.0);
    }
}

#[test]
fn repairs_by_foreign_changes() {
    let name = "kubeweir_table_repairs_total";
    let site = Site::bare();
    site.server.put(&service("web", 1));
    let proxy = start(&site, |config| config["kubeweir"]["tableOwnership"] = false.into());
    let table = site.table(Family::V4);
    assert_eq!(now(&site, name, V4), 0.0);
    for change in [
        "add chain ip kube-proxy foreign",
        "flush chain ip kube-proxy nat-prerouting",
        "delete table ip kube-proxy",
    ] {
        let before = site.scrape();
        site.node().nft(change).unwrap();
        wait_moved(&site, &proxy, &before, name, V4);
        site.wait(&proxy, change, || site.table(Family::V4) == table);
    }
    assert_eq!(now(&site, name, V6), 0.0, "the other table was left alone");
}

// In iptables mode a sync of only the changed services that fails is counted on its own.
#[test]
fn commits_that_cannot_be_sent_and_lost_answers() {
    let unsent = "kubeweir_unsent_commits_total";
    let partial = "kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total";
    for (name, code, mode) in [
        (unsent, meddler::UNSENT, "nftables"),
        (partial, meddler::UNSENT, "iptables"),
        ("kubeweir_unknown_outcomes_total", meddler::UNANSWERED, "nftables"),
    ] {
        let site = Site::bare();
        let script = format!("exit {code}");
        let proxy = meddler::launch(&site, &script, |config| config["mode"] = mode.into());
        wait_counted(&site, &proxy);
        let before = site.scrape();
        assert_eq!(before.value(name, V4), None);
        meddler::begin(&site);
        site.server.put(&service("web", 1));
        wait_moved(&site, &proxy, &before, name, V4);
        wait_moved(&site, &proxy, &before, name, V6);
        meddler::end(&site);
        site.wait(&proxy, "the Service", || site.table(Family::V4).contains("10.96.0.1 "));
        wait_is(&site, &proxy, PENDING, &[], 0.0);
    }
}

// A rule of somebody else uses an affinity map at the moment when it is to go.
#[test]
fn failed_cleanups_by_a_map_in_foreign_use() {
    let name = "kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total";
    let site = Site::bare();
    let mut sticky = service("web", 1);
    sticky["spec"]["sessionAffinity"] = "ClientIP".into();
    sticky["spec"]["sessionAffinityConfig"] = json!({ "clientIP": { "timeoutSeconds": 600 } });
    site.server.put(&sticky);
    site.server.put(&slice("web", Family::V4, &[Place::Pod(0)]));
    let script = "for map in $(nft list table ip kube-proxy | grep -o 'map clients-[^ ]*' |\n\
                  cut -d' ' -f2); do\n\
                  nft \"add chain ip kube-proxy foreign; add rule ip kube-proxy foreign \
                  ip saddr @$map accept\"\n\
                  done";
    let proxy = meddler::launch(&site, script, |_| {});
    wait_counted(&site, &proxy);
    let clients = || site.table(Family::V4).contains("clients-");
    site.wait(&proxy, "affinity", clients);
    let before = site.scrape();
    assert_eq!(before.value(name, V4), None);
    meddler::begin(&site);
    site.server.put(&service("web", 1));
    wait_moved(&site, &proxy, &before, name, V4);
    assert!(now(&site, REJECTED, &[V4[0], ("errno", "EBUSY")]) >= 1.0);
    meddler::end(&site);
    site.wait(&proxy, "no map", || !clients());
}

#[test]
fn localhost_connections_and_failures_by_clients() {
    const PORT: u16 = 30080;
    let connections = "kubeweir_localhost_nodeport_connections";
    let dial = [V4[0], ("reason", "dial")];
    let site = Site::lab();
    site.server.put(&node_port("web", 1, PORT));
    site.server.put(&slice("web", Family::V4, &[Place::Pod(0)]));
    let proxy = start(&site, |config| {
        config["featureGates"] = json!({ "KubeProxyNFTablesLocalhostNodePorts": true });
        config["nodePortAddresses"] = json!(["localhost"]);
    });
    let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT);
    site.wait(&proxy, "the listener", || site.listens(to.ip(), PORT));
    wait_is(&site, &proxy, connections, V4, 0.0);
    let mut flow = site.lab_ref().open(Place::Host, Protocol::Tcp, to).unwrap();
    assert!(flow.ask(PATIENCE).answer().is_some());
    wait_is(&site, &proxy, connections, V4, 1.0);
    drop(flow);
    wait_is(&site, &proxy, connections, V4, 0.0);

    let before = site.scrape();
    let mut deaf = slice("web", Family::V4, &[Place::Pod(0)]);
    deaf["ports"][0]["port"] = 9.into();
    site.server.put(&deaf);
    site.wait(&proxy, "a failed dial", || {
        site.dial(Place::Host, Protocol::Tcp, to);
        now(&site, "kubeweir_localhost_nodeport_failures_total", &dial)
            > of(&before, "kubeweir_localhost_nodeport_failures_total", &dial)
    });
}

#[test]
fn service_connections_by_clients() {
    let name = "kubeweir_service_connections_total";
    let labels =
        |protocol| [("service", "web"), ("namespace", "default"), ("protocol", protocol), V4[0]];
    let site = Site::lab();
    site.server.put(&service("web", 1));
    site.server.put(&slice("web", Family::V4, &[Place::Pod(0)]));
    let proxy = start(&site, |config| config["kubeweir"]["serviceCounters"] = true.into());
    site.wait_served(&proxy, 1, "pod-0");
    let before = site.scrape();
    for _ in 0..3 {
        let outcome = site.dial_cluster_ip(Place::Pod(1), Protocol::Tcp, 1);
        assert!(outcome.answer().is_some(), "{outcome:?}");
    }
    let after = site.scrape();
    let [tcp, udp] = ["tcp", "udp"].map(labels);
    assert_eq!(of(&after, name, &tcp), of(&before, name, &tcp) + 3.0);
    assert_eq!(of(&after, name, &udp), 0.0, "nobody asked over UDP");
    assert_eq!(after.value("kubeweir_service_connections_omitted", &[]), Some(0.0));
}

/// What is not let through to a port of a service of [`service`]; none as long as it has no reason for that.
fn dropped(site: &Site, service: &str, protocol: Protocol, reason: &str) -> Option<f64> {
    let protocol = protocol.to_string();
    let labels = [
        ("service", service),
        ("namespace", "default"),
        ("protocol", &*protocol),
        ("reason", reason),
    ];
    let labels = [&labels[..], V4].concat();
    site.scrape().value("kubeweir_service_dropped_packets_total", &labels)
}

#[test]
fn service_drops_by_clients_that_are_refused() {
    use Protocol::{Tcp, Udp};
    let site = Site::lab();
    site.server.put(&service("web", 1));
    site.server.put(&slice("web", Family::V4, &[Place::Pod(0)]));
    site.server.put(&service("cart", 2));
    let mut local = service("local", 3);
    local["spec"]["internalTrafficPolicy"] = "Local".into();
    site.server.put(&local);
    site.server.put(&slice("local", Family::V4, &[Place::RemotePod(0)]));
    let mut restricted = balanced("restricted", 4, 30999);
    restricted["spec"]["externalTrafficPolicy"] = "Cluster".into();
    restricted["spec"]["loadBalancerSourceRanges"] = json!(["203.0.113.0/25"]);
    site.server.put(&restricted);
    site.server.put(&slice("restricted", Family::V4, &[Place::Pod(0)]));
    let counting = |config: &mut Value| config["kubeweir"]["serviceCounters"] = true.into();
    let proxy = start(&site, counting);
    site.wait_served(&proxy, 1, "pod-0");

    let dial = |protocol, to: SocketAddr, times| {
        site.lab_ref().dial(Place::Pod(1), Dial::new(protocol, to), times)
    };
    let cluster_ip = |n, protocol| SocketAddr::new(cluster_ip(n, Family::V4), port(protocol));
    let refused = |protocol, times| {
        let outcomes = dial(protocol, cluster_ip(2, protocol), times);
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Refused), "{outcomes:?}");
    };
    let silent = |to, times| {
        let dial = Dial::new(Udp, to).timeout(SILENCE);
        let outcomes = site.lab_ref().dial(Place::Pod(1), dial, times);
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Silent), "{outcomes:?}");
    };
    assert_eq!(dropped(&site, "cart", Tcp, "no-endpoints"), Some(0.0));
    refused(Tcp, 3);
    refused(Udp, 2);
    silent(cluster_ip(3, Udp), 2);
    silent("192.0.2.10:53".parse().unwrap(), 4);
    assert!(dial(Tcp, cluster_ip(1, Tcp), 2).iter().all(|outcome| outcome.answer().is_some()));
    assert_eq!(dropped(&site, "cart", Tcp, "no-endpoints"), Some(3.0));
    assert_eq!(dropped(&site, "cart", Udp, "no-endpoints"), Some(2.0));
    assert_eq!(dropped(&site, "local", Udp, "no-local-endpoints"), Some(2.0));
    assert_eq!(dropped(&site, "local", Tcp, "no-local-endpoints"), Some(0.0), "UDP was sent");
    assert_eq!(dropped(&site, "restricted", Udp, "source-ranges"), Some(4.0));
    let of_web = [("service", "web"), V4[0]];
    let served = site.scrape().value("kubeweir_service_dropped_packets_total", &of_web);
    assert_eq!(served, None, "a service that is served has none");
    assert_eq!(now(&site, "kubeweir_service_dropped_packets_omitted", &[]), 0.0);

    // Endpoints that change nothing about it, a process that is killed, another one.
    let mut unready = slice("cart", Family::V4, &[Place::Pod(2)]);
    unready["endpoints"][0]["conditions"] = json!({ "ready": false, "serving": false });
    site.server.put(&unready);
    site.server.put(&service("canary", 5));
    site.server.put(&slice("canary", Family::V4, &[Place::Pod(2)]));
    site.wait_served(&proxy, 5, "pod-2");
    assert_eq!(dropped(&site, "cart", Tcp, "no-endpoints"), Some(3.0));
    drop(proxy);
    let proxy = start(&site, counting);
    proxy.wait_log(&["\"Read the table\"", "IPv4", "Adopted"]);
    assert_eq!(dropped(&site, "cart", Tcp, "no-endpoints"), Some(3.0));
    refused(Tcp, 4);
    assert_eq!(dropped(&site, "cart", Tcp, "no-endpoints"), Some(7.0));
    let explained = |to: &str, sentence: &str| {
        let mut explain = Command::new(env!("CARGO_BIN_EXE_kubeweir"));
        explain.args(["explain", "10.244.0.11", to]);
        let output = site.node().run(|| explain.output().unwrap());
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains(sentence), "{text}{}", String::from_utf8_lossy(&output.stderr));
    };
    let cart = cluster_ip(2, Tcp).to_string();
    explained(&cart, "  7 times to default/cart:http since it is so\n");
    explained(
        &cart,
        " times in the last minute: packets of all clients to all Services (counter no-endpoints)",
    );
    explained("192.0.2.10:53/udp", "  4 times to default/restricted:dns since it is so\n");

    site.server.put(&slice("cart", Family::V4, &[Place::Pod(2)]));
    site.wait_served(&proxy, 2, "pod-2");
    assert_eq!(dropped(&site, "cart", Tcp, "no-endpoints"), None, "it is served now");
}

#[test]
fn client_requests_by_the_api_servers_answers() {
    let requests = "rest_client_requests_total";
    let mut site = Site::bare();
    let proxy = start(&site, |_| {});
    Kind::ALL.into_iter().for_each(|kind| site.wait_watched(kind));
    let before = site.scrape();
    let code = |code| [("code", code), ("method", "GET")];
    assert!(of(&before, requests, &code("200")) >= 1.0);
    // A watch that ends is asked for again; the first answer is an error.
    let answer = Answer::Refuse { code: 503, reason: "ServiceUnavailable", retry_after: None };
    let (kind, ask) = (Kind::Service, Ask::Watch);
    site.server.fail(Fault { kind: Some(kind), ask, times: 1, answer });
    site.server.signal(kind, Signal::End);
    wait_moved(&site, &proxy, &before, requests, &code("503"));
    wait_moved(&site, &proxy, &before, requests, &code("200"));
    for name in [
        "rest_client_request_duration_seconds_count",
        "rest_client_rate_limiter_duration_seconds_count",
    ] {
        wait_moved(&site, &proxy, &before, name, &[("verb", "GET")]);
    }
    // Events have a body both ways.
    for name in ["rest_client_request_size_bytes_sum", "rest_client_response_size_bytes_sum"] {
        site.wait(&proxy, name, || now(&site, name, &[("verb", "POST")]) > 0.0);
    }
    assert_eq!(of(&before, requests, &code("<error>")), 0.0);
    site.server.stop();
    wait_moved(&site, &proxy, &before, requests, &code("<error>"));
}

#[test]
fn gates_by_the_configuration_and_checks_by_requests() {
    for enabled in [true, false] {
        let site = Site::bare();
        let _proxy = start(&site, |config| {
            config["featureGates"] = json!({ "WatchListClient": enabled });
        });
        let value = now(&site, "kubernetes_feature_enabled", &[("name", "WatchListClient")]);
        assert_eq!(value, f64::from(u8::from(enabled)));
        let checks = || {
            let slis = Scrape::parse(site.get(METRICS, "/metrics/slis").text());
            of(&slis, "kubernetes_healthchecks_total", &[("status", "success")])
        };
        assert_eq!(checks(), 0.0);
        site.get(METRICS, "/healthz");
        assert_eq!(checks(), 1.0);
    }
}

// A new metric comes with its event.
#[test]
fn every_metric_is_named_here() {
    let here = include_str!("moved.rs");
    let names = reference().into_iter().map(|metric| metric.name);
    let missing: Vec<String> = names.filter(|name| !here.contains(name.as_str())).collect();
    assert!(missing.is_empty(), "{missing:#?}");
}
