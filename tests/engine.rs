//! The engine in front of the real kernel: cold start, restart, incremental changes, counts.

#![allow(clippy::unwrap_used)] // a test binary, helpers included

mod netns;

use std::time::Duration;

use kubeweir::engine::{Adoption, Engine};
use kubeweir::kernel::Kernel;
use kubeweir::model::{
    Change, Families, Family, Kind, Object, PerFamily, Protocol, ServiceType, TrafficPolicy,
};
use kubeweir::netlink::NetlinkKernel;
use kubeweir::program::{LocalPods, NodePortMatch, RuleOptions};
use kubeweir::sync::{Report, Synchronizer};
use kubeweir::testing::normal::{assert_alike, normal_form};
use kubeweir::testing::objects::{name, port, service, service_cidr, slice};
use kubeweir::testing::{FakeKernel, wait_unowned};
use kubeweir::topology::NodeTopology;
use netns::{in_netns, run};

fn options() -> RuleOptions {
    RuleOptions {
        local_pods: PerFamily {
            v4: LocalPods::Cidr("10.244.0.0/16".parse().unwrap()),
            v6: LocalPods::InterfacePrefix("veth".to_owned()),
        },
        node_ports: PerFamily {
            v4: NodePortMatch::Addresses(vec!["192.168.0.1".parse().unwrap()]),
            v6: NodePortMatch::AnyLocal,
        },
        node_ips: PerFamily { v4: Some("192.168.0.1".parse().unwrap()), v6: None },
        ..RuleOptions::nftables()
    }
}

fn start<K: Kernel>(kernel: K, objects: &[Object]) -> Synchronizer<K> {
    let node_topology = NodeTopology { node: "a".into(), zone: None };
    let mut engine = Engine::new(options(), node_topology, Families::DUAL, true);
    for kind in Kind::ALL {
        let of_kind = objects.iter().filter(|o| o.kind() == kind).cloned().collect();
        engine.apply(Change::Replace(kind, of_kind));
    }
    Synchronizer::new(engine, kernel)
}

fn sync<K: Kernel>(synchronizer: &mut Synchronizer<K>) -> Vec<Report> {
    let reports: Vec<Report> =
        Family::BOTH.iter().filter_map(|f| synchronizer.sync(*f, Duration::ZERO)).collect();
    for report in &reports {
        assert!(report.result.is_ok(), "{report:?}");
        assert!(report.troubles.is_empty() && report.refused.is_empty(), "{report:?}");
    }
    reports
}

/// One service of every kind the program tells apart.
fn shop() -> Vec<Object> {
    let mut plain = service("shop/cart", &["10.96.0.10", "fd00:96::10"]);
    plain.ports.push(port("http", Protocol::Tcp, 80, None));
    let mut balanced = service("shop/frontend", &["10.96.0.20"]);
    balanced.kind = ServiceType::LoadBalancer;
    balanced.ports.push(port("http", Protocol::Tcp, 80, Some(30080)));
    balanced.ports.push(port("dns", Protocol::Udp, 53, Some(30053)));
    balanced.load_balancer_ips = vec!["203.0.113.7".parse().unwrap()];
    balanced.external_ips = vec!["192.0.2.7".parse().unwrap()];
    balanced.external_policy = TrafficPolicy::Local;
    balanced.source_ranges = vec!["192.168.0.0/24".parse().unwrap()];
    balanced.session_affinity = Some(600);
    let mut local = service("shop/node-local", &["10.96.0.30"]);
    local.internal_policy = TrafficPolicy::Local;
    local.ports.push(port("", Protocol::Tcp, 9100, None));
    let mut empty = service("shop/empty", &["10.96.0.40"]);
    empty.ports.push(port("http", Protocol::Tcp, 80, Some(30081)));
    let http = ("http", Protocol::Tcp, 8080);
    vec![
        plain.into(),
        balanced.into(),
        local.into(),
        empty.into(),
        slice("cart-4", "shop/cart", http, &["10.244.0.1@a", "10.244.1.1@b"]).into(),
        slice("cart-6", "shop/cart", http, &["fd00:244::1@a"]).into(),
        slice("frontend-1", "shop/frontend", http, &["10.244.0.2@a", "10.244.1.2@b"]).into(),
        slice("frontend-2", "shop/frontend", ("dns", Protocol::Udp, 5353), &["10.244.1.2@b"])
            .into(),
        slice("node-local", "shop/node-local", ("", Protocol::Tcp, 9100), &["10.244.1.3@b"]).into(),
        service_cidr("kubernetes", &["10.96.0.0/16", "fd00:96::/112"]).into(),
    ]
}

