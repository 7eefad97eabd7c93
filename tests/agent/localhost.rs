//! NodePorts on localhost in nftables mode (KEP-6032, Kubernetes 1.37): a proxy where it is asked for,
//! refusals where the gate is on and nothing listens.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};

use kubeweir::model::{Family, Kind, PerFamily, Protocol};
use kubeweir::testing::lab::{NODE_IP, Outcome, Place, SECOND_NODE_IP, SILENCE};
use serde_json::{Value, json};

use crate::objects::{node, node_port, slice};
use crate::site::{METRICS, Proxy, Site};

const NODE_PORT: u16 = 30080;
const LOOPBACK: PerFamily<IpAddr> =
    PerFamily { v4: IpAddr::V4(Ipv4Addr::LOCALHOST), v6: IpAddr::V6(Ipv6Addr::LOCALHOST) };

const LISTENERS: &str = "kubeproxy_nftables_localhost_nodeport_listeners";
const FAILURES: &str = "kubeproxy_nftables_localhost_nodeport_listener_creation_failures_total";
const REJECTED: &str = "kubeproxy_nftables_localhost_nodeport_rejected_packets_total";

const DROPPED: &str = "kubeweir_dropped_packets_total";

fn gate(config: &mut Value) {
    config["featureGates"] = json!({ "KubeProxyNFTablesLocalhostNodePorts": true });
}

fn site(change: impl FnOnce(&mut Value)) -> Site {
    let site = Site::lab();
    let mut web = node_port("web", 1, NODE_PORT);
    change(&mut web);
    site.server.put(&web);
    for family in Family::BOTH {
        site.server.put(&slice("web", family, &[Place::Pod(0)]));
    }
    site
}

fn started(site: &Site, change: impl FnOnce(&mut Value)) -> Proxy {
    let proxy = site.start_config(change);
    site.wait_served(&proxy, 1, "pod-0");
    proxy
}

fn dial(site: &Site, protocol: Protocol, family: Family) -> Outcome {
    site.dial(Place::Host, protocol, SocketAddr::new(LOOPBACK[family], NODE_PORT))
}

fn served_by(site: &Site, protocol: Protocol, family: Family) -> Option<String> {
    dial(site, protocol, family).answer().map(|answer| answer.server.clone())
}

fn wait_served(site: &Site, proxy: &Proxy, protocol: Protocol, family: Family, server: &str) {
    let what = format!("{protocol} on localhost, {family}");
    site.wait(proxy, &what, || served_by(site, protocol, family).as_deref() == Some(server));
}

#[test]
fn named_localhost_is_served() {
    let site = site(|_| {});
    let proxy = started(&site, |config| {
        gate(config);
        config["nodePortAddresses"] = json!(["primary", "localhost"]);
    });
    for family in Family::BOTH {
        let labels = [("ip_family", if family == Family::V4 { "IPv4" } else { "IPv6" })];
        wait_served(&site, &proxy, Protocol::Tcp, family, "pod-0");
        assert_eq!(dial(&site, Protocol::Udp, family), Outcome::Refused, "{family}");
        let node = SocketAddr::new(NODE_IP[family], NODE_PORT);
        assert!(site.dial(Place::Outside, Protocol::Tcp, node).answer().is_some(), "{family}");
        // It is told once all listeners are there.
        site.wait(&proxy, "a listener", || site.scrape().value(LISTENERS, &labels) == Some(1.0));
        let scrape = site.scrape();
        let refused = [labels[0], ("protocol", "UDP")];
        assert!(scrape.value(REJECTED, &refused).is_some_and(|count| count >= 1.0), "{family}");
        let by_reason = [labels[0], ("reason", "localhost")];
        assert!(scrape.value(DROPPED, &by_reason) >= scrape.value(REJECTED, &refused), "{family}");
        // The new endpoint is used, and without any the listener is gone.
        site.server.put(&slice("web", family, &[Place::Pod(2)]));
        wait_served(&site, &proxy, Protocol::Tcp, family, "pod-2");
        let suffix = if family == Family::V4 { "web-v4" } else { "web-v6" };
        site.server.delete(Kind::EndpointSlice, "default", suffix);
        site.wait(&proxy, "the refusal", || dial(&site, Protocol::Tcp, family) == Outcome::Refused);
        site.wait(&proxy, "no listener", || site.scrape().value(LISTENERS, &labels) == Some(0.0));
    }
    assert!(!proxy.log().contains("is ignored"), "{}", proxy.log());
}

