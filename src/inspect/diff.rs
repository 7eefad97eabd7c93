//! How two tables differ, service by service.
//!
//! Place in the flow: `kubeweir diff` prints it. Pure. What packets put into a table (clients of
//! session affinity, counters) and what depends on history (slots, classes) is no difference.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

use super::content::Content;
use super::service_view::{COUNTED, Frontend, FrontendName, Frontends, frontends, set_id};
use crate::program::{Extension, Scope, SetId};

/// On which side something is that the other lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// What is there: the kernel, or the first file.
    Found,
    /// What should be: the objects, or the second file.
    Wanted,
}

/// Something that one side only has.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Difference {
    /// `10.96.0.1:80/tcp`, `nodePort 30080/tcp`; empty for what belongs to no frontend.
    pub frontend: String,
    /// What it is about: `endpoint 10.244.0.5:8080`; empty for the frontend as a whole.
    pub subject: String,
    /// Who has it.
    pub only: Side,
}

/// How one family's tables differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FamilyDiff {
    /// nft's name of the family.
    pub family: String,
    /// By `namespace/service:port`; sorted.
    pub services: BTreeMap<String, BTreeSet<Difference>>,
    /// What belongs to no service: node addresses, service networks, the program itself.
    pub shared: BTreeSet<Difference>,
}

/// What the sides are called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// Of [`Side::Found`].
    pub found: String,
    /// Of [`Side::Wanted`].
    pub wanted: String,
}

impl FamilyDiff {
    /// Whether there is no difference.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.shared.is_empty()
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
}

/// Compares the tables of one family; a missing one counts as empty.
pub fn compare(family: &str, found: Option<&Content>, wanted: Option<&Content>) -> FamilyDiff {
    let empty = Content::default();
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
    let (mut found_frontends, mut wanted_frontends) = (frontends(found), frontends(wanted));
    if counts(found) != counts(wanted) {
        // That is one difference of set-up, told with the sets, and none of the services'.
        forget_counters(&mut found_frontends);
        forget_counters(&mut wanted_frontends);
    }
    diff.frontends(&found_frontends, &wanted_frontends);
    let gone = endpoints_only_in(&found_frontends, &wanted_frontends);
    let missing = endpoints_only_in(&wanted_frontends, &found_frontends);
    diff.addresses(found, wanted, &(&gone | &missing));
    diff
}

/// Whether connections are counted.
fn counts(content: &Content) -> bool {
    content.sets.keys().any(|name| matches!(set_id(name), Some(SetId::Connections(_))))
}

fn forget_counters(frontends: &mut Frontends) {
    for frontend in frontends.values_mut() {
        frontend.properties.remove(COUNTED);
    }
}

/// Endpoints of frontends that the other side has not at all.
fn endpoints_only_in(these: &Frontends, others: &Frontends) -> BTreeSet<String> {
    let only = these.iter().filter(|(name, _)| !others.contains_key(*name));
    only.flat_map(|(_, frontend)| frontend.endpoints.values().flatten().cloned()).collect()
}

impl FamilyDiff {
    fn shares(&mut self, only: Side, subject: &str) {
        let (frontend, subject) = (String::new(), subject.to_owned());
        self.shared.insert(Difference { frontend, subject, only });
    }

    fn frontends(&mut self, found: &Frontends, wanted: &Frontends) {
        let names: BTreeSet<&FrontendName> = found.keys().chain(wanted.keys()).collect();
        for name in names {
            let differences = match (found.get(name), wanted.get(name)) {
                (Some(_), None) => vec![(String::new(), Side::Found)],
                (None, Some(_)) => vec![(String::new(), Side::Wanted)],
                (Some(found), Some(wanted)) => of_frontend(found, wanted),
                (None, None) => continue,
            };
            let label = [wanted.get(name), found.get(name)]
                .into_iter()
                .flatten()
                .find_map(|frontend| frontend.label.clone())
                .unwrap_or_else(|| "unknown service".to_owned());
            for (subject, only) in differences {
                let difference = Difference { frontend: name.to_string(), subject, only };
                self.services.entry(label.clone()).or_default().insert(difference);
            }
        }
    }

    /// Sets of addresses that no frontend keys: the node's, the service networks, ClusterIPs; without
    /// what follows from a service's differences.
    fn addresses(&mut self, found: &Content, wanted: &Content, endpoints: &BTreeSet<String>) {
        for (name, words) in [
            ("nodeport-ips", "NodePort address"),
            ("node-ips", "node address"),
            ("service-cidrs", "service network"),
            ("cluster-ips", "active ClusterIP"),
            ("frontend-ips", "service address"),
            ("hairpin", "hairpin endpoint"),
        ] {
            for (key, only) in one_sided(keys(found, name), keys(wanted, name)) {
                if !self.explains(&key, endpoints) {
                    self.shares(only, &format!("{words} {key}"));
                }
            }
        }
    }

