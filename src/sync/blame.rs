//! Whose fault a refusal is.
//!
//! One service must not stop the others. So a refused plan is taken apart until it is known which
//! services the kernel refuses, each alone, and those are set aside.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Report, SyncError, Synchronizer};
use crate::backoff::Backoff;
use crate::engine::{Plan, Selection};
use crate::kernel::{CommitError, Kernel, Op, Rejection, Transaction};
use crate::model::{Family, ObjectName};

impl<K: Kernel> Synchronizer<K> {
    /// Whether a refusal is no news: a service that was refused before is refused again, alone and in
    /// the same way. It is set aside, and nothing has to be read for that. Time is `now`.
    pub(super) fn is_known(
        &mut self,
        family: Family,
        plan: &Plan,
        rejection: &Rejection,
        now: Duration,
        report: &mut Report,
    ) -> Result<bool, SyncError> {
        if plan.replaces_table() {
            return Ok(false);
        }
        let culprit = self.engine.culprit(family, plan, rejection);
        let suspects: Vec<ObjectName> = match culprit {
            Some(culprit) => vec![culprit],
            None => plan.services.iter().cloned().collect(),
        };
        let mut is_known = false;
        for suspect in suspects {
            let Some(before) = self.quarantine[family].rejection(&suspect) else { continue };
            if self.engine.is_set_aside(family, &suspect) {
                continue;
            }
            let same = |now: &Rejection| (now.errno, &now.object) == (before.errno, &before.object);
            match self.attempt(family, &[&suspect], report)? {
                Some(rejection) if same(&rejection) => {
                    self.set_aside(family, suspect, rejection, now, report)?;
                    is_known = true;
                }
                Some(_) | None => {}
            }
        }
        Ok(is_known)
    }

    /// A plan was refused although it was made from what the kernel has: some service is to blame.
    /// It is set aside, so that it cannot stop the others.
    pub(super) fn isolate(
        &mut self,
        family: Family,
        plan: Plan,
        rejection: Rejection,
        now: Duration,
        report: &mut Report,
    ) -> Result<(), SyncError> {
        if let Some(culprit) = self.engine.culprit(family, &plan, &rejection) {
            if plan.replaces_table() {
                return self.set_aside(family, culprit, rejection, now, report);
            }
            return self.judge(family, culprit, now, report);
        }
        if plan.services.is_empty() {
            return Err(CommitError::Rejected(rejection).into());
        }
        let services: Vec<ObjectName> = plan.services.iter().cloned().collect();
        if plan.replaces_table() {
            return self.replace_without_suspects(family, &services, report);
        }
        // Without any service the same plan must pass, or else no service is to blame.
        let bare = self.plan(family, Selection::Only(&BTreeSet::new()))?;
        self.commit(family, bare, report).map_err(|(_, error)| error)?;
        self.bisect(family, &services, now, report)
    }

    /// A table cannot be replaced, and nothing says why. So it is replaced without a part of the
    /// services, as few as luck will have it, if one of them is to blame, and else without any: they
    /// are added afterwards, when they can be judged one by one.
    fn replace_without_suspects(
        &mut self,
        family: Family,
        services: &[ObjectName],
        report: &mut Report,
    ) -> Result<(), SyncError> {
        let mut suspects = services;
        while !suspects.is_empty() {
            let (left_out, others) = suspects.split_at(suspects.len().div_ceil(2));
            let left_out: BTreeSet<ObjectName> = left_out.iter().cloned().collect();
            let plan = self.plan(family, Selection::Except(&left_out))?;
            match self.commit(family, plan, report) {
                Ok(()) => return Ok(()),
                Err((_, CommitError::Rejected(_))) => suspects = others,
                Err((_, error)) => return Err(error.into()),
            }
        }
        let bare = self.plan(family, Selection::Only(&BTreeSet::new()))?;
        self.commit(family, bare, report).map_err(|(_, error)| error.into())
    }

    fn bisect(
        &mut self,
        family: Family,
        services: &[ObjectName],
        now: Duration,
        report: &mut Report,
    ) -> Result<(), SyncError> {
        let all: Vec<&ObjectName> = services.iter().collect();
        match (self.attempt(family, &all, report)?, services) {
            (None, _) => Ok(()),
            (Some(_), [culprit]) => self.judge(family, culprit.clone(), now, report),
            (Some(_), _) => {
                let (left, right) = services.split_at(services.len() / 2);
                self.bisect(family, left, now, report)?;
                self.bisect(family, right, now, report)
            }
        }
    }

