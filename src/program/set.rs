//! Names and declarations of the sets and maps.

use std::collections::HashMap;
use std::fmt;
use std::sync::LazyLock;

use super::objects::MAX_CLIENTS;
use crate::model::Family;
use crate::ruleset::{Field, Name, Set, SetKind};

/// Which kind of key a frontend has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrontendSpace {
    /// `address . protocol . port`: ClusterIPs, external IPs, load-balancer IPs.
    Services,
    /// `protocol . port` on the NodePort addresses.
    NodePorts,
}

impl FrontendSpace {
    pub const BOTH: [FrontendSpace; 2] = [FrontendSpace::Services, FrontendSpace::NodePorts];

    fn frontend(self, family: Family) -> Vec<Field> {
        match self {
            FrontendSpace::Services => {
                vec![Field::address(family), Field::InetProto, Field::InetService]
            }
            FrontendSpace::NodePorts => vec![Field::InetProto, Field::InetService],
        }
    }

    fn plural(self) -> &'static str {
        match self {
            FrontendSpace::Services => "services",
            FrontendSpace::NodePorts => "nodeports",
        }
    }
}

/// Which of a frontend's two lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ListScope {
    /// The list everyone gets, unless the external policy is Local.
    Cluster,
    /// `externalTrafficPolicy: Local`: the endpoints on this node.
    Local,
}

impl ListScope {
    pub const BOTH: [ListScope; 2] = [ListScope::Cluster, ListScope::Local];
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

    /// Every class with slots, in both spaces and scopes.
    pub fn all_with_slots() -> impl Iterator<Item = (FrontendSpace, ListScope, Class)> {
        let classes = (1..=15).map(Class);
        classes.flat_map(|class| {
            FrontendSpace::BOTH
                .into_iter()
                .flat_map(move |space| ListScope::BOTH.map(|scope| (space, scope, class)))
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
    /// Connections that were ended lately, as their clients sent them.
    EndedConnections,
    /// The cluster's service networks.
    ServiceCidrs,
    /// Endpoints that may be reached from themselves.
    Hairpin,
    /// Frontends whose external policy is Local.
    LocalPolicy(FrontendSpace),
    Refused(FrontendSpace),
    /// Frontends that drop what is not short-circuited.
    Dropped(FrontendSpace),
    /// Frontends whose flows are always masqueraded.
    Masquerade(FrontendSpace),
    /// Frontends whose flows are masqueraded when the host itself dials.
    MasqueradeHost(FrontendSpace),
    /// Frontends with session affinity: jump to the chain that looks for the client.
    Sticky(FrontendSpace),
    /// Frontends with session affinity: jump to the chain that remembers the client.
    Remember(FrontendSpace),
    /// Load-balancer frontends with source ranges: go to the chain that checks them.
    Restricted,
    /// The same, to count by frontend what is outside of them.
    OutsideRanges,
    /// Frontends whose list is of a class with slots.
    Members(FrontendSpace, ListScope, Class),
    /// Lists: frontend (and slot, from class 4 on) to endpoint.
    Endpoints(FrontendSpace, ListScope, Class),
    Connections(FrontendSpace),
    /// Protocols that are refused to NodePorts on loopback addresses, counted.
    RefusedOnLocalhost,
}

/// How long late packets of a connection that was ended are refused: a client that asks whether its
/// peer is still there does so after two hours, and gives up eleven minutes later (`tcp_keepalive_time`).
const ENDED_MILLIS: u64 = 3 * 60 * 60 * 1000;

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
            SetId::EndedConnections,
            SetId::ServiceCidrs,
            SetId::Hairpin,
            SetId::Restricted,
            SetId::OutsideRanges,
            SetId::RefusedOnLocalhost,
        ];
        let of_frontends = FrontendSpace::BOTH.into_iter().flat_map(|space| {
            [
                SetId::LocalPolicy(space),
                SetId::Refused(space),
                SetId::Dropped(space),
                SetId::Masquerade(space),
                SetId::MasqueradeHost(space),
                SetId::Sticky(space),
                SetId::Remember(space),
                SetId::Connections(space),
                SetId::Endpoints(space, ListScope::Cluster, Class::ONE),
                SetId::Endpoints(space, ListScope::Local, Class::ONE),
            ]
        });
        of_addresses.into_iter().chain(of_frontends)
    }

    /// Whether several services may put the same element there, so that it is counted.
    pub fn is_shared(self) -> bool {
        matches!(self, SetId::FrontendIps | SetId::ClusterIps | SetId::Hairpin)
    }

    /// Whether its elements count what they do not let through, where service ports are counted.
    pub fn counts_drops(self) -> bool {
        matches!(self, SetId::Refused(_) | SetId::Dropped(_) | SetId::OutsideRanges)
    }

    /// Whether its elements are no service's: each comes when something happens, and goes by itself.
    pub fn is_passing(self) -> bool {
        matches!(self, SetId::RoutedIps | SetId::EndedConnections)
    }

