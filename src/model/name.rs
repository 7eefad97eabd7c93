//! Names of objects and of service ports.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use super::Protocol;

/// Namespace and name of an object. Ordered by namespace, then name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ObjectName {
    /// Empty for cluster-scoped objects.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
}

impl ObjectName {
    /// A namespaced name.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        ObjectName { namespace: namespace.into(), name: name.into() }
    }

    /// What a person writes: `namespace/name`, of the characters that names consist of; a name alone is
    /// of `namespace`, if there is one.
    pub fn parse(text: &str, namespace: Option<&str>) -> Option<Self> {
        let (namespace, name) = text.split_once('/').or(namespace.map(|own| (own, text)))?;
        let is_name = |part: &str| {
            let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
            !part.is_empty() && part.chars().all(fits)
        };
        (is_name(namespace) && is_name(name)).then(|| ObjectName::new(namespace, name))
    }

    /// The name of a cluster-scoped object.
    pub fn cluster_scoped(name: impl Into<Arc<str>>) -> Self {
        ObjectName { namespace: "".into(), name: name.into() }
    }
}

impl PartialOrd for ObjectName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ObjectName {
    /// Sources share equal namespaces, so most comparisons need not look at theirs.
    fn cmp(&self, other: &Self) -> Ordering {
        let namespaces = if Arc::ptr_eq(&self.namespace, &other.namespace) {
            Ordering::Equal
        } else {
            self.namespace.cmp(&other.namespace)
        };
        namespaces.then_with(|| self.name.cmp(&other.name))
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// One port of one service: the unit that rules are built for.
///
/// Prints as upstream prints it: `namespace/name:port`, without the colon for an unnamed port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePortName {
    pub service: ObjectName,
    /// `ports[].name`; empty for an unnamed port.
    pub port: Arc<str>,
    /// `ports[].protocol`. Two ports may share a name only across protocols in hand-written slices.
    pub protocol: Protocol,
}

impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.port.is_empty() {
            write!(f, "{}", self.service)
        } else {
            write!(f, "{}:{}", self.service, self.port)
        }
    }
}
