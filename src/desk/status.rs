//! `kubectl kubeweir status`.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use super::ask::Answer;
use super::error::DeskError;
use super::print::{Sentences, add, print, section, unreached};
use super::{Outcome, Room};
use crate::inspect::status::{problems, remarks};
use crate::status::{Heard, Status};
use crate::text::table;

/// In a cluster that changes, nodes are behind each other for a moment: who still is after this lags.
const SECOND_LOOK: Duration = Duration::from_secs(2);

/// An agent's state, and what is to be said of it.
#[derive(Debug, Serialize)]
struct Seen {
    problems: Vec<String>,
    notes: Vec<String>,
    status: Status,
}

/// Prints the state of every agent.
pub async fn run(room: &Room<'_>) -> Result<Outcome, DeskError> {
    let mut answers = ask(room).await?;
    let newest = newest(&answers);
    if !lagging(&answers, &newest).is_empty() {
        tokio::time::sleep(SECOND_LOOK).await;
        answers = ask(room).await?;
        let mut lags = lagging(&answers, &newest);
        for answer in &mut answers {
            let lag = lags.remove(&answer.node);
            if let super::ask::Said::Answer(seen) = &mut answer.said {
                seen.problems.extend(lag);
            }
        }
    }
    print(&answers, room.output(), |wide| text(&answers, wide, Timestamp::now()))?;
    Ok(outcome(&answers))
}

async fn ask(room: &Room<'_>) -> Result<Vec<Answer<Seen>>, DeskError> {
    let sites = room.sites().await?;
    let answers = room.asker.ask::<Status>(sites, &["status", "--agent", "-o", "json"]).await;
    Ok(answers.into_iter().map(|answer| answer.map(Seen::of)).collect())
}

impl Seen {
    fn of(status: Status) -> Seen {
        Seen { problems: problems(&status), notes: remarks(&status), status }
    }
}

fn outcome(answers: &[Answer<Seen>]) -> Outcome {
    Outcome::of(answers, |seen| seen.problems.is_empty())
}

/// The newest change that any agent was told of, as resourceVersion, by kind.
fn newest(answers: &[Answer<Seen>]) -> BTreeMap<String, u64> {
    let mut newest = BTreeMap::new();
    for (kind, heard) in answers.iter().filter_map(Answer::answer).flat_map(|a| &a.status.heard) {
        let version: &mut u64 = newest.entry(kind.clone()).or_default();
        *version = heard.change.max(*version);
    }
    newest
}

/// Nodes that were not told of these changes, with a sentence.
fn lagging(answers: &[Answer<Seen>], newest: &BTreeMap<String, u64>) -> BTreeMap<String, String> {
    let of_node = |answer: &Answer<Seen>| {
        let heard = &answer.answer()?.status.heard;
        Some((answer.node.clone(), newest.iter().find_map(|of_kind| lag(heard, of_kind))?))
    };
    answers.iter().filter_map(of_node).collect()
}

/// Why a node lags that has heard so much. One that says nothing of the kind, an older agent or one with
/// manifests, does not.
fn lag(heard: &BTreeMap<String, Heard>, (kind, newest): (&String, &u64)) -> Option<String> {
    let state = heard.get(kind)?.state;
    let seconds = SECOND_LOOK.as_secs();
    (state < *newest).then(|| {
        format!(
            "it lags: it has {kind}s of resourceVersion {state}, others had {newest} more than \
             {seconds} s ago; does it reach the API server?"
        )
    })
}

const COLUMNS: [&str; 7] =
    ["NODE", "MODE", "SERVICES", "PENDING", "LAST SYNC", "CONNTRACK", "STATE"];
const MORE_COLUMNS: [&str; 5] =
    ["VERSION", "POD", "ENDPOINTS", "FAILED SYNCS", "NOT LET THROUGH/MIN"];

fn text(answers: &[Answer<Seen>], wide: bool, now: Timestamp) -> String {
    let more = if wide { &MORE_COLUMNS[..] } else { &MORE_COLUMNS[..1] };
    let header: Vec<&str> = COLUMNS.iter().chain(more).copied().collect();
    let mut text = table(&header, answers.iter().map(|answer| row(answer, wide, now)));
    let (mut bad, mut notes) = (unreached(answers), Sentences::new());
    for answer in answers {
        if let Some(seen) = answer.answer() {
            add(&mut bad, &answer.node, seen.problems.iter().cloned());
            add(&mut notes, &answer.node, seen.notes.iter().cloned());
        }
    }
    text += &section("problems", &bad, answers.len(), true);
    text += &section("notes", &notes, answers.len(), false);
    text
}

