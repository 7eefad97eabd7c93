//! Rules that are not ours, as text for `nft`: what Kubeweir's are measured against.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use kubeweir::model::{Family, Protocol};

use super::services::{
    AFFINITY, Cluster, ENDPOINT_PORT, PORT, Spec, node_ip, outside_cidr, pod_cidr,
};

/// Conntrack at work, and no rule that a packet meets.
pub fn conntrack_only(family: Family) -> String {
    format!("table {0} nothing {{ chain unused {{ ct state new; }}\n}}\n", table(family))
}

/// One rule, as a person would write it.
pub fn one_rule(to: SocketAddr, endpoint: IpAddr) -> String {
    let family = Family::of(&to.ip());
    format!(
        "table {0} hand\ndelete table {0} hand\ntable {0} hand {{\n{1}{2}}}\n",
        table(family),
        nat("in", "prerouting", &the_rule(to, endpoint)),
        nat("out", "output", &the_rule(to, endpoint)),
    )
}

/// The same rule behind the base chains of kube-proxy's nftables mode, which are empty otherwise.
pub fn one_rule_in_upstreams_hooks(to: SocketAddr, endpoint: IpAddr) -> String {
    let family = Family::of(&to.ip());
    let rule = the_rule(to, endpoint);
    format!(
        "table {0} hand\ndelete table {0} hand\ntable {0} hand {{\nchain nothing {{ }}\n{1}}}\n",
        table(family),
        base_chains("jump nothing", &rule, "jump nothing"),
    )
}

fn the_rule(to: SocketAddr, endpoint: IpAddr) -> String {
    let family = Family::of(&to.ip());
    format!(
        "{} daddr {} meta l4proto {{ tcp, udp }} th dport {} dnat to {}",
        table(family),
        to.ip(),
        to.port(),
        SocketAddr::new(endpoint, ENDPOINT_PORT),
    )
}

fn nat(name: &str, hook: &str, rules: &str) -> String {
    let priority = if hook == "postrouting" { 100 } else { -100 };
    format!("chain {name} {{ type nat hook {hook} priority {priority}; {rules}; }}\n")
}

/// Upstream's base chains: names, hooks, priorities.
fn base_chains(checks: &str, services: &str, masquerading: &str) -> String {
    let new = |chains: &[&str]| -> String {
        match checks {
            "jump nothing" => "ct state new jump nothing".to_owned(),
            _ => chains.iter().map(|chain| format!("ct state new jump {chain};")).collect(),
        }
    };
    let filter = |name: &str, hook: &str, priority: &str, chains: &[&str]| {
        let rules = new(chains);
        format!("chain {name} {{ type filter hook {hook} priority {priority}; {rules}; }}\n")
    };
    let unserved = ["service-endpoints-check", "cluster-ips-check"];
    [
        filter("filter-prerouting-pre-dnat", "prerouting", "-110", &["firewall-check"]),
        filter("filter-output-pre-dnat", "output", "-110", &["firewall-check"]),
        filter("filter-input", "input", "0", &["nodeport-endpoints-check", unserved[0]]),
        filter("filter-forward", "forward", "0", &unserved),
        filter("filter-output", "output", "0", &unserved),
        nat("nat-postrouting", "postrouting", masquerading),
        nat("nat-output", "output", services),
        nat("nat-prerouting", "prerouting", services),
    ]
    .concat()
}

fn table(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

fn address_type(family: Family) -> &'static str {
    match family {
        Family::V4 => "ipv4_addr",
        Family::V6 => "ipv6_addr",
    }
}

/// What kube-proxy's nftables mode writes for a cluster: a chain for each Service port, with a random
/// number into an anonymous map of its endpoints, behind verdict maps.
pub fn upstream(cluster: Cluster, family: Family) -> String {
    let mut script = Script { family, text: skeleton(family), elements: BTreeMap::new() };
    for spec in cluster.specs() {
        script.element("cluster-ips", spec.cluster_ip(family).ip().to_string());
        for &protocol in spec.protocols() {
            script.service(&spec, protocol);
        }
    }
    script.finish()
}

fn skeleton(family: Family) -> String {
    let (table, pods, node) = (table(family), pod_cidr(family), node_ip(family));
    let address = address_type(family);
    let frontend = format!("{address} . inet_proto . inet_service");
    let base = base_chains("", "jump services", "jump masquerading");
    format!(
        "table {table} kube-proxy {{\n\
         set cluster-ips {{ type {address}; }}\n\
         set nodeport-ips {{ type {address}; elements = {{ {node} }}; }}\n\
         set hairpin-connections {{ type {address} . {frontend}; }}\n\
         map service-ips {{ type {frontend} : verdict; }}\n\
         map service-nodeports {{ type inet_proto . inet_service : verdict; }}\n\
         map firewall-ips {{ type {frontend} : verdict; }}\n\
         map no-endpoint-services {{ type {frontend} : verdict; }}\n\
         map no-endpoint-nodeports {{ type inet_proto . inet_service : verdict; }}\n\
         chain reject-chain {{ reject; }}\n\
         chain mark-for-masquerade {{ meta mark set meta mark | 0x4000; }}\n\
         chain firewall-check {{ {table} daddr . meta l4proto . th dport vmap @firewall-ips; }}\n\
         chain service-endpoints-check {{ {table} daddr . meta l4proto . th dport vmap @no-endpoint-services; }}\n\
         chain nodeport-endpoints-check {{ {table} daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports; }}\n\
         chain cluster-ips-check {{ {table} daddr @cluster-ips reject; }}\n\
         chain services {{\n\
           {table} daddr @cluster-ips {table} saddr != {pods} jump mark-for-masquerade\n\
           {table} daddr . meta l4proto . th dport vmap @service-ips\n\
           {table} daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports\n\
         }}\n\
         chain masquerading {{\n\
           meta mark & 0x4000 != 0 meta mark set meta mark & 0xffffbfff masquerade fully-random\n\
           ct status & dnat == dnat {table} saddr . {table} daddr . meta l4proto . th dport @hairpin-connections masquerade fully-random\n\
         }}\n{base}}}\n"
    )
}