// Of `all` and zero networks none names loopback; with the gate everything is refused there, without it
// the host's own servers are reached.
#[test]
fn without_the_name_it_is_refused_or_left_alone() {
    let site = site(|_| {});
    let own = |family: Family| {
        site.node().run(|| TcpListener::bind(SocketAddr::new(LOOPBACK[family], NODE_PORT)).unwrap())
    };
    let _servers = Family::BOTH.map(own);
    let reached = |family: Family| {
        let to = SocketAddr::new(LOOPBACK[family], NODE_PORT);
        site.node().run(|| TcpStream::connect(to).is_ok())
    };
    for (list, gated) in
        [(json!(["all"]), true), (json!(["primary"]), true), (json!(["all"]), false)]
    {
        let proxy = started(&site, |config| {
            config["nodePortAddresses"] = list.clone();
            if gated {
                gate(config);
            }
        });
        for family in Family::BOTH {
            // The rules of the run before are in force until the first sync.
            let what = format!("a host's own server: {list} {gated} {family}");
            site.wait(&proxy, &what, || reached(family) != gated);
            if gated {
                assert_eq!(dial(&site, Protocol::Udp, family), Outcome::Refused, "{list} {family}");
            }
        }
        proxy.terminate();
    }
}

// A family whose loopback is not named has no listener.
#[test]
fn loopback_networks_count_by_family() {
    let site = site(|_| {});
    let proxy = started(&site, |config| {
        gate(config);
        config["nodePortAddresses"] = json!(["0.0.0.0/0", "127.0.0.1/32", "::/0"]);
    });
    wait_served(&site, &proxy, Protocol::Tcp, Family::V4, "pod-0");
    assert_eq!(dial(&site, Protocol::Tcp, Family::V6), Outcome::Refused);
}

// Policy Local: only endpoints here, and no listener without one.
#[test]
fn external_traffic_policy_local() {
    let site = site(|web| web["spec"]["externalTrafficPolicy"] = "Local".into());
    site.server.put(&slice("web", Family::V4, &[Place::RemotePod(0), Place::Pod(0)]));
    let proxy = site.start_config(|config| {
        gate(config);
        config["nodePortAddresses"] = json!(["localhost"]);
    });
    wait_served(&site, &proxy, Protocol::Tcp, Family::V4, "pod-0");
    for _ in 0..10 {
        let server = served_by(&site, Protocol::Tcp, Family::V4);
        assert_eq!(server.as_deref(), Some("pod-0"));
    }
    site.server.put(&slice("web", Family::V4, &[Place::RemotePod(0)]));
    site.wait(&proxy, "the refusal", || dial(&site, Protocol::Tcp, Family::V4) == Outcome::Refused);
    assert_eq!(dial(&site, Protocol::Udp, Family::V4), Outcome::Refused);
}

// ClientIP: all clients of the listener have one address, so that they share an endpoint.
#[test]
fn session_affinity() {
    let site = site(|web| {
        web["spec"]["sessionAffinity"] = "ClientIP".into();
        web["spec"]["sessionAffinityConfig"] = json!({ "clientIP": { "timeoutSeconds": 600 } });
    });
    site.server.put(&slice("web", Family::V4, &[Place::Pod(0), Place::Pod(1), Place::Pod(2)]));
    let proxy = site.start_config(|config| {
        gate(config);
        config["nodePortAddresses"] = json!(["localhost"]);
    });
    let server = || served_by(&site, Protocol::Tcp, Family::V4);
    site.wait(&proxy, "an answer", || server().is_some());
    let first = server();
    for _ in 0..20 {
        assert_eq!(server(), first);
    }
}

