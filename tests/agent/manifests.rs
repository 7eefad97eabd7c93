//! The agent without an API server: objects come from a directory.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use kubeweir::model::Family;
use kubeweir::testing::lab::{CLUSTER_CIDR, NODE_IP, NODE_NAME, Place, cluster_ip};
use serde_json::{Value, json};

use crate::objects::{node, service, slice};
use crate::site::{HEALTHZ, Proxy, Site};

fn directory(site: &Site) -> PathBuf {
    site.path("manifests")
}

/// Replaces a file at once.
fn write(site: &Site, name: &str, object: &Value) {
    let draft = site.path("draft");
    fs::write(&draft, object.to_string()).unwrap();
    fs::rename(draft, directory(site).join(name)).unwrap();
}

fn arguments(site: &Site) -> Vec<OsString> {
    let cluster = format!("--cluster-cidr={},{}", CLUSTER_CIDR.v4, CLUSTER_CIDR.v6);
    let mut args: Vec<OsString> = vec!["run".into(), "--manifests".into(), directory(site).into()];
    args.extend(["--node", NODE_NAME, &cluster, "-v", "2"].map(OsString::from));
    args
}

fn start(site: &Site) -> Proxy {
    let proxy = site.launch_by(Path::new(env!("CARGO_BIN_EXE_kubeweir")), &arguments(site));
    site.wait(&proxy, "the first sync", || site.is_synced());
    proxy
}

/// A node with one Service's manifests.
fn web() -> Site {
    let site = Site::bare();
    fs::create_dir(directory(&site)).unwrap();
    write(&site, "web.json", &service("web", 1));
    write(&site, "web-slice.json", &slice("web", Family::V4, &[Place::Pod(0)]));
    site
}

// Without a Node among the manifests, which is not needed there, /healthz said 503 for ever.
#[test]
fn health_without_a_node() {
    let site = web();
    let proxy = start(&site);
    let healthz = site.json(HEALTHZ, "/healthz");
    assert_eq!((&healthz["healthy"], &healthz["nodeEligible"]), (&json!(true), &json!(true)));
    assert_eq!(site.get(HEALTHZ, "/healthz").status, 200);
    assert_eq!(site.get(HEALTHZ, "/livez").status, 200);
    drop(proxy);
}

// B-230, B-231, B-232: a Node among the manifests decides as one of the API server's does.
#[test]
fn health_with_a_node_that_goes() {
    let site = web();
    write(&site, "node.json", &node());
    let proxy = start(&site);
    let is = |status| site.get(HEALTHZ, "/healthz").status == status;
    site.wait(&proxy, "200", || is(200));
    let mut tainted = node();
    let taint = json!({ "key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule" });
    tainted["spec"]["taints"] = json!([taint]);
    let mut deleted = node();
    deleted["metadata"]["deletionTimestamp"] = "2026-11-28T11:00:00Z".into();
    for (title, going) in [("a taint", tainted), ("a deletion", deleted)] {
        write(&site, "node.json", &going);
        site.wait(&proxy, title, || is(503));
        assert_eq!(site.get(HEALTHZ, "/livez").status, 200, "{title}");
        write(&site, "node.json", &node());
        site.wait(&proxy, "200 again", || is(200));
    }
}

// A directory need not have the node, so that a Node which is taken out of it ends nothing, and its
// addresses stay in force.
#[test]
fn a_node_that_is_taken_out_ends_nothing() {
    let site = web();
    write(&site, "node.json", &node());
    let proxy = start(&site);
    let accepted = format!("elements = {{ {} }}", NODE_IP.v4);
    let kept = || site.table(Family::V4).contains(&accepted);
    site.wait(&proxy, "the NodePort address", kept);
    fs::remove_file(directory(&site).join("node.json")).unwrap();
    write(&site, "later.json", &service("later", 2));
    let later = cluster_ip(2, Family::V4).to_string();
    site.wait(&proxy, "a later change", || site.table(Family::V4).contains(&later));
    assert!(kept() && proxy.agent.is_running(), "{}", proxy.log());
}

// No inotify instance is left on a node with many watchers: a warning, and a look now and then.
#[test]
fn without_inotify_manifests_are_looked_at_now_and_then() {
    let site = web();
    let trace = site.path("trace");
    let mut args: Vec<OsString> = ["-f", "-qq", "-e", "signal=none"].map(OsString::from).into();
    args.extend(["-e", "inject=inotify_init1:error=EMFILE", "-o"].map(OsString::from));
    args.extend([trace.into(), env!("CARGO_BIN_EXE_kubeweir").into()]);
    args.extend(arguments(&site));
    let proxy = site.launch_by(Path::new("strace"), &args);
    site.wait(&proxy, "the first sync", || site.is_synced());
    proxy.wait_log(&["without inotify", "Too many open files"]);
    write(&site, "more.json", &service("more", 7));
    write(&site, "more-slice.json", &slice("more", Family::V4, &[Place::Pod(0)]));
    let address = cluster_ip(7, Family::V4).to_string();
    site.wait(&proxy, "the change", || site.table(Family::V4).contains(&address));
}

// What cannot be used of a manifest was only logged.
#[test]
fn what_is_skipped_is_counted() {
    let site = web();
    let mut odd = service("odd", 2);
    odd["spec"]["externalIPs"] = json!(["nonsense"]);
    write(&site, "odd.json", &odd);
    let proxy = start(&site);
    proxy.wait_log(&["skipped part of an object", "default/odd", "odd.json, document 1"]);
    let labels = [("kind", "Service"), ("level", "error")];
    assert_eq!(site.scrape().value("kubeweir_decode_skips_total", &labels), Some(1.0));
    write(&site, "odd.json", &service("odd", 2));
    write(&site, "other.json", &odd);
    let is = |n| site.scrape().value("kubeweir_decode_skips_total", &labels) == Some(n);
    site.wait(&proxy, "one more", || is(2.0));
}
