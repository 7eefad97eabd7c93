//! The real kernel refuses one Service: it is set aside, told of everywhere, and taken back.

use std::process::Command;
use std::time::Instant;

use kubeweir::model::{Family, Protocol};
use kubeweir::status;
use kubeweir::testing::lab::{Place, cluster_ip, pod_ip};

use crate::meddler;
use crate::objects::{service, slice};
use crate::site::{METRICS, Proxy, Site};

const GOOD: usize = 1;
const CULPRIT: usize = 2;
const LATER: usize = 3;

/// Starts the agent with a program that takes an element of the culprit away, or puts another one in
/// its place, once after each reading of the table, right before the agent commits: what the agent
/// knows is never so, and the kernel refuses whatever it wants for the culprit, however often it tries
/// without reading. Nobody else is touched.
fn launch_meddled(site: &Site) -> Proxy {
    let key = format!("{} . tcp . 80", cluster_ip(CULPRIT, Family::V4));
    let elsewhere = format!("{} . 9", pod_ip(2, Family::V4));
    let script = format!(
        "[ -e $MEDDLED ] && exit 0\n\
         nft \"delete element ip kube-proxy endpoints-1 {{ {key} }}\" 2>/dev/null ||\n\
         nft \"add element ip kube-proxy endpoints-1 {{ {key} : {elsewhere} }}\"\n\
         touch $MEDDLED"
    );
    meddler::launch(site, &script, |_| {})
}

fn web(site: &Site, name: &str, n: usize, endpoint: Place) {
    site.server.put(&slice(name, Family::V4, &[endpoint]));
    site.server.put(&service(name, n));
}

fn quarantine(site: &Site) -> Vec<status::QuarantinedService> {
    let status = serde_json::from_slice::<status::Status>(&site.get(METRICS, status::PATH).body);
    status.unwrap().families["IPv4"].quarantine.clone()
}

fn status_for_people(site: &Site) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubeweir"));
    command.args(["status", "--address", &format!("127.0.0.1:{METRICS}")]);
    let output = site.node().run(|| command.output().unwrap());
    String::from_utf8(output.stdout).unwrap()
}

fn quarantined(site: &Site) -> f64 {
    site.scrape().value("kubeweir_quarantined_services", &[]).unwrap_or_default()
}

/// Commits that the kernel refused because an element was, or was not, there.
fn refusals(site: &Site) -> f64 {
    let of = |errno| {
        let labels = [("ip_family", "IPv4"), ("errno", errno)];
        site.scrape().value("kubeweir_rejected_commits_total", &labels).unwrap_or_default()
    };
    of("ENOENT") + of("EEXIST")
}

fn is_served(site: &Site, n: usize) -> bool {
    site.dial_cluster_ip(Place::Pod(1), Protocol::Tcp, n).answer().is_some()
}

#[test]
fn a_service_the_kernel_refuses_is_set_aside_and_taken_back() {
    let site = Site::lab();
    web(&site, "good", GOOD, Place::Pod(0));
    let proxy = launch_meddled(&site);
    site.wait_served(&proxy, GOOD, "pod-0");

    meddler::begin(&site);
    let start = Instant::now();
    web(&site, "culprit", CULPRIT, Place::Pod(0));
    let event = site.wait_event("ServiceQuarantined");
    println!("set aside after {:.1?}: {}", start.elapsed(), event["note"]);
    assert_eq!(event["regarding"]["name"], "culprit");
    assert_eq!(event["regarding"]["kind"], "Service");
    let note = event["note"].as_str().unwrap();
    assert!(note.contains("element endpoints-1: "), "{note}");
    proxy.wait_log(&["The kernel refused a service", "default/culprit", "element endpoints-1: "]);
    assert_eq!(quarantined(&site), 1.0);
    assert!(refusals(&site) >= 1.0, "the refused commit is counted");
    let aside = quarantine(&site);
    assert_eq!(aside.len(), 1, "{aside:?}");
    assert_eq!(aside[0].service, "default/culprit");
    assert!(aside[0].reason.contains("element endpoints-1: "), "{aside:?}");
    let said = status_for_people(&site);
    assert!(said.contains("IPv4: default/culprit is set aside, refused "), "{said}");

    // Everybody else: what was there, and what comes later.
    web(&site, "later", LATER, Place::Pod(2));
    site.wait_served(&proxy, LATER, "pod-2");
    assert!(is_served(&site, GOOD));
    site.wait(&proxy, "another try", || quarantine(&site).iter().any(|q| q.refusals >= 2));
    assert!(is_served(&site, GOOD) && is_served(&site, LATER));

    meddler::end(&site);
    let start = Instant::now();
    site.wait_served(&proxy, CULPRIT, "pod-0");
    println!("taken back after {:.1?}", start.elapsed());
    site.wait(&proxy, "nobody set aside", || quarantined(&site) == 0.0);
    assert!(quarantine(&site).is_empty());
}