// kubernetes#142183: upstream keeps refusing TCP after a restart with the name.
#[test]
fn naming_localhost_at_a_restart_serves_it() {
    let site = site(|_| {});
    for names in [json!(["primary"]), json!(["primary", "localhost"]), json!(["primary"])] {
        let named = names.as_array().unwrap().len() > 1;
        let proxy = started(&site, |config| {
            gate(config);
            config["nodePortAddresses"] = names;
        });
        for family in Family::BOTH {
            if named {
                wait_served(&site, &proxy, Protocol::Tcp, family, "pod-0");
            } else {
                let refused = || dial(&site, Protocol::Tcp, family) == Outcome::Refused;
                site.wait(&proxy, "the refusal", refused);
            }
        }
        proxy.terminate();
    }
}

// The lists are those of packets: zone hints count.
#[test]
fn endpoints_are_chosen_as_for_packets() {
    let site = site(|_| {});
    let mut node = node();
    node["metadata"]["labels"]["topology.kubernetes.io/zone"] = "a".into();
    site.server.put(&node);
    let mut hinted = slice("web", Family::V4, &[Place::Pod(0), Place::RemotePod(1)]);
    for (at, zone) in ["b", "a"].into_iter().enumerate() {
        hinted["endpoints"][at]["hints"] = json!({ "forZones": [{ "name": zone }] });
    }
    site.server.put(&hinted);
    let proxy = site.start_config(|config| {
        gate(config);
        config["nodePortAddresses"] = json!(["primary", "localhost"]);
    });
    wait_served(&site, &proxy, Protocol::Tcp, Family::V4, "remote-1");
    let at_node = SocketAddr::new(NODE_IP.v4, NODE_PORT);
    for _ in 0..10 {
        let by_packets = site.dial(Place::Outside, Protocol::Tcp, at_node);
        assert_eq!(by_packets.answer().unwrap().server, "remote-1");
        assert_eq!(served_by(&site, Protocol::Tcp, Family::V4).as_deref(), Some("remote-1"));
    }
}

/// An INIT chunk to a port (RFC 9260, 3.3.2), with its CRC32c.
fn sctp_init(port: u16) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend(40_000u16.to_be_bytes());
    packet.extend(port.to_be_bytes());
    packet.extend([0; 8]);
    packet.extend([1, 0, 0, 20]);
    packet.extend([0, 0, 0, 7]);
    packet.extend(65_536u32.to_be_bytes());
    packet.extend([0, 1, 0, 1]);
    packet.extend([0, 0, 0, 9]);
    let crc = packet.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg())
        })
    });
    packet[8..12].copy_from_slice(&(!crc).to_le_bytes());
    packet
}

// SCTP is refused, served or not. This kernel may have no SCTP sockets: the packet is made by hand, and a
// raw socket hears the refusal, where otherwise it would hear its own packet.
#[test]
fn sctp_is_refused() {
    let site = site(|web| {
        let ports = web["spec"]["ports"].as_array_mut().unwrap();
        ports.push(json!({
            "name": "sctp", "protocol": "SCTP", "port": 80, "nodePort": NODE_PORT,
        }));
    });
    let send = |family: Family| {
        site.node().run(|| {
            let domain = socket2::Domain::for_address(SocketAddr::new(LOOPBACK[family], 0));
            let sctp = socket2::Protocol::from(132);
            let socket = socket2::Socket::new(domain, socket2::Type::RAW, Some(sctp)).unwrap();
            socket.set_read_timeout(Some(SILENCE)).unwrap();
            socket.connect(&SocketAddr::new(LOOPBACK[family], 0).into()).unwrap();
            socket.send(&sctp_init(NODE_PORT)).unwrap();
            let mut heard = [std::mem::MaybeUninit::uninit(); 256];
            socket.recv(&mut heard).map(drop).map_err(|error| error.kind())
        })
    };
    for (list, gated) in
        [(["primary", "localhost"], true), (["primary", "all"], true), (["primary", "all"], false)]
    {
        let proxy = started(&site, |config| {
            config["nodePortAddresses"] = json!(list);
            if gated {
                gate(config);
            }
        });
        for family in Family::BOTH {
            let expected = if gated { Err(ErrorKind::ConnectionRefused) } else { Ok(()) };
            site.wait(&proxy, &format!("{expected:?}, {family}"), || send(family) == expected);
            site.wait(&proxy, "the metrics", || site.listens(LOOPBACK.v4, METRICS));
            let labels = [
                ("ip_family", if family == Family::V4 { "IPv4" } else { "IPv6" }),
                ("protocol", "SCTP"),
            ];
            let counted = || site.scrape().value(REJECTED, &labels) >= Some(1.0);
            if gated {
                // The rules of the process before refuse, too, until this one's are in force.
                let refused = || send(family) == expected && counted();
                site.wait(&proxy, &format!("a counted refusal, {list:?} {family}"), refused);
            } else {
                assert!(!counted(), "{list:?} {family}");
            }
        }
        proxy.terminate();
    }
}

