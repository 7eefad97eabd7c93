//! The sentences of an explanation: from what a walk looked up to why.

use std::mem::discriminant;
use std::net::{IpAddr, SocketAddr};

use super::{Affinity, Count, Explainer, Question, Verdict};
use crate::inspect::view::{Property, endpoint};
use crate::program::objects::is_clients_map;
use crate::program::set::LocalAddresses;
use crate::program::{FrontendAt, FrontendKey, FrontendSpace, ListScope, RuleId, SetId};
use crate::ruleset::{Effect, Expr, Flow, Key, LookedUp, Name, Rule, Step, Value, render_key};

/// What sentences are made of.
pub(super) struct Reasons<'a> {
    pub(super) question: &'a Question,
    pub(super) flow: &'a Flow,
    /// Of the likeliest way.
    pub(super) steps: &'a [Step],
    pub(super) table: &'a Explainer,
}

impl<'a> Reasons<'a> {
    fn hits(steps: &'a [Step]) -> impl DoubleEndedIterator<Item = SetId> {
        let lookups = steps.iter().flat_map(|step| &step.lookups);
        let found = lookups.filter(|lookup| lookup.found.is_some());
        found.filter_map(|lookup| SetId::from_name(lookup.set.as_str()))
    }

    fn last_hit(&self) -> Option<SetId> {
        Self::hits(self.steps).next_back()
    }

    fn dialled(&self) -> FrontendKey {
        let Question { to, protocol, .. } = *self.question;
        FrontendKey { at: FrontendAt::Address(to.ip()), protocol, port: to.port() }
    }

    fn dialled_node_port(&self) -> FrontendKey {
        FrontendKey { at: FrontendAt::NodePort, ..self.dialled() }
    }

    pub(super) fn service(&self) -> Option<String> {
        if let Some(frontend) = self.table.frontends.get(&self.dialled()) {
            return frontend.label.as_deref().map(str::to_owned);
        }
        let through_node_port =
            Self::hits(self.steps).any(|set| set.space() == Some(FrontendSpace::NodePorts));
        let node_port = self.table.frontends.get(&self.dialled_node_port());
        let label = node_port.filter(|_| through_node_port)?.label.as_deref();
        label.map(str::to_owned)
    }

    fn service_or_unknown(&self) -> String {
        self.service().unwrap_or_else(|| "a service that the table does not name".to_owned())
    }

    pub(super) fn sentences(&self) -> Vec<String> {
        match super::verdict(self.flow) {
            Verdict::Refused => vec![self.refused()],
            Verdict::Dropped => vec![self.dropped()],
            Verdict::Untouched => vec![self.untouched()],
            Verdict::Served => self.served(),
        }
    }

    /// How many packets were refused or dropped like this one so far, by the table's counter of everyone's;
    /// `None` for none.
    pub(super) fn count(&self) -> Option<Count> {
        if !matches!(super::verdict(self.flow), Verdict::Refused | Verdict::Dropped) {
            return None;
        }
        let matched = self.steps.iter().rev().filter(|step| step.effect != Effect::NoMatch);
        let counter = matched.filter_map(|step| self.rule(step)).find_map(|rule| {
            rule.exprs.iter().find_map(|expr| match expr {
                Expr::Count(counter) => Some(counter),
                _ => None,
            })
        })?;
        let packets = self.table.ruleset.counters.get(counter)?.packets;
        (packets > 0).then(|| Count {
            counter: counter.to_string(),
            packets,
            last_minute: None,
            to_service: self.count_to_service(),
        })
    }

    /// The same by service port, where service ports are counted.
    fn count_to_service(&self) -> Option<u64> {
        let set = Self::hits(self.steps).rev().find(|set| set.counts_drops())?;
        let frontend = match set.space()? {
            FrontendSpace::Services => self.dialled(),
            FrontendSpace::NodePorts => self.dialled_node_port(),
        };
        let (_, elements) = self.table.ruleset.sets.get(&set.name())?;
        let service = elements.get(&frontend.element_key())?.comment.as_deref()?;
        let is_alike = |name: &Name| {
            SetId::from_name(name.as_str())
                .is_some_and(|id| discriminant(&id) == discriminant(&set))
        };
        let alike = self.table.ruleset.sets.iter().filter(|(name, _)| is_alike(name));
        let elements = alike.flat_map(|(_, (_, elements))| elements.values());
        let of_service = elements.filter(|element| element.comment.as_deref() == Some(service));
        let packets: u64 = of_service.filter_map(|element| element.packets).sum();
        (packets > 0).then_some(packets)
    }

