//! How answers of many nodes are printed: documents for programs, and sentences with the nodes that they
//! are true of.

use std::collections::BTreeMap;

use serde::Serialize;

use super::ask::Answer;
use super::cli::Output;
use super::error::DeskError;
use crate::text::{is_read, json, red, with_causes};

/// So many nodes are named.
const NAMED: usize = 3;

/// A sentence and the nodes that it is true of.
pub type Sentences<'a> = BTreeMap<String, Vec<&'a str>>;

/// Prints all answers in a program's form, or what `text` makes for people.
pub fn print<T: Serialize>(
    answers: &[Answer<T>],
    output: Option<Output>,
    text: impl FnOnce(bool) -> String,
) -> Result<(), DeskError> {
    #[derive(Serialize)]
    struct Document<'a, T> {
        nodes: &'a [Answer<T>],
    }
    let document = Document { nodes: answers };
    let text = match output {
        Some(Output::Json) => json(&document),
        Some(Output::Yaml) => serde_saphyr::to_string(&document).expect("answers are plain data"),
        Some(Output::Wide) => text(true),
        None => text(false),
    };
    is_read(&text).map(drop).map_err(DeskError::Write)
}

/// Adds what is true of a node.
pub fn add<'a>(
    sentences: &mut Sentences<'a>,
    node: &'a str,
    told: impl IntoIterator<Item = String>,
) {
    for sentence in told {
        sentences.entry(sentence).or_default().push(node);
    }
}

/// Why nodes have no answer.
pub fn unreached<T>(answers: &[Answer<T>]) -> Sentences<'_> {
    let mut sentences = Sentences::new();
    for answer in answers {
        let why = answer.unreached().map(|why| format!("not reached: {}", with_causes(why)));
        add(&mut sentences, &answer.node, why);
    }
    sentences
}

/// A title and a line for each sentence, those of the fewest nodes first; nothing without any. `total`:
/// how many nodes there are.
pub fn section(title: &str, sentences: &Sentences<'_>, total: usize, is_bad: bool) -> String {
    let mut lines: Vec<(&Vec<&str>, &String)> = sentences.iter().map(|(s, n)| (n, s)).collect();
    lines.sort_by_key(|(nodes, _)| nodes.len());
    let line = |(nodes, sentence): (&Vec<&str>, &String)| {
        let sentence = if is_bad { red(sentence) } else { sentence.clone() };
        format!("  {}: {sentence}\n", names(nodes, total))
    };
    let lines: String = lines.into_iter().map(line).collect();
    if lines.is_empty() { lines } else { format!("\n{title}:\n{lines}") }
}

/// `node-a, node-b`; `all 12 nodes`; a few by name if they are many.
pub fn names(nodes: &[&str], total: usize) -> String {
    match nodes.len() {
        1 => nodes[0].to_owned(),
        count if count == total => format!("all {total} nodes"),
        count if count <= NAMED => nodes.join(", "),
        count => format!("{} and {} more", nodes[..NAMED].join(", "), count - NAMED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_has_the_nodes_that_it_is_true_of() {
        let mut sentences = Sentences::new();
        for node in ["a", "b", "c", "d", "e"] {
            add(&mut sentences, node, ["everywhere".to_owned()]);
        }
        add(&mut sentences, "b", ["here".to_owned()]);
        for node in ["a", "b", "c", "e"] {
            add(&mut sentences, node, ["nearly".to_owned()]);
        }
        let text = section("notes", &sentences, 5, false);
        assert_eq!(
            text,
            "\nnotes:\n  b: here\n  a, b, c and 1 more: nearly\n  all 5 nodes: everywhere\n"
        );
        assert_eq!(section("notes", &Sentences::new(), 5, true), "");
    }
}
