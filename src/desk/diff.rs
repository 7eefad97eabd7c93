//! `kubectl kubeweir diff`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::ask::Answer;
use super::cli::DiffArgs;
use super::error::DeskError;
use super::print::{names, print, section, unreached};
use super::{Outcome, Room};
use crate::inspect::diff::{FamilyDiff, Names, Words};
use crate::text::red;

/// What `kubeweir diff -o json` says.
#[derive(Debug, Serialize, Deserialize)]
struct Compared {
    equal: bool,
    #[serde(flatten)]
    names: Names,
    families: Vec<FamilyDiff>,
}

impl Compared {
    /// Only what belongs to a namespace's Services.
    fn of_namespace(mut self, namespace: &str) -> Compared {
        let of = |diff: FamilyDiff| diff.of_namespace(namespace);
        self.families = self.families.into_iter().map(of).collect();
        self.equal = self.families.iter().all(FamilyDiff::is_empty);
        self
    }

    fn words(&self) -> String {
        Words { diffs: &self.families, names: &self.names }.to_string()
    }
}

/// Prints how the kernels differ from what the API wants of them.
pub async fn run(room: &Room<'_>, args: &DiffArgs) -> Result<Outcome, DeskError> {
    let sites = room.sites().await?;
    let answers = room.asker.ask::<Compared>(sites, &["diff", "--agent", "-o", "json"]).await;
    let narrowed = |compared: Compared| match &args.namespace {
        Some(namespace) => compared.of_namespace(namespace),
        None => compared,
    };
    let answers: Vec<Answer<Compared>> =
        answers.into_iter().map(|answer| answer.map(narrowed)).collect();
    print(&answers, room.output(), |_| text(&answers))?;
    Ok(Outcome::of(&answers, |compared| compared.equal))
}

/// Nodes with equal differences together, then those without, then those that did not answer.
fn text(answers: &[Answer<Compared>]) -> String {
    let mut groups: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for answer in answers {
        if let Some(compared) = answer.answer() {
            groups.entry(compared.words()).or_default().push(&answer.node);
        }
    }
    let equal = groups.remove("").unwrap_or_default();
    let mut text = String::new();
    for (words, nodes) in &groups {
        let lines = words.lines().map(|line| format!("  {line}\n"));
        text += &red(&format!("{}:", names(nodes, answers.len())));
        text += &format!("\n{}", lines.collect::<String>());
    }
    if !equal.is_empty() {
        text += &format!("{}: no difference\n", names(&equal, answers.len()));
    }
    let why = unreached(answers);
    text + section("problems", &why, answers.len(), true).trim_start()
}
