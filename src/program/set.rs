//! Names and declarations of the sets and maps.

use std::collections::HashMap;
use std::fmt;
use std::sync::LazyLock;

use super::objects::MAX_CLIENTS;
use crate::model::Family;
use crate::ruleset::{Field, Name, Set, SetKind};

/// Which kind of key a frontend has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Plane {
    /// `address . protocol . port`: ClusterIPs, external IPs, load-balancer IPs.
    Services,
    /// `protocol . port` on the NodePort addresses.
    NodePorts,
}

impl Plane {
    /// Both planes.
    pub const BOTH: [Plane; 2] = [Plane::Services, Plane::NodePorts];

    fn frontend(self, family: Family) -> Vec<Field> {
        match self {
            Plane::Services => {
                vec![Field::address(family), Field::InetProto, Field::InetService]
            }
            Plane::NodePorts => vec![Field::InetProto, Field::InetService],
        }
    }

    fn plural(self) -> &'static str {
        match self {
            Plane::Services => "services",
            Plane::NodePorts => "nodeports",
        }
    }
}

/// Which of a frontend's two lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// The list everyone gets, unless the external policy is Local.
    Cluster,
    /// `externalTrafficPolicy: Local`: the endpoints on this node.
    Local,
}

impl Scope {
    /// Both scopes.
    pub const BOTH: [Scope; 2] = [Scope::Cluster, Scope::Local];
}

/// A capacity class of lists: 1, 4, 16, 64, … slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Class(u8);

impl Class {
    /// A list of one.
    pub const ONE: Class = Class(0);
    /// The smallest class with slots; a list that grew out of [`Class::ONE`] never returns there.
    pub const FOUR: Class = Class(1);

    /// Slots of the class.
    pub fn slots(self) -> u32 {
        1 << (2 * self.0)
    }

    /// The smallest class that holds a list.
    pub fn holding(members: usize) -> Class {
        (0..=15)
            .map(Class)
            .find(|class| class.slots() as usize >= members)
            .expect("a list has fewer than 4^15 members")
    }

    /// Every class with slots, in both planes and scopes.
    pub fn all_with_slots() -> impl Iterator<Item = (Plane, Scope, Class)> {
        let classes = (1..=15).map(Class);
        classes.flat_map(|class| {
            Plane::BOTH
                .into_iter()
                .flat_map(move |plane| Scope::BOTH.map(|scope| (plane, scope, class)))
        })
    }

    /// From the number of slots.
    pub fn with_slots(slots: u32) -> Option<Class> {
        (0..=15).map(Class).find(|class| class.slots() == slots)
    }
}

/// A set or map of the program. Sets of single services (affinity, source ranges) are not among
/// them: see [`super::objects`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetId {
    /// Every address that is a frontend: the first lookup of every packet.
    FrontendIps,
    /// ClusterIPs of handled services.
    ClusterIps,
    /// Addresses that accept NodePort traffic; with [`super::NodePortMatch::AnyLocal`] the node's
    /// addresses, to tell NodePort flows apart after DNAT.
    NodePortIps(LocalAddresses),
    /// With [`super::NodePortMatch::AnyLocal`]: addresses that are local by a route and no interface
    /// has. Packets put them there, by the same lookup that lets their NodePorts be served.
    RoutedIps,
    /// The cluster's service networks.
    ServiceCidrs,
    /// Endpoints that may be reached from themselves.
    Hairpin,
    /// Frontends whose external policy is Local.
    LocalPolicy(Plane),
    /// Frontends that refuse.
    Refused(Plane),
    /// Frontends that drop what is not short-circuited.
    Dropped(Plane),
    /// Frontends whose flows are always masqueraded.
    Masquerade(Plane),
    /// Frontends whose flows are masqueraded when the host itself dials.
    MasqueradeHost(Plane),
    /// Frontends with session affinity: jump to the chain that looks for the client.
    Sticky(Plane),
    /// Frontends with session affinity: jump to the chain that remembers the client.
    Remember(Plane),
    /// Load-balancer frontends with source ranges: go to the chain that checks them.
    Restricted,
    /// Frontends whose list is of a class with slots.
    Members(Plane, Scope, Class),
    /// Lists: frontend (and slot, from class 4 on) to endpoint.
    Endpoints(Plane, Scope, Class),
    /// Connections by frontend.
    Connections(Plane),
    /// Protocols that are refused to NodePorts on loopback addresses, counted.
    RefusedOnLocalhost,
}

/// What [`SetId::NodePortIps`] holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LocalAddresses {
    /// The chosen addresses: `nodeport-ips`, upstream's name and type (B-185).
    Chosen,
    /// All addresses of the node: `node-ips`.
    All,
}