#[test]
fn the_kernel_ends_up_as_the_fake_one() {
    in_netns(|| {
        let mut real = start(NetlinkKernel::open().unwrap(), &shop());
        let mut fake = start(FakeKernel::new(), &shop());
        sync(&mut real);
        sync(&mut fake);
        for family in Family::BOTH {
            let dumped = real.kernel.dump(family).unwrap();
            assert_alike(&normal_form(&dumped), &normal_form(fake.kernel.ruleset(family)), family);
            let listed = run(&["nft", "list", "table", family.nft(), "kube-proxy"], "");
            assert!(listed.contains("chain nat-prerouting"), "{listed}");
        }
    });
}

// B-174, B-191: what is there is adopted, affinity included; a change is the only thing committed.
#[test]
fn a_restart_commits_only_differences() {
    in_netns(|| {
        let mut first = start(NetlinkKernel::open().unwrap(), &shop());
        sync(&mut first);
        let before = Family::BOTH.map(|family| first.kernel.dump(family).unwrap());
        drop(first);
        let mut second = start(NetlinkKernel::open().unwrap(), &shop());
        wait_unowned(&mut second.kernel);
        for report in sync(&mut second) {
            assert_eq!(report.adoption, Some(Adoption::Adopted), "{report:?}");
            let counts: Vec<_> = report.commits.iter().map(|commit| commit.counts).collect();
            assert_eq!(counts, [Default::default()], "only the table is adopted: {report:?}");
        }
        for (family, before) in Family::BOTH.into_iter().zip(before) {
            assert_eq!(second.kernel.dump(family).unwrap(), before);
        }
        drop(second);
        let mut fewer = shop();
        fewer.retain(|object| *object.name() != name("shop/frontend"));
        let mut third = start(NetlinkKernel::open().unwrap(), &fewer);
        wait_unowned(&mut third.kernel);
        sync(&mut third);
        let mut fresh = start(FakeKernel::new(), &fewer);
        sync(&mut fresh);
        for family in Family::BOTH {
            let dumped = third.kernel.dump(family).unwrap();
            assert_alike(&normal_form(&dumped), &normal_form(fresh.kernel.ruleset(family)), family);
        }
    });
}

// B9: whose the table is says the kernel, not the configuration.
#[test]
fn of_two_agents_one_owns_the_table_and_the_other_takes_it_when_the_owner_is_gone() {
    in_netns(|| {
        let mut first = start(NetlinkKernel::open().unwrap(), &shop());
        sync(&mut first);
        // The same objects: nothing differs, and still the table is not the second one's.
        let mut second = start(NetlinkKernel::open().unwrap(), &shop());
        for _ in 0..2 {
            let report = second.sync(Family::V4, Duration::ZERO).expect("a table that is not ours");
            let reason = report.result.expect_err("the first one owns the table").to_string();
            for part in ["another process", "owns table ip kube-proxy"] {
                assert!(reason.contains(part), "{reason}");
            }
        }
        drop(first);
        wait_unowned(&mut second.kernel);
        let report = second.sync(Family::V4, Duration::ZERO).expect("a table that is nobody's");
        assert!(report.result.is_ok(), "{report:?}");
        run(&["nft", "flush ruleset"], "");
        assert!(!second.kernel.dump(Family::V4).unwrap().chains.is_empty());
        let listed = run(&["nft", "list tables"], "");
        assert!(listed.contains("table ip kube-proxy"), "owned, so flush leaves it: {listed}");
    });
}