    fn refused(&self) -> String {
        let to = self.question.to;
        match self.last_hit() {
            Some(SetId::Refused(_)) => format!(
                "{} has no usable endpoints anywhere: check its EndpointSlices and the readiness of its pods",
                self.service_or_unknown()
            ),
            Some(SetId::ClusterIps) => format!(
                "{} is the ClusterIP of {}, which does not have port {}/{}",
                to.ip(),
                self.ports_of(to.ip()),
                to.port(),
                self.question.protocol
            ),
            _ => format!("the rule \"{}\" refuses it", self.last_rule()),
        }
    }

    fn dropped(&self) -> String {
        match self.last_hit() {
            Some(SetId::Dropped(_)) => format!(
                "{} has a traffic policy of Local and no endpoint on this node: only nodes with an endpoint serve it",
                self.service_or_unknown()
            ),
            Some(SetId::ServiceCidrs) => format!(
                "{} is in the cluster's service network, but no Service has it",
                self.question.to.ip()
            ),
            Some(SetId::Restricted | SetId::OutsideRanges) => format!(
                "{} is in none of the loadBalancerSourceRanges of {}: {}",
                self.question.from.ip(),
                self.service_or_unknown(),
                self.ranges()
            ),
            _ => format!("the rule \"{}\" drops it", self.last_rule()),
        }
    }

    fn last_rule(&self) -> String {
        self.steps.last().map(|step| step.rule.to_string()).unwrap_or_default()
    }

    fn ranges(&self) -> String {
        let properties = self.table.frontends.get(&self.dialled()).map(|f| &f.properties);
        let ranges = properties.into_iter().flatten().filter_map(|property| match property {
            Property::SourceRange(range) => Some(range.as_str()),
            _ => None,
        });
        ranges.collect::<Vec<_>>().join(", ")
    }

    /// `default/web (80/tcp, 443/tcp)`.
    fn ports_of(&self, address: IpAddr) -> String {
        let of_address = || self.table.frontends.iter().filter(move |(key, _)| is_at(key, address));
        let ports: Vec<String> =
            of_address().map(|(key, _)| format!("{}/{}", key.port, key.protocol)).collect();
        let label = of_address().find_map(|(_, frontend)| frontend.label.as_deref());
        let service = label.and_then(|label| label.split(':').next()).unwrap_or("a Service");
        format!("{service} ({})", ports.join(", "))
    }

    fn untouched(&self) -> String {
        let to = self.question.to;
        let ruleset = &self.table.ruleset;
        if ruleset.table.is_none() {
            return "there is no table kube-proxy of this family: no proxy has programmed this node"
                .to_owned();
        }
        if ruleset.chains.values().all(|(chain, _)| chain.hooked.is_none()) {
            return "the table has no base chains yet: no traffic reaches it before the first sync ends"
                .to_owned();
        }
        let address = to.ip();
        if self.table.frontends.keys().any(|key| is_at(key, address)) {
            return format!(
                "{address} is an address of {}, but port {}/{} is not: it goes on as any other packet",
                self.ports_of(address),
                to.port(),
                self.question.protocol
            );
        }
        if let Some(frontend) = self.table.frontends.get(&self.dialled_node_port()) {
            let label = frontend.label.as_deref().unwrap_or("a Service");
            return format!(
                "{}/{} is a NodePort of {label}, but {address} is not an address that accepts NodePorts{}",
                to.port(),
                self.question.protocol,
                self.node_port_addresses()
            );
        }
        format!("no Service has {to}/{}: it goes on as any other packet", self.question.protocol)
    }

    fn node_port_addresses(&self) -> String {
        let set = SetId::NodePortIps(LocalAddresses::Chosen).name();
        let Some((set, elements)) = self.table.ruleset.sets.get(&set) else {
            return String::new();
        };
        let keys: Vec<String> = elements.values().map(|e| render_key(set, e)).collect();
        match keys[..] {
            [] => ": none does, the node's address is not known (see --bind-address)".to_owned(),
            _ => format!("; these are: {}", keys.join(", ")),
        }
    }

    fn served(&self) -> Vec<String> {
        let mut sentences = Vec::new();
        let endpoints = super::shares(self.flow).len();
        let plural = if endpoints == 1 { "endpoint" } else { "endpoints" };
        let policy = if self.restricted_to_local() {
            ", those on this node only (policy Local)"
        } else {
            ""
        };
        sentences.push(format!("{}: {endpoints} {plural}{policy}", self.service_or_unknown()));
        if let Some(reason) = self.short_circuit() {
            sentences.push(reason.to_owned());
        }
        sentences.extend(self.affinity_sentence());
        sentences.extend(self.source_sentences());
        sentences
    }