impl SetId {
    /// Every set that is not of a class with slots.
    pub fn fixed() -> impl Iterator<Item = SetId> {
        let of_addresses = [
            SetId::FrontendIps,
            SetId::ClusterIps,
            SetId::NodePortIps(LocalAddresses::Chosen),
            SetId::NodePortIps(LocalAddresses::All),
            SetId::RoutedIps,
            SetId::ServiceCidrs,
            SetId::Hairpin,
            SetId::Restricted,
            SetId::RefusedOnLocalhost,
        ];
        let of_frontends = Plane::BOTH.into_iter().flat_map(|plane| {
            [
                SetId::LocalPolicy(plane),
                SetId::Refused(plane),
                SetId::Dropped(plane),
                SetId::Masquerade(plane),
                SetId::MasqueradeHost(plane),
                SetId::Sticky(plane),
                SetId::Remember(plane),
                SetId::Connections(plane),
                SetId::Endpoints(plane, Scope::Cluster, Class::ONE),
                SetId::Endpoints(plane, Scope::Local, Class::ONE),
            ]
        });
        of_addresses.into_iter().chain(of_frontends)
    }

    /// Whether several services may put the same element there, so that it is counted.
    pub fn is_shared(self) -> bool {
        matches!(self, SetId::FrontendIps | SetId::ClusterIps | SetId::Hairpin)
    }

    /// Whether its elements are none of ours: packets add them, for a time.
    pub fn is_filled_by_packets(self) -> bool {
        self == SetId::RoutedIps
    }

    /// The plane whose frontends are its keys; `None` for sets of addresses.
    pub fn plane(self) -> Option<Plane> {
        match self {
            SetId::FrontendIps
            | SetId::ClusterIps
            | SetId::NodePortIps(_)
            | SetId::RoutedIps
            | SetId::ServiceCidrs
            | SetId::RefusedOnLocalhost
            | SetId::Hairpin => None,
            SetId::Restricted => Some(Plane::Services),
            SetId::LocalPolicy(plane)
            | SetId::Refused(plane)
            | SetId::Dropped(plane)
            | SetId::Masquerade(plane)
            | SetId::MasqueradeHost(plane)
            | SetId::Sticky(plane)
            | SetId::Remember(plane)
            | SetId::Members(plane, ..)
            | SetId::Endpoints(plane, ..)
            | SetId::Connections(plane) => Some(plane),
        }
    }

    /// The set with this name.
    pub fn from_name(name: &str) -> Option<SetId> {
        static BY_NAME: LazyLock<HashMap<String, SetId>> = LazyLock::new(|| {
            let classes = Class::all_with_slots().flat_map(|(plane, scope, class)| {
                [SetId::Members(plane, scope, class), SetId::Endpoints(plane, scope, class)]
            });
            SetId::fixed().chain(classes).map(|id| (id.to_string(), id)).collect()
        });
        BY_NAME.get(name).copied()
    }

    /// The set's name.
    pub fn name(self) -> Name {
        Name::new(self.to_string())
    }

    /// The set's declaration in a family's table.
    pub fn declaration(self, family: Family) -> Set {
        let address = Field::address(family);
        let backend = vec![address, Field::InetService];
        let (key, kind) = match self {
            SetId::FrontendIps
            | SetId::ClusterIps
            | SetId::NodePortIps(_)
            | SetId::RoutedIps
            | SetId::ServiceCidrs => (vec![address], SetKind::Set),
            SetId::RefusedOnLocalhost => (vec![Field::InetProto], SetKind::Set),
            SetId::Hairpin => {
                (vec![address, address, Field::InetProto, Field::InetService], SetKind::Set)
            }
            SetId::LocalPolicy(plane)
            | SetId::Refused(plane)
            | SetId::Dropped(plane)
            | SetId::Masquerade(plane)
            | SetId::MasqueradeHost(plane)
            | SetId::Connections(plane)
            | SetId::Members(plane, ..) => (plane.frontend(family), SetKind::Set),
            SetId::Sticky(plane) | SetId::Remember(plane) => {
                (plane.frontend(family), SetKind::VerdictMap)
            }
            SetId::Restricted => (Plane::Services.frontend(family), SetKind::VerdictMap),
            SetId::Endpoints(plane, _, Class::ONE) => {
                (plane.frontend(family), SetKind::Map(backend))
            }
            SetId::Endpoints(plane, ..) => {
                let mut key = plane.frontend(family);
                key.push(Field::Mark);
                (key, SetKind::Map(backend))
            }
        };
        Set {
            kind,
            interval: self == SetId::ServiceCidrs,
            counter: matches!(self, SetId::Connections(_) | SetId::RefusedOnLocalhost),
            dynamic: self.is_filled_by_packets(),
            timeout: self.is_filled_by_packets().then_some(0),
            size: self.is_filled_by_packets().then_some(MAX_CLIENTS),
            comment: self.comment().map(str::to_owned),
            ..Set::plain(self.name(), key)
        }
    }

