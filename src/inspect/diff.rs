//! How two tables differ, service by service.
//!
//! Place in the flow: `kubeweir diff` prints it. Pure. What packets put into a table (clients of
//! session affinity, counters) and what depends on history (slots, classes) is no difference.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::view::{Frontend, Frontends, Member, Property, RuleView, View};
use crate::program::set::LocalAddresses;
use crate::program::{Extension, FrontendAt, FrontendKey, ListScope, SetId};

/// On which side something is that the other lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// What is there: the kernel, or the first file.
    Found,
    /// What should be: the objects, or the second file.
    Wanted,
}

/// Something that one side only has.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Difference {
    /// `10.96.0.1:80/tcp`, `nodePort 30080/tcp`; empty for what belongs to no frontend.
    pub frontend: String,
    /// What it is about: `endpoint 10.244.0.5:8080`; empty for the frontend as a whole.
    pub subject: String,
    /// Who has it.
    pub only: Side,
}

/// How one family's tables differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FamilyDiff {
    pub family: String,
    /// By `namespace/service:port`; sorted.
    pub services: BTreeMap<String, BTreeSet<Difference>>,
    /// What belongs to no service: node addresses, service networks, the program itself.
    pub shared: BTreeSet<Difference>,
}

/// What the sides are called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// Of [`Side::Found`].
    pub found: String,
    /// Of [`Side::Wanted`].
    pub wanted: String,
}

impl FamilyDiff {
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.shared.is_empty()
    }

    /// This later look, without what only it tells: that is a change on its way. A service that differs
    /// each time in another way still differs.
    #[must_use]
    pub fn after(mut self, earlier: &FamilyDiff) -> FamilyDiff {
        self.services.retain(|label, _| earlier.services.contains_key(label));
        self.shared.retain(|difference| earlier.shared.contains(difference));
        self
    }

    /// Whether the rules themselves differ, which a node's set-up decides and no object.
    pub fn is_of_set_up(&self) -> bool {
        let of_rules = |difference: &Difference| {
            ["chain ", "rule of ", "set "].iter().any(|word| difference.subject.starts_with(word))
        };
        self.shared.iter().any(of_rules)
    }

    /// Only what belongs to a service, `namespace/name`.
    #[must_use]
    pub fn of_service(mut self, service: &str) -> FamilyDiff {
        let is_of = |label: &str| label == service || label.starts_with(&format!("{service}:"));
        self.services.retain(|label, _| is_of(label));
        self.shared.clear();
        self
    }

    /// Only what belongs to a namespace's services.
    #[must_use]
    pub fn of_namespace(mut self, namespace: &str) -> FamilyDiff {
        let is_of = |label: &str| label.split_once('/').is_some_and(|(of, _)| of == namespace);
        self.services.retain(|label, _| is_of(label));
        self.shared.clear();
        self
    }
}

/// Compares the tables of one family; a missing one counts as empty.
pub fn compare(family: &str, found: Option<&View>, wanted: Option<&View>) -> FamilyDiff {
    let empty = View::default();
    let mut diff = FamilyDiff {
        family: family.to_owned(),
        services: BTreeMap::new(),
        shared: BTreeSet::new(),
    };
    match (found, wanted) {
        (None, None) => return diff,
        (None, Some(_)) => diff.shares(Side::Wanted, "table kube-proxy"),
        (Some(_), None) => diff.shares(Side::Found, "table kube-proxy"),
        (Some(found), Some(wanted)) => diff.programs(found, wanted),
    }
    let (found, wanted) = (found.unwrap_or(&empty), wanted.unwrap_or(&empty));
    let told = if counts(found) == counts(wanted) {
        diff.frontends(&found.frontends, &wanted.frontends)
    } else {
        // That is one difference of set-up, told with the sets, and none of the services'.
        diff.frontends(&uncounted(&found.frontends), &uncounted(&wanted.frontends))
    };
    diff.addresses(found, wanted, &told);
    diff
}