    fn restricted_to_local(&self) -> bool {
        Self::hits(self.steps).any(|set| matches!(set, SetId::Endpoints(_, ListScope::Local, _)))
    }

    fn short_circuit(&self) -> Option<&'static str> {
        let matched = self.steps.iter().filter(|step| step.effect != Effect::NoMatch);
        matched.filter_map(|step| self.rule_id(step)).find_map(|rule| match rule {
            RuleId::PodShortCircuit => {
                Some("externalTrafficPolicy: Local does not bind pods of the cluster")
            }
            RuleId::HostShortCircuit => {
                Some("externalTrafficPolicy: Local does not bind the node itself")
            }
            RuleId::MasqueradeAll => None,
        })
    }

    fn rule_id(&self, step: &Step) -> Option<RuleId> {
        RuleId::of(&step.chain, self.rule(step)?)
    }

    fn rule(&self, step: &Step) -> Option<&Rule> {
        self.table.ruleset.chains.get(&step.chain)?.1.get(step.index)
    }

    fn source_sentences(&self) -> Vec<String> {
        let mut sentences: Vec<String> = Vec::new();
        for branch in &self.flow.branches {
            let step = branch.steps.iter().find(|step| step.effect == Effect::Masquerade);
            let sentence = step.map_or_else(
                || "the client's address is kept".to_owned(),
                |step| {
                    format!(
                        "the client's address is replaced by the node's: {}",
                        self.why_masqueraded(step)
                    )
                },
            );
            if !sentences.contains(&sentence) {
                sentences.push(sentence);
            }
        }
        if sentences.len() > 1 {
            // The exceptional one names its case; the other holds for the rest.
            sentences.iter_mut().filter(|s| s.ends_with("is kept")).for_each(|s| {
                s.insert_str(0, "otherwise ");
            });
            sentences.sort_by_key(|s| s.starts_with("otherwise"));
        }
        sentences
    }

    /// Session affinity's entry, if the frontend has affinity.
    pub(super) fn affinity(&self) -> Option<Affinity> {
        let mut lookups = self.steps.iter().flat_map(|step| &step.lookups);
        let lookup = lookups.find(|lookup| is_clients_map(&lookup.set))?;
        let entry = self.remembered(lookup);
        Some(Affinity {
            endpoint: entry.map(|(endpoint, _)| endpoint),
            expires_ms: entry.and_then(|(_, expires)| expires),
        })
    }

    /// Where the client went before, and how long that is known.
    fn remembered(&self, lookup: &LookedUp) -> Option<(SocketAddr, Option<u64>)> {
        lookup.found.as_ref()?;
        let (_, elements) = self.table.ruleset.sets.get(&lookup.set)?;
        let entry = elements.get(&Key::new().address(self.question.from.ip()))?;
        let Value::Data(data) = &entry.value else { return None };
        let endpoint = endpoint(data, self.table.ruleset.family)?;
        Some((endpoint, entry.lifetime.map(|life| life.expires)))
    }

    fn affinity_sentence(&self) -> Option<String> {
        let affinity = self.affinity()?;
        Some(match (affinity.endpoint, affinity.expires_ms) {
            (Some(endpoint), Some(millis)) => format!(
                "session affinity: this client goes to {endpoint} again, for {} s more",
                millis / 1000
            ),
            (Some(endpoint), None) => {
                format!("session affinity: this client goes to {endpoint} again")
            }
            (None, _) => {
                "session affinity: this client is not remembered yet, the choice will be".to_owned()
            }
        })
    }

    /// Why a rule masquerades.
    fn why_masqueraded(&self, step: &Step) -> String {
        let hit = step.lookups.iter().rev().find(|lookup| lookup.found.is_some());
        let why = match hit.and_then(|lookup| SetId::from_name(lookup.set.as_str())) {
            Some(SetId::Hairpin) => "the endpoint dials itself",
            Some(SetId::Masquerade(_)) => "an external address or NodePort with policy Cluster",
            Some(SetId::MasqueradeHost(_)) => "the node itself dials an external address",
            Some(SetId::ClusterIps) if self.rule_id(step) == Some(RuleId::MasqueradeAll) => {
                "masqueradeAll is set"
            }
            Some(SetId::ClusterIps) => "a ClusterIP dialled from outside the pod networks",
            _ => &step.rule,
        };
        why.to_owned()
    }
}

fn is_at(key: &FrontendKey, address: IpAddr) -> bool {
    key.at == FrontendAt::Address(address)
}
