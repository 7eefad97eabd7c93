//! A table by frontend: what each address and port of a service has, whatever set it is in.
//!
//! Place in the flow: between [`super::content`] and the answers. Slots and classes of lists are
//! left out, they depend on history; what is left is equal for equal objects.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::LazyLock;

use super::content::Content;
use crate::program::{Class, Plane, Scope, SetId};

/// What a client dials, as keys of the table say it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FrontendName {
    /// The address; `None` for node ports.
    pub address: Option<String>,
    /// `tcp`, `udp`, `sctp`.
    pub protocol: String,
    /// The port.
    pub port: String,
}

/// What a frontend has.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frontend {
    /// `namespace/service:port`; `None` if no element of it says so.
    pub label: Option<String>,
    /// Endpoints by list: `10.244.0.5:8080`.
    pub endpoints: BTreeMap<Scope, BTreeSet<String>>,
    /// Everything else, in words.
    pub properties: BTreeSet<String>,
}

/// Property of a frontend whose connections are counted.
pub const COUNTED: &str = "a counter of connections";

/// All frontends of a table.
pub type Frontends = BTreeMap<FrontendName, Frontend>;

impl fmt::Display for FrontendName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Some(address) => write!(f, "{}/{}", joined(address, &self.port), self.protocol),
            None => write!(f, "nodePort {}/{}", self.port, self.protocol),
        }
    }
}

fn joined(address: &str, port: &str) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// The set of the program with this name.
pub fn set_id(name: &str) -> Option<SetId> {
    static BY_NAME: LazyLock<HashMap<String, SetId>> = LazyLock::new(|| {
        let classes = Class::all_with_slots().flat_map(|(plane, scope, class)| {
            [SetId::Members(plane, scope, class), SetId::Endpoints(plane, scope, class)]
        });
        SetId::fixed().chain(classes).map(|id| (id.to_string(), id)).collect()
    });
    BY_NAME.get(name).copied()
}

/// Reads a table by frontend.
pub fn frontends(content: &Content) -> Frontends {
    let mut frontends = Frontends::new();
    for (name, set) in &content.sets {
        let Some(id) = set_id(name) else { continue };
        let Some(plane) = id.plane() else { continue };
        for item in &set.elements {
            let Some(key) = frontend_name(&item.key, plane) else { continue };
            let frontend = frontends.entry(key).or_default();
            if let Some(comment) = &item.comment {
                frontend.label = Some(comment.clone());
            }
            match (id, &item.value) {
                (SetId::Endpoints(_, scope, _), Some(value)) => {
                    frontend.endpoints.entry(scope).or_default().insert(endpoint(value));
                }
                (SetId::Restricted, Some(value)) => {
                    let ranges = value.trim_start_matches("goto ").trim_start_matches("jump ");
                    frontend.properties.extend(range_words(content, ranges));
                }
                (SetId::Sticky(_), Some(value)) => {
                    let timeout = affinity_timeout(content, value);
                    frontend.properties.insert(format!("session affinity of {timeout}"));
                }
                _ => frontend.properties.extend(property(id).map(str::to_owned)),
            }
        }
    }
    frontends
}

fn frontend_name(key: &str, plane: Plane) -> Option<FrontendName> {
    let mut fields = key.split(" . ");
    let address = match plane {
        Plane::Services => Some(fields.next()?.to_owned()),
        Plane::NodePorts => None,
    };
    Some(FrontendName {
        address,
        protocol: fields.next()?.to_owned(),
        port: fields.next()?.to_owned(),
    })
}

/// `10.244.0.5 . 8080` as `10.244.0.5:8080`.
pub fn endpoint(value: &str) -> String {
    match value.split_once(" . ") {
        Some((address, port)) => joined(address, port),
        None => value.to_owned(),
    }
}

fn range_words(content: &Content, set: &str) -> Vec<String> {
    let Some(ranges) = content.sets.get(set) else { return Vec::new() };
    ranges.elements.iter().map(|range| format!("source range {}", range.key)).collect()
}

/// The timeout stands in the rule that remembers; chains of policy Local lead to it.
fn affinity_timeout(content: &Content, verdict: &str) -> String {
    let chain = verdict.trim_start_matches("jump ").replacen("sticky", "remember", 1);
    let mut todo = vec![chain];
    while let Some(chain) = todo.pop() {
        for rule in content.chains.get(&chain).into_iter().flatten() {
            if let Some((_, after)) = rule.split_once(" timeout ") {
                return after.split(' ').next().unwrap_or_default().to_owned();
            }
            let targets = rule.split_once("goto ").or_else(|| rule.split_once("jump "));
            todo.extend(targets.map(|(_, target)| target.trim().to_owned()));
        }
    }
    "unknown length".to_owned()
}

/// In words that go after "has" and "lacks".
fn property(id: SetId) -> Option<&'static str> {
    match id {
        SetId::Refused(_) => Some("refusal, as without endpoints anywhere"),
        SetId::Dropped(_) => Some("drop, as with policy Local and no endpoint here"),
        SetId::LocalPolicy(_) => Some("externalTrafficPolicy: Local"),
        SetId::Masquerade(_) => Some("masquerade"),
        SetId::Connections(_) => Some(COUNTED),
        // Each follows from one that is told.
        _ => None,
    }
}