/// Whether connections are counted.
fn counts(view: &View) -> bool {
    view.sets.iter().any(|name| matches!(SetId::from_name(name), Some(SetId::Connections(_))))
}

fn uncounted(frontends: &Frontends) -> Frontends {
    let mut frontends = frontends.clone();
    for frontend in frontends.values_mut() {
        frontend.properties.remove(&Property::Counted);
    }
    frontends
}

impl FamilyDiff {
    fn shares(&mut self, only: Side, subject: &str) {
        let (frontend, subject) = (String::new(), subject.to_owned());
        self.shared.insert(Difference { frontend, subject, only });
    }

    /// Differences of frontends; the addresses that they tell of.
    fn frontends(&mut self, found: &Frontends, wanted: &Frontends) -> BTreeSet<IpAddr> {
        let mut told = BTreeSet::new();
        let keys: BTreeSet<&FrontendKey> = found.keys().chain(wanted.keys()).collect();
        for key in keys {
            let (found, wanted) = (found.get(key), wanted.get(key));
            let differences = match (found, wanted) {
                (Some(_), None) => vec![(String::new(), Side::Found)],
                (None, Some(_)) => vec![(String::new(), Side::Wanted)],
                (Some(found), Some(wanted)) => of_frontend(found, wanted),
                (None, None) => continue,
            };
            if differences.is_empty() {
                continue;
            }
            if let FrontendAt::Address(address) = key.at {
                told.insert(address);
            }
            for scope in ListScope::BOTH {
                let [found, wanted] = [found, wanted].map(|frontend| {
                    frontend.and_then(|f| f.endpoints.get(&scope).cloned()).unwrap_or_default()
                });
                told.extend(found.symmetric_difference(&wanted).map(|endpoint| endpoint.ip()));
            }
            let label = [wanted, found].into_iter().flatten().find_map(|f| f.label.as_deref());
            let service = self.services.entry(label.unwrap_or("unknown service").to_owned());
            let differences = differences.into_iter().map(|(subject, only)| Difference {
                frontend: key.to_string(),
                subject,
                only,
            });
            service.or_default().extend(differences);
        }
        told
    }

    /// Sets of addresses that no frontend keys: the node's, the service networks, ClusterIPs; without
    /// what follows from a service's differences.
    fn addresses(&mut self, found: &View, wanted: &View, told: &BTreeSet<IpAddr>) {
        for (id, words) in [
            (SetId::NodePortIps(LocalAddresses::Chosen), "NodePort address"),
            (SetId::NodePortIps(LocalAddresses::All), "node address"),
            (SetId::ServiceCidrs, "service network"),
            (SetId::ClusterIps, "active ClusterIP"),
            (SetId::FrontendIps, "service address"),
            (SetId::Hairpin, "hairpin endpoint"),
        ] {
            let members = |view: &View| view.addresses.get(&id).cloned().unwrap_or_default();
            for (Member { text, address }, only) in one_sided(&members(found), &members(wanted)) {
                if !address.is_some_and(|address| told.contains(&address)) {
                    self.shares(only, &format!("{words} {text}"));
                }
            }
        }
    }

    /// The chains and sets themselves. Those of classes come and go with lists.
    fn programs(&mut self, found: &View, wanted: &View) {
        let (found_chains, wanted_chains) = (fixed_chains(found), fixed_chains(wanted));
        for (chain, only) in one_sided(&found_chains, &wanted_chains) {
            self.shares(only, &format!("chain {chain}"));
        }
        let differing = found_chains
            .intersection(&wanted_chains)
            .map(|chain| (chain, differing_rules(found, wanted, chain)))
            .find(|(_, rules)| !rules.is_empty());
        if let Some((chain, rules)) = differing {
            for (rule, only) in rules {
                self.shares(only, &format!("rule of chain {chain}: {}", rule.text));
            }
        }
        for (set, only) in one_sided(&fixed_sets(found), &fixed_sets(wanted)) {
            self.shares(only, &format!("set {set}"));
        }
    }
}