    /// A refusal points at a service. It is set aside if it is refused once more, alone, while the
    /// kernel takes something else: a lack of memory, too, may strike at any element.
    fn judge(
        &mut self,
        family: Family,
        suspect: ObjectName,
        now: Duration,
        report: &mut Report,
    ) -> Result<(), SyncError> {
        let nothing_new = Op::AddTable(self.engine.table(family));
        self.kernel.commit(&Transaction { family, ops: vec![nothing_new] })?;
        let only = BTreeSet::from([suspect.clone()]);
        let plan = self.plan(family, Selection::Only(&only))?;
        match self.commit(family, plan, report) {
            Ok(()) => Ok(()),
            Err((plan, CommitError::Rejected(rejection))) => {
                let mut others = plan.services;
                others.remove(&suspect);
                self.condemn(family, suspect, rejection, &others, now, report)
            }
            Err((_, error)) => Err(error.into()),
        }
    }

    /// A service was refused alone, or with others only with which it exchanges frontends. Then it
    /// may be one of them: they are tried without it first.
    fn condemn(
        &mut self,
        family: Family,
        suspect: ObjectName,
        rejection: Rejection,
        others: &BTreeSet<ObjectName>,
        now: Duration,
        report: &mut Report,
    ) -> Result<(), SyncError> {
        let others: Vec<&ObjectName> =
            others.iter().filter(|other| !self.engine.is_set_aside(family, other)).collect();
        if others.is_empty() || !self.engine.set_aside(family, suspect.clone()) {
            return self.set_aside(family, suspect, rejection, now, report);
        }
        let mut guilty = false;
        for other in others {
            if let Some(rejection) = self.attempt(family, &[other], report)? {
                self.set_aside(family, other.clone(), rejection, now, report)?;
                guilty = true;
            }
        }
        self.engine.take_back(family, &suspect);
        let refused = match guilty {
            true => self.attempt(family, &[&suspect], report)?,
            false => Some(rejection),
        };
        match refused {
            Some(rejection) => self.set_aside(family, suspect, rejection, now, report),
            None => Ok(()),
        }
    }

    /// Commits a plan for these services, and says whether it was refused.
    fn attempt(
        &mut self,
        family: Family,
        services: &[&ObjectName],
        report: &mut Report,
    ) -> Result<Option<Rejection>, SyncError> {
        let only = services.iter().map(|service| (*service).clone()).collect();
        let plan = self.plan(family, Selection::Only(&only))?;
        match self.commit(family, plan, report) {
            Ok(()) => Ok(None),
            Err((_, CommitError::Rejected(rejection))) => Ok(Some(rejection)),
            Err((_, error)) => Err(error.into()),
        }
    }

    /// Sets a service aside, and remembers why.
    pub(super) fn set_aside(
        &mut self,
        family: Family,
        service: ObjectName,
        rejection: Rejection,
        now: Duration,
        report: &mut Report,
    ) -> Result<(), SyncError> {
        if !self.engine.set_aside(family, service.clone()) {
            return Err(CommitError::Rejected(rejection).into());
        }
        self.quarantine[family].add(service.clone(), rejection.clone(), now);
        report.refused.push((service, rejection));
        Ok(())
    }
}

// Services the kernel refused: when to try them again.

/// Pauses before a refused service is tried again.
const RETRIES: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(300));

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// What the kernel refused last.
    pub rejection: Rejection,
    /// How often it refused.
    pub refusals: u32,
    /// When it refused first, as the age of the process.
    pub since: Duration,
    /// When it is tried again.
    pub retry_at: Duration,
}

/// The services of one family that are set aside.
#[derive(Debug, Default)]
pub struct Quarantine {
    services: BTreeMap<ObjectName, Quarantined>,
}

impl Quarantine {
    pub fn services(&self) -> &BTreeMap<ObjectName, Quarantined> {
        &self.services
    }

    /// What of a service was refused last.
    pub fn rejection(&self, service: &ObjectName) -> Option<Rejection> {
        self.services.get(service).map(|quarantined| quarantined.rejection.clone())
    }

    /// A service was refused, for the first time or again.
    pub fn add(&mut self, service: ObjectName, rejection: Rejection, now: Duration) {
        let before = self.services.get(&service);
        let refusals = before.map_or(0, |q| q.refusals) + 1;
        let since = before.map_or(now, |q| q.since);
        let retry_at = now + RETRIES.pause(refusals);
        self.services.insert(service, Quarantined { rejection, refusals, since, retry_at });
    }

    /// A service got through.
    pub fn release(&mut self, service: &ObjectName) {
        self.services.remove(service);
    }

    /// The services that are to be tried again.
    pub fn due(&self, now: Duration) -> Vec<ObjectName> {
        let due = self.services.iter().filter(|(_, q)| q.retry_at <= now);
        due.map(|(service, _)| service.clone()).collect()
    }

    /// When the next one is due.
    pub fn next_retry(&self) -> Option<Duration> {
        self.services.values().map(|q| q.retry_at).min()
    }
}
