//! Metrics: what each turn moves.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::kernel::CommitError;
use crate::metrics::{Metrics, NoLocalEndpoints};
use crate::model::{Families, Family, Kind, ObjectName, PerFamily};
use crate::sync::{Arrival, FamilyState, Subscriber, SyncError, Synced, Turn};

/// Keeps the metrics.
pub struct Figures {
    metrics: Arc<Metrics>,
    started: Timestamp,
    /// Trigger times of slices whose services are not in force yet, nanoseconds since 1970; only for
    /// families that are programmed, as nothing else would take them out again.
    triggers: HashMap<(Family, ObjectName), Vec<i64>>,
    elements: PerFamily<usize>,
    /// How each family stood last.
    stands: PerFamily<Stands>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Stands {
    conflicts: usize,
    dirty: usize,
    quarantined: usize,
}

impl Figures {
    /// Nothing happened yet.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Figures {
            metrics,
            started: Timestamp::now(),
            triggers: HashMap::new(),
            elements: PerFamily::default(),
            stands: PerFamily::default(),
        }
    }

    fn count_arrival(&self, arrival: &Arrival, families: Families) {
        let proxy = &self.metrics.proxy;
        for _ in 0..arrival.objects {
            match arrival.kind {
                Kind::EndpointSlice => proxy.endpoint_change(!arrival.effect.is_empty()),
                // Once per family, as upstream's two proxiers each count it.
                Kind::Service => {
                    let pending = arrival.effect.service_objects.len();
                    families.iter().for_each(|_| proxy.service_change(pending));
                }
                Kind::Node | Kind::ServiceCidr => {}
            }
        }
    }

    fn note_triggers(&mut self, arrival: &Arrival, families: Families) {
        for service in &arrival.effect.slices_removed {
            for family in Family::BOTH {
                self.triggers.remove(&(family, service.clone()));
            }
        }
        let started = self.started.as_nanosecond();
        for (family, service, time) in &arrival.effect.triggers {
            if families.contains(*family) && i128::from(*time) > started {
                self.triggers.entry((*family, service.clone())).or_default().push(*time);
            }
        }
    }

    fn sync(&mut self, sync: &Synced) {
        let (report, metrics) = (&sync.report, self.metrics.clone());
        let (family, full) = (report.family, report.full);
        metrics.proxy.sync_duration(family, full, sync.elapsed);
        metrics.proxy.endpoint_changes_taken();
        metrics.proxy.service_changes_taken();
        for trouble in &report.troubles {
            metrics.agent.commit_failed(family, trouble);
        }
        for (_, rejection) in &report.refused {
            metrics.agent.commit_failed(family, &CommitError::Rejected(rejection.clone()));
        }
        // What ends a sync is not among its troubles.
        if let Err(SyncError::Commit(error)) = &report.result {
            metrics.agent.commit_failed(family, error);
        }
        self.count_elements(sync);
        self.observe_latency(sync);
        if report.garbage_stays {
            metrics.proxy.cleanup_failed(family);
        }
        if report.result.is_err() {
            metrics.proxy.sync_failed(family, full);
            return;
        }
        if sync.repair.is_some() {
            metrics.agent.repaired(family);
        }
        let totals = sync.state.summary.totals;
        metrics.proxy.no_local_endpoints(
            family,
            NoLocalEndpoints {
                internal: totals.internal_without_local,
                external: totals.external_without_local,
            },
        );
        metrics.proxy.no_iptables_rules(family);
        metrics.proxy.sync_success(family, Timestamp::now());
    }

    fn count_elements(&mut self, sync: &Synced) {
        let family = sync.report.family;
        let elements = &mut self.elements[family];
        for commit in &sync.report.commits {
            self.metrics.agent.committed(family, &commit.committed);
            *elements = (*elements + commit.counts.elements_added)
                .saturating_sub(commit.counts.elements_deleted);
        }
        *elements = sync.state.elements.unwrap_or(*elements);
        self.metrics.agent.elements(family, "all", *elements);
        self.stands[family] = Stands::of(&sync.state);
        let sum = |of: fn(&Stands) -> usize| of(&self.stands.v4) + of(&self.stands.v6);
        self.metrics.agent.frontend_conflicts(sum(|s| s.conflicts));
        self.metrics.agent.pending_services(sum(|s| s.dirty));
        self.metrics.agent.quarantined_services(sum(|s| s.quarantined));
    }

    /// From the change of an endpoint to rules in force, for the services that are in force now,
    /// whatever became of the rest of the sync.
    fn observe_latency(&mut self, sync: &Synced) {
        let now = Timestamp::now().as_nanosecond();
        let family = sync.report.family;
        for service in &sync.in_force {
            let times = self.triggers.remove(&(family, service.name.clone()));
            for time in times.into_iter().flatten() {
                let nanos = u64::try_from(now - i128::from(time)).unwrap_or(0);
                self.metrics.proxy.network_programming(family, Duration::from_nanos(nanos));
            }
        }
    }
}

impl Stands {
    fn of(state: &FamilyState) -> Self {
        Stands {
            conflicts: state.summary.conflicts,
            dirty: state.summary.dirty,
            quarantined: state.quarantine.len(),
        }
    }
}

impl Subscriber for Figures {
    fn turn(&mut self, turn: &Turn) {
        for arrival in &turn.arrivals {
            self.count_arrival(arrival, turn.families);
            self.note_triggers(arrival, turn.families);
        }
        for family in turn.requested.iter() {
            self.metrics.proxy.queued(family, Timestamp::now());
        }
        turn.syncs.iter().for_each(|sync| self.sync(sync));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Effect;
    use crate::metrics::{BuildInfo, Mode};

    fn figures() -> Figures {
        let build = BuildInfo::default();
        Figures::new(Arc::new(Metrics::new(Mode::Nftables, &build, Timestamp::now())))
    }

    // B15: slices of a family that is not programmed leave nothing behind.
    #[test]
    fn trigger_times_of_a_family_that_is_not_programmed_are_not_kept() {
        let mut figures = figures();
        let v4_only = Families { v4: true, v6: false };
        let service = ObjectName::new("default", "web");
        for i in 0..1000 {
            let time = i64::try_from(Timestamp::now().as_nanosecond()).expect("this century") + i;
            let triggers = vec![(Family::V6, service.clone(), time)];
            let effect = Effect { triggers, ..Effect::default() };
            let arrival = Arrival { kind: Kind::EndpointSlice, objects: 1, list: false, effect };
            figures.turn(&Turn { families: v4_only, arrivals: vec![arrival], ..Turn::default() });
        }
        assert!(figures.triggers.is_empty());
    }
}
