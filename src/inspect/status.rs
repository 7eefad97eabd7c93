//! The agent's state as rows and sentences.
//!
//! Place in the flow: `kubeweir status` reads a [`Status`] from the metrics port and prints this.
//! Pure.

use crate::agent::status::{FamilyStatus, Status};

/// Names of the columns of [`rows`].
pub const COLUMNS: [&str; 10] = [
    "FAMILY",
    "SERVICES",
    "PORTS",
    "FRONTENDS",
    "ENDPOINTS",
    "PENDING",
    "SYNCS",
    "FAILED",
    "REPAIRS",
    "LAST SYNC",
];

/// A row for each family, in the order of [`COLUMNS`].
pub fn rows(status: &Status) -> Vec<Vec<String>> {
    let row = |(name, family): (&String, &FamilyStatus)| {
        let totals = &family.summary.totals;
        let last = family.last_sync.as_ref().map_or_else(
            || "never".to_owned(),
            |last| {
                let took = last.took_us as f64 / 1000.0;
                format!("{} ({took:.1} ms, +{} -{})", last.at, last.added, last.deleted)
            },
        );
        let numbers = [
            totals.services as u64,
            totals.ports as u64,
            totals.frontends as u64,
            totals.endpoints as u64,
            family.summary.dirty as u64,
            family.syncs,
            family.failed_syncs,
            family.repairs,
        ];
        let numbers = numbers.iter().map(u64::to_string);
        [name.clone()].into_iter().chain(numbers).chain([last]).collect()
    };
    status.families.iter().map(row).collect()
}

/// What is not as it should be, a sentence each.
pub fn problems(status: &Status) -> Vec<String> {
    if status.families.is_empty() {
        return vec![
            "no family has been synced yet: the agent waits for its lists of Services and EndpointSlices"
                .to_owned(),
        ];
    }
    status.families.iter().flat_map(|(name, family)| of_family(name, family)).collect()
}

fn of_family(name: &str, family: &FamilyStatus) -> Vec<String> {
    let mut problems = Vec::new();
    if !family.summary.attached {
        problems.push("the rules are not in force yet".to_owned());
    }
    if let Some(error) = family.last_sync.as_ref().and_then(|last| last.error.as_ref()) {
        problems.push(format!("the last sync failed: {error}"));
    }
    for service in &family.quarantine {
        problems.push(format!(
            "{} is set aside, the kernel refused it {} times: {}",
            service.service, service.refusals, service.reason
        ));
    }
    for contested in &family.contested {
        problems.push(format!(
            "{} belongs to {}, but {} claims it too and does not get it",
            contested.frontend,
            contested.owner,
            contested.others.join(", ")
        ));
    }
    let totals = &family.summary.totals;
    for (count, policy) in [
        (totals.external_without_local, "externalTrafficPolicy"),
        (totals.internal_without_local, "internalTrafficPolicy"),
    ] {
        if count > 0 {
            problems.push(format!(
                "{count} service ports have {policy}: Local and no endpoint on this node"
            ));
        }
    }
    problems.into_iter().map(|problem| format!("{name}: {problem}")).collect()
}

/// What is worth knowing and no problem, a sentence each.
pub fn remarks(status: &Status) -> Vec<String> {
    let unowned = status.families.iter().filter(|(_, family)| !family.owned);
    unowned
        .map(|(name, _)| {
            format!("{name}: other programs can change the table; what they change is repaired")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::status::{Contested, LastSync, QuarantinedService};

    fn family() -> FamilyStatus {
        let mut family = FamilyStatus { owned: true, ..FamilyStatus::default() };
        family.summary.attached = true;
        family
    }

    fn problems_of(change: impl FnOnce(&mut FamilyStatus)) -> Vec<String> {
        let mut family = family();
        change(&mut family);
        let families = [("IPv4".to_owned(), family)].into();
        problems(&Status { families, ..Status::default() })
    }

    #[test]
    fn each_problem_has_its_sentence() {
        assert_eq!(problems_of(|_| ()), [""; 0]);
        let quarantined = problems_of(|family| {
            family.quarantine.push(QuarantinedService {
                service: "default/web".into(),
                reason: "add element endpoints-4: No space left".into(),
                refusals: 3,
            });
        });
        assert_eq!(
            quarantined,
            ["IPv4: default/web is set aside, the kernel refused it 3 times: add element \
              endpoints-4: No space left"]
        );
        let contested = problems_of(|family| {
            family.contested.push(Contested {
                frontend: "192.0.2.1:80/tcp".into(),
                owner: "a/old".into(),
                others: vec!["b/new".into()],
            });
        });
        assert_eq!(
            contested,
            [
                "IPv4: 192.0.2.1:80/tcp belongs to a/old, but b/new claims it too and does not get it"
            ]
        );
        let failed = problems_of(|family| {
            let error = Some("Operation not permitted".to_owned());
            family.last_sync = Some(LastSync { error, ..LastSync::default() });
        });
        assert_eq!(failed, ["IPv4: the last sync failed: Operation not permitted"]);
        let local = problems_of(|family| family.summary.totals.external_without_local = 2);
        let words =
            "2 service ports have externalTrafficPolicy: Local and no endpoint on this node";
        assert_eq!(local, [format!("IPv4: {words}")]);
        assert!(problems(&Status::default())[0].contains("waits for its lists"));
    }
}