// Issue 14's "done when": a configuration of 1.37 with every new key starts, and behaves as upstream's.
#[test]
fn a_configuration_of_1_37_with_every_new_key() {
    let gates = [
        ("KubeProxyNFTablesLocalhostNodePorts", "ALPHA"),
        ("NFTablesNetlink", "BETA"),
        ("NativeHistograms", "BETA"),
        ("KubeProxyIPVS", "DEPRECATED"),
    ];
    let site = site(|_| {});
    for (list, second) in [
        (json!(["primary", "localhost", "172.20.0.0/16"]), PerFamily { v4: true, v6: false }),
        (json!(["all", "localhost"]), PerFamily { v4: true, v6: true }),
        (json!(["127.0.0.0/8", "::1/128", "primary"]), PerFamily { v4: false, v6: false }),
    ] {
        let proxy = started(&site, |config| {
            config["nodePortAddresses"] = list.clone();
            config["featureGates"] =
                gates.iter().map(|(name, _)| ((*name).to_owned(), json!(true))).collect();
        });
        for family in Family::BOTH {
            let context = format!("{list} {family}");
            wait_served(&site, &proxy, Protocol::Tcp, family, "pod-0");
            assert_eq!(dial(&site, Protocol::Udp, family), Outcome::Refused, "{context}");
            for (address, accepts) in
                [(NODE_IP[family], true), (SECOND_NODE_IP[family], second[family])]
            {
                let to = SocketAddr::new(address, NODE_PORT);
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    let outcome = site.dial(Place::Outside, protocol, to);
                    assert_eq!(outcome.answer().is_some(), accepts, "{to} {protocol}, {context}");
                }
            }
        }
        site.wait(&proxy, "the metrics", || site.listens(LOOPBACK.v4, METRICS));
        let scrape = site.scrape();
        for (name, stage) in gates {
            let labels = [("name", name), ("stage", stage)];
            assert_eq!(scrape.value("kubernetes_feature_enabled", &labels), Some(1.0), "{name}");
        }
        let log = proxy.log();
        for complaint in ["nknown", "is ignored", "incomplete or incorrect", "mode is not set"] {
            assert!(!log.contains(complaint), "{list}: {complaint}:\n{log}");
        }
        proxy.terminate();
    }
}

// Ours: UDP by option.
#[test]
fn udp_by_option() {
    let site = site(|_| {});
    let proxy = started(&site, |config| {
        gate(config);
        config["nodePortAddresses"] = json!(["localhost"]);
        config["kubeweir"] = json!({ "localhostUDP": true });
    });
    for family in Family::BOTH {
        wait_served(&site, &proxy, Protocol::Udp, family, "pod-0");
        site.server.put(&slice("web", family, &[Place::Pod(2)]));
        wait_served(&site, &proxy, Protocol::Udp, family, "pod-2");
    }
}

// A port that somebody has fails alone, is counted, and the Service is served everywhere else.
#[test]
fn a_taken_port() {
    let site = site(|_| {});
    let taken = SocketAddr::new(LOOPBACK.v4, NODE_PORT);
    let _owner = site.node().run(|| TcpListener::bind(taken).unwrap());
    let proxy = started(&site, |config| {
        gate(config);
        config["nodePortAddresses"] = json!(["primary", "localhost"]);
    });
    wait_served(&site, &proxy, Protocol::Tcp, Family::V6, "pod-0");
    let count = |name: &str| site.scrape().value(name, &[("ip_family", "IPv4")]);
    site.wait(&proxy, "the count", || count(FAILURES) == Some(1.0));
    site.wait(&proxy, "no listener", || count(LISTENERS) == Some(0.0));
    proxy.wait_log(&["Failed to serve a NodePort on localhost", "127.0.0.1:30080/tcp"]);
}