    fn comment(self) -> Option<&'static str> {
        match self {
            SetId::FrontendIps => Some("ClusterIPs, external IPs and load-balancer IPs"),
            SetId::ClusterIps => Some("Active ClusterIPs"),
            SetId::NodePortIps(LocalAddresses::Chosen) => Some("IPs that accept NodePort traffic"),
            SetId::NodePortIps(LocalAddresses::All) => Some("IPs of this node"),
            SetId::RoutedIps => Some("IPs that are local by a route, as packets found them"),
            SetId::ServiceCidrs => Some("ServiceCIDRs"),
            SetId::Hairpin => Some("endpoints that may be reached from themselves"),
            SetId::LocalPolicy(_) => Some("externalTrafficPolicy: Local"),
            SetId::Refused(_) => Some("no endpoints anywhere"),
            SetId::Dropped(_) => Some("policy Local and no endpoints here"),
            SetId::Masquerade(_) => Some("masqueraded always"),
            SetId::MasqueradeHost(_) => Some("masqueraded when dialled by this host"),
            SetId::Sticky(_) => Some("sessionAffinity: find the client"),
            SetId::Remember(_) => Some("sessionAffinity: remember the client"),
            SetId::Restricted => Some("loadBalancerSourceRanges"),
            SetId::Connections(_) => Some("new connections by frontend"),
            SetId::RefusedOnLocalhost => {
                Some("protocols refused to NodePorts on loopback addresses")
            }
            SetId::Members(..) | SetId::Endpoints(..) => None,
        }
    }
}

impl fmt::Display for SetId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SetId::FrontendIps => f.write_str("frontend-ips"),
            SetId::ClusterIps => f.write_str("cluster-ips"),
            SetId::NodePortIps(LocalAddresses::Chosen) => f.write_str("nodeport-ips"),
            SetId::NodePortIps(LocalAddresses::All) => f.write_str("node-ips"),
            SetId::RoutedIps => f.write_str("routed-ips"),
            SetId::ServiceCidrs => f.write_str("service-cidrs"),
            SetId::Hairpin => f.write_str("hairpin"),
            SetId::LocalPolicy(plane) => write!(f, "local-policy-{}", plane.plural()),
            SetId::Refused(plane) => write!(f, "refused-{}", plane.plural()),
            SetId::Dropped(plane) => write!(f, "dropped-{}", plane.plural()),
            SetId::Masquerade(plane) => write!(f, "masquerade-{}", plane.plural()),
            SetId::MasqueradeHost(plane) => write!(f, "masquerade-host-{}", plane.plural()),
            SetId::Sticky(plane) => write!(f, "sticky-{}", plane.plural()),
            SetId::Remember(plane) => write!(f, "remember-{}", plane.plural()),
            SetId::Restricted => f.write_str("restricted-services"),
            SetId::RefusedOnLocalhost => f.write_str("refused-on-localhost"),
            SetId::Connections(plane) => write!(f, "connections-{}", plane.plural()),
            SetId::Members(plane, scope, class) => {
                write!(f, "{}{}-{}", local(*scope), plane.plural(), class.slots())
            }
            SetId::Endpoints(plane, scope, class) => {
                let nodeport = match plane {
                    Plane::Services => "",
                    Plane::NodePorts => "nodeport-",
                };
                write!(f, "{}{nodeport}endpoints-{}", local(*scope), class.slots())
            }
        }
    }
}

fn local(scope: Scope) -> &'static str {
    match scope {
        Scope::Cluster => "",
        Scope::Local => "local-",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_hold_lists() {
        for (members, slots) in [(0, 1), (1, 1), (2, 4), (4, 4), (5, 16), (17, 64), (1000, 1024)] {
            assert_eq!(Class::holding(members).slots(), slots, "{members} members");
        }
        assert_eq!(Class::with_slots(16), Some(Class::holding(16)));
        assert_eq!(Class::with_slots(8), None);
    }

    // Upstream's full sync re-creates its own sets; one of ours with its name but another type
    // would make that fail for ever.
    #[test]
    fn names_shared_with_upstream_have_upstreams_type() {
        let upstream = [
            "hairpin-connections",
            "service-ips",
            "service-nodeports",
            "firewall-ips",
            "no-endpoint-services",
            "no-endpoint-nodeports",
        ];
        let classes = Class::all_with_slots().flat_map(|(plane, scope, class)| {
            [SetId::Members(plane, scope, class), SetId::Endpoints(plane, scope, class)]
        });
        let all: Vec<SetId> = SetId::fixed().chain(classes).collect();
        let mut names: Vec<String> = all.iter().map(|id| id.to_string()).collect();
        for name in &names {
            assert!(!upstream.contains(&name.as_str()), "{name}");
            assert!(!name.starts_with("affinity-") && !name.contains('/'), "{name}");
        }
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all.len(), "names are unique");
    }
}
