//! The shapes of Services whose rules are shown.

use kubeweir::model::{Family, Object, PerFamily, Protocol, ServiceType, TrafficPolicy};
use kubeweir::program::{LocalPods, LocalhostNodePorts, NodePortMatch, RuleOptions};
use kubeweir::testing::objects::{port, service, slice};

/// File, options and family of the programs without Services; the shapes are shown on the first.
pub fn bases() -> Vec<(&'static str, RuleOptions, Family)> {
    let nftables = RuleOptions {
        local_pods: PerFamily {
            v4: LocalPods::Cidr("10.244.0.0/16".parse().unwrap()),
            v6: LocalPods::Cidr("fd00:10:244::/56".parse().unwrap()),
        },
        node_ports: PerFamily {
            v4: NodePortMatch::Addresses(vec!["192.0.2.11".parse().unwrap()]),
            v6: NodePortMatch::Addresses(vec!["2001:db8::11".parse().unwrap()]),
        },
        node_ips: PerFamily {
            v4: Some("192.0.2.11".parse().unwrap()),
            v6: Some("2001:db8::11".parse().unwrap()),
        },
        ..RuleOptions::nftables()
    };
    let any_local = PerFamily::from_fn(|_| NodePortMatch::AnyLocal);
    let iptables = RuleOptions {
        node_ports: any_local,
        guard_cluster_ips: false,
        localhost_node_ports: true,
        drop_invalid: true,
        hairpin_everywhere: true,
        restrict_without_endpoints: false,
        ..nftables.clone()
    };
    let bridge = RuleOptions {
        local_pods: PerFamily::from_fn(|_| LocalPods::Interface("cni0".to_owned())),
        ..nftables.clone()
    };
    let localhost = |localhost| RuleOptions {
        localhost: PerFamily::from_fn(|_| localhost),
        ..nftables.clone()
    };
    let counting = RuleOptions { service_counters: true, ..nftables.clone() };
    vec![
        ("base-ip.nft", nftables.clone(), Family::V4),
        ("base-ip6.nft", nftables.clone(), Family::V6),
        ("base-iptables-mode.nft", iptables, Family::V4),
        ("base-bridge-detector.nft", bridge, Family::V4),
        ("base-localhost.nft", localhost(LocalhostNodePorts::Proxied { udp: false }), Family::V4),
        ("base-service-counters.nft", counting, Family::V4),
        ("base-localhost-refused.nft", localhost(LocalhostNodePorts::Refused), Family::V6),
    ]
}

const HTTP: (&str, Protocol, u16) = ("http", Protocol::Tcp, 8080);

/// File, what it shows, and the objects.
pub fn all() -> Vec<(&'static str, &'static str, Vec<Object>)> {
    let mut shapes = cluster_ips();
    shapes.extend(external());
    shapes.extend(special());
    shapes
}

fn cluster_ips() -> Vec<(&'static str, &'static str, Vec<Object>)> {
    let with_port = |name: &str, ips: &[&str]| {
        let mut object = service(name, ips);
        object.ports.push(port("http", Protocol::Tcp, 80, None));
        object
    };
    let seventeen: Vec<String> = (1..=17).map(|i| format!("10.244.1.{i}@node-b")).collect();
    let seventeen: Vec<&str> = seventeen.iter().map(String::as_str).collect();
    vec![
        (
            "cluster-ip.nft",
            "A dual-stack ClusterIP Service with one endpoint: on this node in IPv4, elsewhere in IPv6.",
            vec![
                with_port("shop/cart", &["10.96.0.10", "fd00:10:96::10"]).into(),
                slice("cart-4", "shop/cart", HTTP, &["10.244.0.7@node-a"]).into(),
                slice("cart-6", "shop/cart", HTTP, &["fd00:10:244:1::7@node-b"]).into(),
            ],
        ),
        (
            "cluster-ip-17-endpoints.nft",
            "A list of 17: class 64. The first 16 rules of its chain draw a slot of 64, the last one of 16,
             which are all filled. Classes appear when a list first needs them.",
            vec![
                with_port("shop/search", &["10.96.0.17"]).into(),
                slice("search-1", "shop/search", HTTP, &seventeen).into(),
            ],
        ),
        (
            "no-endpoints.nft",
            "A ClusterIP Service and a NodePort without any usable endpoint: refused.",
            vec![{
                let mut object = service("shop/email", &["10.96.0.40"]);
                object.kind = ServiceType::NodePort;
                object.ports.push(port("grpc", Protocol::Tcp, 5000, Some(30500)));
                object.into()
            }],
        ),
    ]
}

fn external() -> Vec<(&'static str, &'static str, Vec<Object>)> {
    let endpoints = ["10.244.0.8@node-a", "10.244.1.8@node-b"];
    let balanced = |policy: TrafficPolicy| {
        let mut object = service("shop/frontend", &["10.96.0.20"]);
        object.kind = ServiceType::LoadBalancer;
        object.ports.push(port("http", Protocol::Tcp, 80, Some(30080)));
        object.load_balancer_ips = vec!["203.0.113.80".parse().unwrap()];
        object.external_ips = vec!["198.51.100.80".parse().unwrap()];
        object.external_policy = policy;
        object
    };
    let frontend = || slice("frontend-1", "shop/frontend", HTTP, &endpoints).into();
    let remote = || slice("frontend-1", "shop/frontend", HTTP, &["10.244.1.8@node-b"]).into();
    let mut restricted = balanced(TrafficPolicy::Cluster);
    restricted.source_ranges =
        vec!["192.0.2.0/24".parse().unwrap(), "203.0.113.0/28".parse().unwrap()];
    vec![
        (
            "load-balancer.nft",
            "ClusterIP, NodePort, external IP and load-balancer IP under externalTrafficPolicy: Cluster: one
             list each, and everything but the ClusterIP is masqueraded.",
            vec![balanced(TrafficPolicy::Cluster).into(), frontend()],
        ),
        (
            "external-traffic-policy-local.nft",
            "The same under externalTrafficPolicy: Local: two lists, and the host's own connections are
             masqueraded.",
            vec![balanced(TrafficPolicy::Local).into(), frontend()],
        ),
        (
            "external-traffic-policy-local-only-remote.nft",
            "The same without an endpoint on this node: what is not short-circuited is dropped.",
            vec![balanced(TrafficPolicy::Local).into(), remote()],
        ),
        (
            "source-ranges.nft",
            "loadBalancerSourceRanges, one of which contains this node: the load-balancer IP itself may be
             a source too.",
            vec![restricted.into(), frontend()],
        ),
    ]
}

fn special() -> Vec<(&'static str, &'static str, Vec<Object>)> {
    let with_port = |name: &str, ip: &str| {
        let mut object = service(name, &[ip]);
        object.ports.push(port("http", Protocol::Tcp, 80, None));
        object
    };
    let endpoints = ["10.244.0.9@node-a", "10.244.1.9@node-b"];
    let mut sticky = with_port("shop/session", "10.96.0.30");
    sticky.session_affinity = Some(10800);
    let mut local = with_port("monitoring/agent", "10.96.0.31");
    local.internal_policy = TrafficPolicy::Local;
    vec![
        (
            "session-affinity.nft",
            "sessionAffinity: ClientIP. Packets fill the map: client to endpoint.",
            vec![sticky.into(), slice("session-1", "shop/session", HTTP, &endpoints).into()],
        ),
        (
            "internal-traffic-policy-local.nft",
            "internalTrafficPolicy: Local: the ClusterIP's list holds the endpoints of this node only.",
            vec![local.into(), slice("agent-1", "monitoring/agent", HTTP, &endpoints).into()],
        ),
    ]
}
