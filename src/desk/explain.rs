//! `kubectl kubeweir explain`.

use std::collections::BTreeSet;

use super::ask::Answer;
use super::cli::ExplainArgs;
use super::error::DeskError;
use super::names::{destination, pair, source};
use super::print::{names, print, section, unreached};
use super::{Outcome, Room};
use crate::inspect::explain::{Explanation, Verdict};
use crate::text::red;

/// Prints what becomes of a connection on each node, once for those that agree.
pub async fn run(room: &Room<'_>, args: &ExplainArgs) -> Result<Outcome, DeskError> {
    let namespace = args.namespace.as_deref();
    let from = source(room, namespace, &args.from).await?;
    let (to, protocol) = destination(room, namespace, &args.to).await?;
    let (from, to) = pair(&from, &to).ok_or_else(|| DeskError::Unclear {
        text: args.to.clone(),
        reason: "it has no address of the source's family".to_owned(),
    })?;
    let mut sites = room.sites().await?;
    if let Some(node) = &args.from_node {
        sites.retain(|site| site.node == *node);
        if sites.is_empty() {
            return Err(DeskError::NoSuchNode(node.clone()));
        }
    }
    let (from, to) = (from.to_string(), format!("{to}/{protocol}"));
    let command = ["explain", &from, &to, "-o", "json"];
    let answers = room.asker.ask::<Explanation>(sites, &command).await;
    let groups = groups(&answers);
    print(&answers, room.output(), |wide| text(&answers, &groups, wide))?;
    Ok(Outcome::of(&answers, |_| groups.len() <= 1))
}

/// Nodes that say the same, by the rules they walked or not, with what all of them counted; most nodes
/// first.
fn groups(answers: &[Answer<Explanation>]) -> Vec<(Explanation, Vec<&str>)> {
    let mut groups: Vec<(Explanation, Vec<&str>)> = Vec::new();
    for answer in answers {
        let Some(explanation) = answer.answer() else { continue };
        match groups.iter_mut().find(|(known, _)| known.agrees_with(explanation)) {
            Some((known, nodes)) => {
                known.add_count(explanation);
                nodes.push(&answer.node);
            }
            None => groups.push((explanation.clone(), vec![&answer.node])),
        }
    }
    groups.sort_by_key(|(_, nodes)| std::cmp::Reverse(nodes.len()));
    groups
}

/// The first group in full; of the others only what they say otherwise.
fn text(
    answers: &[Answer<Explanation>],
    groups: &[(Explanation, Vec<&str>)],
    wide: bool,
) -> String {
    let mut text = String::new();
    let mut told: BTreeSet<String> = BTreeSet::new();
    for (explanation, nodes) in groups {
        let words = match wide {
            true => explanation.to_string(),
            false => Explanation { steps: Vec::new(), ..explanation.clone() }.to_string(),
        };
        let title = format!("{}:", names(nodes, answers.len()));
        let fails = matches!(explanation.verdict, Verdict::Refused | Verdict::Dropped);
        text += &format!("{}\n", if fails { red(&title) } else { title });
        for (number, line) in words.lines().enumerate() {
            if number == 0 || !told.contains(line) {
                text += &format!("  {line}\n");
            }
        }
        if told.is_empty() {
            told = words.lines().map(str::to_owned).collect();
        }
    }
    text + section("problems", &unreached(answers), answers.len(), true).trim_start()
}
