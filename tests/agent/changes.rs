//! Changes of objects, as a watch brings them, and the packets after them.

use std::net::SocketAddr;

use kubeweir::model::{Family, Kind, Protocol};
use kubeweir::testing::lab::{Outcome, Place};
use serde_json::json;

use crate::objects::{service, service_cidr, slice};
use crate::site::Site;

// B-074: the label takes a Service away from us, whatever its value; without it, it is ours again.
#[test]
fn service_proxy_name() {
    let site = Site::lab();
    site.server.put(&service("web", 1));
    site.server.put(&slice("web", Family::V4, &[Place::Pod(0)]));
    let proxy = site.start();
    site.wait_served(&proxy, 1, "pod-0");
    let mut labelled = service("web", 1);
    labelled["metadata"]["labels"]["service.kubernetes.io/service-proxy-name"] = "".into();
    site.server.put(&labelled);
    site.wait_outcome(&proxy, Place::Pod(1), 1, |outcome| *outcome == Outcome::Silent);
    assert!(!site.table(Family::V4).contains("default/web"));
    site.server.put(&service("web", 1));
    site.wait_served(&proxy, 1, "pod-0");
}

// B-137, B-138, Q-09: a ServiceCIDR counts from the moment it appears, and no longer than it exists.
#[test]
fn service_cidrs() {
    let site = Site::lab();
    let proxy = site.start();
    // Something real that no Service has: it answers unless the address is in a ServiceCIDR.
    let external = kubeweir::testing::lab::real_external_ip(1, Family::V4);
    let to = SocketAddr::new(external, 8080);
    site.lab_ref().serve(Place::Outside, "external", &[to]).unwrap();
    let outcome = || site.dial(Place::Pod(0), Protocol::Tcp, to);
    assert!(outcome().answer().is_some());
    let mut more = service_cidr();
    more["metadata"]["name"] = "more".into();
    more["spec"]["cidrs"] = json!([format!("{external}/32")]);
    site.server.put(&more);
    site.wait(&proxy, "the drop", || outcome() == Outcome::Silent);
    site.server.delete(Kind::ServiceCidr, "", "more");
    site.wait(&proxy, "its end", || outcome().answer().is_some());
}

// B-105, B-096: a slice before its Service, in JSON from a server that answers nothing else.
#[test]
fn slices_first_and_json() {
    let site = Site::lab();
    site.server.json_only();
    site.server.put(&slice("web", Family::V4, &[Place::Pod(0)]));
    let proxy = site.start();
    site.server.put(&service("web", 1));
    site.wait_served(&proxy, 1, "pod-0");
    let mut second = slice("web", Family::V4, &[Place::Pod(2)]);
    second["metadata"]["name"] = "web-second".into();
    site.server.put(&second);
    site.wait_served(&proxy, 1, "pod-2");
    site.server.delete(Kind::EndpointSlice, "default", "web-v4");
    site.server.delete(Kind::EndpointSlice, "default", "web-second");
    site.wait_outcome(&proxy, Place::Pod(1), 1, |outcome| *outcome == Outcome::Refused);
}

// B-050: with the gate off, external IPs are nobody's.
#[test]
fn external_ips_can_be_turned_off() {
    let site = Site::lab();
    let external = kubeweir::testing::lab::external_ip(1, Family::V4);
    let mut web = service("web", 1);
    web["spec"]["externalIPs"] = json!([external]);
    site.server.put(&web);
    site.server.put(&slice("web", Family::V4, &[Place::Pod(0)]));
    let to = SocketAddr::new(external, 80);
    let served = |site: &Site| site.dial(Place::Outside, Protocol::Tcp, to).answer().is_some();
    let proxy = site.start();
    site.wait_served(&proxy, 1, "pod-0");
    assert!(served(&site));
    proxy.terminate();
    let proxy = site.start_config(|config| {
        config["featureGates"] = json!({ "AllowServiceExternalIPs": false });
    });
    site.wait(&proxy, "the end of the external IP", || !served(&site));
    site.wait_served(&proxy, 1, "pod-0");
}