fn of_frontend(found: &Frontend, wanted: &Frontend) -> Vec<(String, Side)> {
    let mut differences: Vec<(String, Side)> = Vec::new();
    if let (Some(a), Some(b)) = (&found.label, &wanted.label)
        && a != b
    {
        differences.push((format!("owner {a}"), Side::Found));
        differences.push((format!("owner {b}"), Side::Wanted));
    }
    for scope in ListScope::BOTH {
        let list =
            |frontend: &Frontend| frontend.endpoints.get(&scope).cloned().unwrap_or_default();
        let words = match scope {
            ListScope::Cluster => "endpoint",
            ListScope::Local => "endpoint for traffic under policy Local",
        };
        let sides = one_sided(&list(found), &list(wanted));
        differences.extend(
            sides.into_iter().map(|(endpoint, only)| (format!("{words} {endpoint}"), only)),
        );
    }
    let sides = one_sided(&found.properties, &wanted.properties);
    differences.extend(sides.into_iter().map(|(property, only)| (property.to_string(), only)));
    differences
}

fn one_sided<T: Ord + Clone>(found: &BTreeSet<T>, wanted: &BTreeSet<T>) -> Vec<(T, Side)> {
    let only_found = found.difference(wanted).map(|subject| (subject.clone(), Side::Found));
    let only_wanted = wanted.difference(found).map(|subject| (subject.clone(), Side::Wanted));
    only_found.chain(only_wanted).collect()
}

/// Chains that are neither of a class nor of a single service: names without digits at the end and
/// without dots.
fn fixed_chains(view: &View) -> BTreeSet<&str> {
    let of_class =
        |name: &str| name.starts_with("pick") && name.ends_with(|c: char| c.is_ascii_digit());
    let names = view.chains.keys().map(String::as_str);
    names.filter(|name| !name.contains('.') && !of_class(name)).collect()
}

fn fixed_sets(view: &View) -> BTreeSet<&str> {
    let of_class = |name: &str| {
        matches!(SetId::from_name(name), Some(SetId::Members(..) | SetId::Endpoints(..)))
    };
    let names = view.sets.iter().map(String::as_str);
    names.filter(|name| !name.contains('.') && !of_class(name)).collect()
}

/// Rules of a chain on one side only. Those that lead to classes are no difference, and neither are
/// those of other extensions where they are there for nothing: they stay when the last service that
/// needed them is gone.
fn differing_rules(found: &View, wanted: &View, chain: &str) -> Vec<(RuleView, Side)> {
    let rules = |view: &View| view.chains.get(chain).cloned().unwrap_or_default();
    let mut rules = one_sided(&rules(found), &rules(wanted));
    rules.retain(|(rule, only)| match rule.extension {
        Some(Extension::Class(..)) => false,
        Some(_) => *only == Side::Wanted,
        None => true,
    });
    rules
}

impl Difference {
    fn words(&self, names: &Names) -> String {
        let what = match (self.frontend.as_str(), self.subject.as_str()) {
            (frontend, "") => frontend.to_owned(),
            ("", subject) => subject.to_owned(),
            (frontend, subject) => format!("{frontend}: {subject}"),
        };
        match self.only {
            Side::Found => format!("{what} is in {}, but not in {}", names.found, names.wanted),
            Side::Wanted => format!("{what} is missing in {}", names.found),
        }
    }
}

/// The differences in words, one a line under each service's name; empty without any.
#[derive(Debug)]
pub struct Words<'a> {
    pub diffs: &'a [FamilyDiff],
    pub names: &'a Names,
}

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for diff in self.diffs {
            let shared = (!diff.shared.is_empty()).then_some(("no single service", &diff.shared));
            let services = diff.services.iter().map(|(label, all)| (label.as_str(), all));
            for (label, differences) in services.chain(shared) {
                writeln!(f, "{label} ({})", diff.family)?;
                for difference in differences {
                    writeln!(f, "  {}", difference.words(self.names))?;
                }
            }
        }
        Ok(())
    }
}