/// Commands in the making.
struct Script {
    family: Family,
    text: String,
    elements: BTreeMap<&'static str, Vec<String>>,
}

impl Script {
    fn add(&mut self, what: &str, rest: &str) {
        let table = table(self.family);
        writeln!(self.text, "add {what} {table} kube-proxy {rest}").expect("a String grows");
    }

    fn chain(&mut self, name: &str, rules: &[String]) {
        self.add("chain", name);
        for rule in rules {
            self.add("rule", &format!("{name} {rule}"));
        }
    }

    fn element(&mut self, set: &'static str, element: String) {
        self.elements.entry(set).or_default().push(element);
    }

    fn finish(mut self) -> String {
        for (set, elements) in std::mem::take(&mut self.elements) {
            for some in elements.chunks(1_000) {
                self.add("element", &format!("{set} {{ {} }}", some.join(", ")));
            }
        }
        self.text
    }

    /// One Service port: its chains, and its elements of shared sets.
    fn service(&mut self, spec: &Spec, protocol: Protocol) {
        let (family, name) = (self.family, spec.name());
        let base = format!("{}.{}.{protocol}", name.namespace, name.name);
        let all: Vec<IpAddr> = spec.pods(family).collect();
        let here = all[0];
        self.element(
            "hairpin-connections",
            format!("{here} . {here} . {protocol} . {ENDPOINT_PORT}"),
        );
        let cluster_ip = spec.cluster_ip(family).ip();
        self.element(
            "service-ips",
            format!("{cluster_ip} . {protocol} . {PORT} : goto service-{base}"),
        );
        if spec.sticky {
            self.sticky(&base, &all, protocol);
        } else {
            self.chain(&format!("service-{base}"), &[self.draw(&all, protocol)]);
        }
        if spec.external {
            self.external(spec, protocol, &base, here);
        }
    }

    fn draw(&self, endpoints: &[IpAddr], protocol: Protocol) -> String {
        let entry = |(at, address): (usize, &IpAddr)| format!("{at} : {address} . {ENDPOINT_PORT}");
        let entries: Vec<String> = endpoints.iter().enumerate().map(entry).collect();
        format!(
            "meta l4proto {protocol} dnat {} to numgen random mod {} map {{ {} }}",
            table(self.family),
            endpoints.len(),
            entries.join(", ")
        )
    }

    fn external(&mut self, spec: &Spec, protocol: Protocol, base: &str, here: IpAddr) {
        let (family, chain) = (self.family, format!("external-{base}"));
        let mut rules = vec!["jump mark-for-masquerade".to_owned(), format!("goto service-{base}")];
        if spec.local {
            self.chain(&format!("local-{base}"), &[self.draw(&[here], protocol)]);
            let pods = pod_cidr(family);
            rules = vec![
                format!("{} saddr {pods} goto service-{base}", table(family)),
                "fib saddr type local jump mark-for-masquerade".to_owned(),
                format!("fib saddr type local goto service-{base}"),
                format!("goto local-{base}"),
            ];
        }
        self.chain(&chain, &rules);
        let vip = format!("{} . {protocol} . {PORT}", spec.load_balancer(family).ip());
        self.element("service-ips", format!("{vip} : goto {chain}"));
        let port = spec.node_port(family).port();
        self.element("service-nodeports", format!("{protocol} . {port} : goto {chain}"));
        if spec.ranges {
            let firewall = format!("firewall-{base}");
            let drop = format!("{} saddr != {{ {} }} drop", table(family), outside_cidr(family));
            self.chain(&firewall, &[drop]);
            self.element("firewall-ips", format!("{vip} : goto {firewall}"));
        }
    }

    /// With affinity each endpoint has a set of its clients and a chain.
    fn sticky(&mut self, base: &str, endpoints: &[IpAddr], protocol: Protocol) {
        let (table, address) = (table(self.family), address_type(self.family));
        let (mut rules, mut draws) = (Vec::new(), Vec::new());
        for (at, endpoint) in endpoints.iter().enumerate() {
            let (own, set) = (format!("endpoint-{base}-{at}"), format!("affinity-{base}-{at}"));
            let flags = format!("flags dynamic,timeout; timeout {AFFINITY}s");
            self.add("set", &format!("{set} {{ type {address}; {flags}; }}"));
            let to = SocketAddr::new(*endpoint, ENDPOINT_PORT);
            let dnat = format!("meta l4proto {protocol} dnat {table} to {to}");
            self.chain(&own, &[format!("update @{set} {{ {table} saddr }}"), dnat]);
            rules.push(format!("{table} saddr @{set} goto {own}"));
            draws.push(format!("{at} : goto {own}"));
        }
        let count = endpoints.len();
        rules.push(format!("numgen random mod {count} vmap {{ {} }}", draws.join(", ")));
        self.chain(&format!("service-{base}"), &rules);
    }
}