fn row(answer: &Answer<Seen>, wide: bool, now: Timestamp) -> Vec<String> {
    let none = || "-".to_owned();
    let node = answer.node.clone();
    let Some(Seen { problems, status, .. }) = answer.answer() else {
        let state = "not reached".to_owned();
        let columns = if wide { MORE_COLUMNS.len() } else { 1 };
        let mut row = vec![node, none(), none(), none(), none(), none(), state];
        row.resize_with(COLUMNS.len() + columns, none);
        return row;
    };
    let most = |figure: fn(&crate::status::FamilyStatus) -> usize| {
        status.families.values().map(figure).max().map_or_else(none, |most| most.to_string())
    };
    let pending: usize = status.families.values().map(|family| family.summary.dirty).sum();
    let conntrack = status.conntrack.map(|table| match table.limit {
        0 => table.entries.to_string(),
        limit => format!("{}/{limit}", table.entries),
    });
    let state = match problems.len() {
        0 => "well".to_owned(),
        1 => "1 problem".to_owned(),
        count => format!("{count} problems"),
    };
    let mut row = vec![
        node,
        status.mode.clone(),
        most(|family| family.summary.totals.services),
        (pending + status.backlog).to_string(),
        last_sync(status, now).unwrap_or_else(none),
        conntrack.unwrap_or_else(none),
        state,
        status.version.clone(),
    ];
    if wide {
        let failed: u64 = status.families.values().map(|family| family.failed_syncs).sum();
        row.push(answer.pod.clone().unwrap_or_default());
        row.push(most(|family| family.summary.totals.endpoints));
        row.push(failed.to_string());
        let dropped = status.families.values().flat_map(|family| family.dropped.values());
        row.push(dropped.map(|packets| packets.last_minute).sum::<u64>().to_string());
    }
    row
}

/// How long ago, as kubectl shows ages. Clocks of node and desk may differ by a little.
fn last_sync(status: &Status, now: Timestamp) -> Option<String> {
    let times = status.families.values().filter_map(|family| family.last_sync.as_ref());
    let last: Timestamp = times.filter_map(|sync| sync.at.parse().ok()).max()?;
    let seconds = now.duration_since(last).as_secs().max(0);
    Some(match seconds {
        0..120 => format!("{seconds}s ago"),
        120..7_200 => format!("{}m ago", seconds / 60),
        7_200..172_800 => format!("{}h ago", seconds / 3_600),
        _ => format!("{}d ago", seconds / 86_400),
    })
}

#[cfg(test)]
mod tests {
    use super::super::ask::Said;
    use super::super::error::Unreached;
    use super::*;
    use crate::status::{FamilyStatus, LastSync};

    fn seen(node: &str, heard: Option<Heard>, at: &str) -> Answer<Seen> {
        let mut family = FamilyStatus { owned: true, ..FamilyStatus::default() };
        family.summary.attached = true;
        family.last_sync = Some(LastSync { at: at.to_owned(), ..LastSync::default() });
        let families = [("IPv4".to_owned(), family)].into();
        let heard = heard.map(|heard| ("EndpointSlice".to_owned(), heard)).into_iter().collect();
        let status = Status { families, heard, mode: "nftables".to_owned(), ..Status::default() };
        let said = Said::Answer(Seen::of(status));
        Answer { node: node.to_owned(), pod: Some("kube-system/x".to_owned()), said }
    }

    // A list or a bookmark that is newer than all changes tells nobody that others lag.
    #[test]
    fn who_was_not_told_of_a_change_that_others_had_lags() {
        let heard = |change, state| Some(Heard { change, state });
        let answers = [
            seen("told", heard(41, 41), ""),
            seen("behind", heard(37, 40), ""),
            seen("listed-since", heard(0, 90), ""),
            seen("silent", None, ""),
        ];
        let newest = newest(&answers);
        let sentence = "it lags: it has EndpointSlices of resourceVersion 40, others had 41 more than 2 s \
                        ago; does it reach the API server?";
        assert_eq!(
            lagging(&answers, &newest),
            BTreeMap::from([("behind".to_owned(), sentence.to_owned())])
        );
        // It was told meanwhile; that there is a newer change by now is no lag.
        let later = [seen("behind", heard(41, 41), ""), seen("told", heard(42, 42), "")];
        assert!(lagging(&later, &newest).is_empty());
    }

    #[test]
    fn an_age_is_short() {
        let now: Timestamp = "2026-11-28T12:00:00Z".parse().expect("a time");
        for (at, age) in [
            ("2026-11-28T11:59:50.5Z", Some("9s ago")),
            ("2026-11-28T12:00:01Z", Some("0s ago")),
            ("2026-11-28T11:30:00Z", Some("30m ago")),
            ("2026-11-28T02:00:00Z", Some("10h ago")),
            ("2026-11-01T12:00:00Z", Some("27d ago")),
            ("", None),
        ] {
            let answer = seen("a", None, at);
            let status = &answer.answer().expect("an answer").status;
            assert_eq!(last_sync(status, now).as_deref(), age, "{at}");
        }
    }

    #[test]
    fn a_node_without_answer_outweighs_problems() {
        let well = || seen("a", None, "");
        let mut ill = seen("b", None, "");
        if let Said::Answer(seen) = &mut ill.said {
            seen.problems.push("x".to_owned());
        }
        let away =
            Answer { node: "c".to_owned(), pod: None, said: Said::Unreached(Unreached::NoPod) };
        assert_eq!(outcome(&[well()]), Outcome::Well);
        let mut all = vec![well(), ill];
        assert_eq!(outcome(&all), Outcome::Ill);
        all.push(away);
        assert_eq!(outcome(&all), Outcome::Unknown);
    }
}
