//! `kubectl kubeweir flows`.

use super::ask::Answer;
use super::cli::FlowsArgs;
use super::error::DeskError;
use super::print::{print, section, unreached};
use super::{Outcome, Room};
use crate::inspect::flows::Flow;
use crate::text::table;

/// Prints the connections that nodes know, each with its node.
pub async fn run(room: &Room<'_>, args: &FlowsArgs) -> Result<Outcome, DeskError> {
    let namespace = args.namespace.as_deref();
    let own = namespace.unwrap_or(room.asker.client.default_namespace());
    let of = args.of.as_deref().map(|of| qualified(of, own));
    let sites = room.sites().await?;
    let command: Vec<&str> = ["flows", "-o", "json"].into_iter().chain(of.as_deref()).collect();
    let answers = room.asker.ask::<Vec<Flow>>(sites, &command).await;
    let narrowed = |flows: Vec<Flow>| match namespace.filter(|_| args.of.is_none()) {
        Some(namespace) => flows.into_iter().filter(|flow| is_of(flow, namespace)).collect(),
        None => flows,
    };
    let answers: Vec<Answer<Vec<Flow>>> =
        answers.into_iter().map(|answer| answer.map(narrowed)).collect();
    print(&answers, room.output(), |_| text(&answers))?;
    Ok(Outcome::of(&answers, |_| true))
}

/// A Service's name with its namespace; addresses stay what they are.
fn qualified(of: &str, namespace: &str) -> String {
    let is_name = of.starts_with(|c: char| c.is_ascii_lowercase()) && !of.contains('/');
    // An IPv6 address may begin with a letter and has more than one colon.
    match is_name && of.matches(':').count() < 2 {
        true => format!("{namespace}/{of}"),
        false => of.to_owned(),
    }
}

fn is_of(flow: &Flow, namespace: &str) -> bool {
    let service = flow.service.as_deref().and_then(|service| service.split_once('/'));
    service.is_some_and(|(of, _)| of == namespace)
}

fn text(answers: &[Answer<Vec<Flow>>]) -> String {
    let header: Vec<&str> = std::iter::once("NODE").chain(Flow::COLUMNS).collect();
    let of_node = |answer: &Answer<Vec<Flow>>| -> Vec<Vec<String>> {
        let row = |flow: &Flow| std::iter::once(answer.node.clone()).chain(flow.cells()).collect();
        answer.answer().into_iter().flatten().map(row).collect()
    };
    let rows: Vec<Vec<String>> = answers.iter().flat_map(of_node).collect();
    let flows = if rows.is_empty() { "no flows\n".to_owned() } else { table(&header, rows) };
    flows + &section("problems", &unreached(answers), answers.len(), true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_get_a_namespace() {
        for (of, expected) in [
            ("web", "shop/web"),
            ("web:http", "shop/web:http"),
            ("other/web", "other/web"),
            ("10.244.0.10:8080", "10.244.0.10:8080"),
            ("fd00::1", "fd00::1"),
            ("[fd00::1]:80", "[fd00::1]:80"),
        ] {
            assert_eq!(qualified(of, "shop"), expected);
        }
    }
}