    /// The space whose frontends are its keys; `None` for sets of addresses.
    pub fn space(self) -> Option<FrontendSpace> {
        match self {
            SetId::FrontendIps
            | SetId::ClusterIps
            | SetId::NodePortIps(_)
            | SetId::RoutedIps
            | SetId::EndedConnections
            | SetId::ServiceCidrs
            | SetId::RefusedOnLocalhost
            | SetId::Hairpin => None,
            SetId::Restricted | SetId::OutsideRanges => Some(FrontendSpace::Services),
            SetId::LocalPolicy(space)
            | SetId::Refused(space)
            | SetId::Dropped(space)
            | SetId::Masquerade(space)
            | SetId::MasqueradeHost(space)
            | SetId::Sticky(space)
            | SetId::Remember(space)
            | SetId::Members(space, ..)
            | SetId::Endpoints(space, ..)
            | SetId::Connections(space) => Some(space),
        }
    }

    pub fn from_name(name: &str) -> Option<SetId> {
        static BY_NAME: LazyLock<HashMap<String, SetId>> = LazyLock::new(|| {
            let classes = Class::all_with_slots().flat_map(|(space, scope, class)| {
                [SetId::Members(space, scope, class), SetId::Endpoints(space, scope, class)]
            });
            SetId::fixed().chain(classes).map(|id| (id.to_string(), id)).collect()
        });
        BY_NAME.get(name).copied()
    }

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
            SetId::EndedConnections => {
                (vec![address, Field::InetService, address, Field::InetService], SetKind::Set)
            }
            SetId::Hairpin => {
                (vec![address, address, Field::InetProto, Field::InetService], SetKind::Set)
            }
            SetId::LocalPolicy(space)
            | SetId::Refused(space)
            | SetId::Dropped(space)
            | SetId::Masquerade(space)
            | SetId::MasqueradeHost(space)
            | SetId::Connections(space)
            | SetId::Members(space, ..) => (space.frontend(family), SetKind::Set),
            SetId::Sticky(space) | SetId::Remember(space) => {
                (space.frontend(family), SetKind::VerdictMap)
            }
            SetId::Restricted => (FrontendSpace::Services.frontend(family), SetKind::VerdictMap),
            SetId::OutsideRanges => (FrontendSpace::Services.frontend(family), SetKind::Set),
            SetId::Endpoints(space, _, Class::ONE) => {
                (space.frontend(family), SetKind::Map(backend))
            }
            SetId::Endpoints(space, ..) => {
                let mut key = space.frontend(family);
                key.push(Field::Mark);
                (key, SetKind::Map(backend))
            }
        };
        Set {
            kind,
            interval: self == SetId::ServiceCidrs,
            counter: matches!(
                self,
                SetId::Connections(_) | SetId::OutsideRanges | SetId::RefusedOnLocalhost
            ),
            dynamic: self == SetId::RoutedIps,
            timeout: match self {
                SetId::RoutedIps => Some(0),
                SetId::EndedConnections => Some(ENDED_MILLIS),
                _ => None,
            },
            size: self.is_passing().then_some(MAX_CLIENTS),
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
            SetId::EndedConnections => Some("connections whose late packets are refused"),
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
            SetId::OutsideRanges => {
                Some("dropped outside of loadBalancerSourceRanges, by frontend")
            }
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
            SetId::EndedConnections => f.write_str("ended-connections"),
            SetId::ServiceCidrs => f.write_str("service-cidrs"),
            SetId::Hairpin => f.write_str("hairpin"),
            SetId::LocalPolicy(space) => write!(f, "local-policy-{}", space.plural()),
            SetId::Refused(space) => write!(f, "refused-{}", space.plural()),
            SetId::Dropped(space) => write!(f, "dropped-{}", space.plural()),
            SetId::Masquerade(space) => write!(f, "masquerade-{}", space.plural()),
            SetId::MasqueradeHost(space) => write!(f, "masquerade-host-{}", space.plural()),
            SetId::Sticky(space) => write!(f, "sticky-{}", space.plural()),
            SetId::Remember(space) => write!(f, "remember-{}", space.plural()),
            SetId::Restricted => f.write_str("restricted-services"),
            SetId::OutsideRanges => f.write_str("outside-ranges-services"),
            SetId::RefusedOnLocalhost => f.write_str("refused-on-localhost"),
            SetId::Connections(space) => write!(f, "connections-{}", space.plural()),
            SetId::Members(space, scope, class) => {
                write!(f, "{}{}-{}", local(*scope), space.plural(), class.slots())
            }
            SetId::Endpoints(space, scope, class) => {
                let nodeport = match space {
                    FrontendSpace::Services => "",
                    FrontendSpace::NodePorts => "nodeport-",
                };
                write!(f, "{}{nodeport}endpoints-{}", local(*scope), class.slots())
            }
        }
    }
}

fn local(scope: ListScope) -> &'static str {
    match scope {
        ListScope::Cluster => "",
        ListScope::Local => "local-",
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
        let classes = Class::all_with_slots().flat_map(|(space, scope, class)| {
            [SetId::Members(space, scope, class), SetId::Endpoints(space, scope, class)]
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