    /// Whether a difference of a service has this address or endpoint in it already.
    fn explains(&self, key: &str, endpoints: &BTreeSet<String>) -> bool {
        let mut fields = key.split(" . ");
        let address = fields.next().unwrap_or_default();
        let starts = |text: &str| {
            text.trim_start_matches('[').strip_prefix(address).is_some_and(|rest| {
                rest.starts_with(']') || rest.starts_with(':') || rest.is_empty()
            })
        };
        endpoints.iter().any(|endpoint| starts(endpoint))
            || self.services.values().flatten().any(|difference| {
                starts(&difference.frontend) || difference.subject.split(' ').any(starts)
            })
    }

    /// The chains and sets themselves. Those of classes come and go with lists.
    fn programs(&mut self, found: &Content, wanted: &Content) {
        for (chain, only) in one_sided(fixed_chains(found), fixed_chains(wanted)) {
            self.shares(only, &format!("chain {chain}"));
        }
        let differing = fixed_chains(found)
            .intersection(&fixed_chains(wanted))
            .map(|chain| (chain.clone(), differing_rules(found, wanted, chain)))
            .find(|(_, rules)| !rules.is_empty());
        if let Some((chain, rules)) = differing {
            for (rule, only) in rules {
                self.shares(only, &format!("rule of chain {chain}: {rule}"));
            }
        }
        for (set, only) in one_sided(fixed_sets(found), fixed_sets(wanted)) {
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
    for scope in Scope::BOTH {
        let list = |frontend: &Frontend| {
            let endpoints = frontend.endpoints.get(&scope).cloned().unwrap_or_default();
            let words = match scope {
                Scope::Cluster => "endpoint",
                Scope::Local => "endpoint for traffic under policy Local",
            };
            endpoints.into_iter().map(|endpoint| format!("{words} {endpoint}")).collect()
        };
        differences.extend(one_sided(list(found), list(wanted)));
    }
    differences.extend(one_sided(found.properties.clone(), wanted.properties.clone()));
    differences
}

fn one_sided(found: BTreeSet<String>, wanted: BTreeSet<String>) -> Vec<(String, Side)> {
    let only_found = found.difference(&wanted).map(|subject| (subject.clone(), Side::Found));
    let only_wanted = wanted.difference(&found).map(|subject| (subject.clone(), Side::Wanted));
    only_found.chain(only_wanted).collect()
}

fn keys(content: &Content, set: &str) -> BTreeSet<String> {
    let set = content.sets.get(set);
    set.into_iter().flat_map(|set| &set.elements).map(|item| item.key.clone()).collect()
}

/// Chains that are neither of a class nor of a single service: names without digits at the end and
/// without dots.
fn fixed_chains(content: &Content) -> BTreeSet<String> {
    let of_class =
        |name: &str| name.starts_with("pick") && name.ends_with(|c: char| c.is_ascii_digit());
    content.chains.keys().filter(|name| !name.contains('.') && !of_class(name)).cloned().collect()
}

fn fixed_sets(content: &Content) -> BTreeSet<String> {
    let of_class =
        |name: &str| matches!(set_id(name), Some(SetId::Members(..) | SetId::Endpoints(..)));
    content.sets.keys().filter(|name| !name.contains('.') && !of_class(name)).cloned().collect()
}

/// Rules, without those that lead to classes.
fn rules(content: &Content, chain: &str) -> BTreeSet<String> {
    let rules = content.chains.get(chain).into_iter().flatten();
    let of_class = |rule: &str| matches!(extension(rule), Some(Extension::Class(..)));
    rules.filter(|rule| !of_class(rule)).cloned().collect()
}

/// The extension whose sets a rule looks up.
fn extension(rule: &str) -> Option<Extension> {
    let sets = rule.split(' ').filter_map(|word| set_id(word.strip_prefix('@')?));
    sets.filter_map(Extension::of).next()
}

/// Rules of a chain on one side only. Those of extensions are no difference where they are there for
/// nothing: they stay when the last service that needed them is gone.
fn differing_rules(found: &Content, wanted: &Content, chain: &str) -> Vec<(String, Side)> {
    let mut rules = one_sided(rules(found, chain), rules(wanted, chain));
    rules.retain(|(rule, only)| *only == Side::Wanted || extension(rule).is_none());
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
    /// What differs.
    pub diffs: &'a [FamilyDiff],
    /// What the sides are called.
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
