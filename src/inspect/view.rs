//! A table by frontend: what each address and port of a service has, whatever set it is in.
//!
//! Place in the flow: between a table and the answers. Slots and classes of lists are left out, they
//! depend on history; what is left is equal for equal objects.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::model::Family;
use crate::program::{Extension, FrontendKey, ListScope, SetId};
use crate::ruleset::{
    Element, Expr, Key, Name, Rule, Ruleset, Set, Value, Verdict, duration, render_key, render_rule,
};

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frontend {
    /// `namespace/service:port`; `None` if no element of it says so.
    pub label: Option<Arc<str>>,
    pub endpoints: BTreeMap<ListScope, BTreeSet<SocketAddr>>,
    pub properties: BTreeSet<Property>,
}

/// What a frontend has besides endpoints; in words that go after "has" and "lacks".
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Property {
    Refused,
    Dropped,
    /// `externalTrafficPolicy: Local`.
    LocalPolicy,
    Masqueraded,
    Counted,
    /// Session affinity: how long, if a rule says so.
    Affinity(Option<String>),
    /// One of the load balancer's source ranges.
    SourceRange(String),
}

pub type Frontends = BTreeMap<FrontendKey, Frontend>;

/// A member of a set of addresses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Member {
    pub text: String,
    pub address: Option<IpAddr>,
}

/// A rule in a comparison.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleView {
    pub text: String,
    pub extension: Option<Extension>,
}

/// A whole table, for comparisons.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    pub frontends: Frontends,
    /// Sets of addresses: the node's, the service networks, ClusterIPs.
    pub addresses: BTreeMap<SetId, BTreeSet<Member>>,
    /// Chains with their rules; without order, for it follows from history where it says nothing.
    pub chains: BTreeMap<String, BTreeSet<RuleView>>,
    pub sets: BTreeSet<String>,
}

impl View {
    /// Of a table; `None` without one.
    pub fn of(table: &Ruleset) -> Option<View> {
        table.table.as_ref()?;
        let member = |set: &Set, element: &Element| Member {
            text: render_key(set, element),
            address: element.key.address_at(0, table.family),
        };
        let rule = |rule: &Rule| RuleView {
            text: render_rule(rule, table),
            extension: rule.exprs.iter().find_map(extension),
        };
        let of_addresses = known_sets(table).filter(|(id, ..)| id.space().is_none());
        Some(View {
            frontends: frontends(table),
            addresses: of_addresses
                .map(|(id, set, elements)| {
                    (id, elements.values().map(|e| member(set, e)).collect())
                })
                .collect(),
            chains: table
                .chains
                .iter()
                .map(|(name, (_, rules))| (name.to_string(), rules.iter().map(rule).collect()))
                .collect(),
            sets: table.sets.keys().map(Name::to_string).collect(),
        })
    }
}

/// The extension whose set an instruction looks up.
fn extension(expr: &Expr) -> Option<Extension> {
    match expr {
        Expr::Lookup { set, .. } => Extension::of(SetId::from_name(set.as_str())?),
        _ => None,
    }
}

/// The sets of the program in a table; one of another type is somebody else's.
fn known_sets(table: &Ruleset) -> impl Iterator<Item = (SetId, &Set, &BTreeMap<Key, Element>)> {
    table.sets.iter().filter_map(|(name, (set, elements))| {
        let id = SetId::from_name(name.as_str())?;
        (set.key == id.declaration(table.family).key).then_some((id, set, elements))
    })
}

/// Reads a table by frontend.
pub fn frontends(table: &Ruleset) -> Frontends {
    let mut frontends = Frontends::new();
    for (id, _, elements) in known_sets(table) {
        let Some(space) = id.space() else { continue };
        for element in elements.values() {
            let key = FrontendKey::of_element(space, table.family, &element.key);
            let Some(key) = key else { continue };
            let frontend = frontends.entry(key).or_default();
            if let Some(comment) = &element.comment {
                frontend.label = Some(comment.clone());
            }
            match (id, &element.value) {
                (SetId::Endpoints(_, scope, _), Value::Data(data)) => {
                    let endpoint = endpoint(data, table.family);
                    frontend.endpoints.entry(scope).or_default().extend(endpoint);
                }
                (SetId::Restricted, Value::Verdict(Verdict::Goto(name) | Verdict::Jump(name))) => {
                    frontend.properties.extend(source_ranges(table, name));
                }
                (SetId::Remember(_), Value::Verdict(Verdict::Goto(name) | Verdict::Jump(name))) => {
                    let timeout = affinity_timeout(table, name).map(duration);
                    frontend.properties.insert(Property::Affinity(timeout));
                }
                _ => frontend.properties.extend(Property::of(id)),
            }
        }
    }
    frontends
}

/// The address and port that a map leads to.
pub fn endpoint(data: &Key, family: Family) -> Option<SocketAddr> {
    Some(SocketAddr::new(data.address_at(0, family)?, data.port_at(family.address_len())?))
}

fn source_ranges(table: &Ruleset, set: &Name) -> Vec<Property> {
    let Some((set, elements)) = table.sets.get(set) else { return Vec::new() };
    elements.values().map(|range| Property::SourceRange(render_key(set, range))).collect()
}

/// The timeout stands in the rule that remembers; chains of policy Local lead to it.
fn affinity_timeout(table: &Ruleset, chain: &Name) -> Option<u64> {
    let mut todo = vec![chain];
    while let Some(chain) = todo.pop() {
        let (_, rules) = table.chains.get(chain)?;
        for expr in rules.iter().flat_map(|rule| &rule.exprs) {
            match expr {
                Expr::Dynset { timeout: Some(millis), .. } => return Some(*millis),
                Expr::Verdict(Verdict::Jump(chain) | Verdict::Goto(chain)) => todo.push(chain),
                _ => {}
            }
        }
    }
    None
}

impl Property {
    /// What membership in a set says.
    pub fn of(set: SetId) -> Option<Property> {
        match set {
            SetId::Refused(_) => Some(Property::Refused),
            SetId::Dropped(_) => Some(Property::Dropped),
            SetId::LocalPolicy(_) => Some(Property::LocalPolicy),
            SetId::Masquerade(_) => Some(Property::Masqueraded),
            SetId::Connections(_) => Some(Property::Counted),
            // Each follows from one that is told.
            _ => None,
        }
    }
}

impl fmt::Display for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Property::Refused => f.write_str("refusal, as without endpoints anywhere"),
            Property::Dropped => f.write_str("drop, as with policy Local and no endpoint here"),
            Property::LocalPolicy => f.write_str("externalTrafficPolicy: Local"),
            Property::Masqueraded => f.write_str("masquerade"),
            Property::Counted => f.write_str("a counter of connections"),
            Property::Affinity(Some(timeout)) => write!(f, "session affinity of {timeout}"),
            Property::Affinity(None) => f.write_str("session affinity of unknown length"),
            Property::SourceRange(range) => write!(f, "source range {range}"),
        }
    }
}
