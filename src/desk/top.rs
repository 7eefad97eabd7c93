//! `kubectl kubeweir top`.

use std::collections::BTreeMap;

use super::ask::Answer;
use super::cli::TopArgs;
use super::error::DeskError;
use super::print::{print, section, unreached};
use super::{Outcome, Room};
use crate::inspect::rates::Rate;
use crate::text::table;

/// More than any cluster has Service ports: what is shown is cut off here, after adding up.
const ALL: &str = "1000000";

/// Prints new connections a second by Service port, of all nodes together.
pub async fn run(room: &Room<'_>, args: &TopArgs) -> Result<Outcome, DeskError> {
    let sites = room.sites().await?;
    let command = ["top", "--agent", "--once", "--limit", ALL, "-o", "json"];
    let answers = room.asker.ask::<Vec<Rate>>(sites, &command).await;
    let is_of = |rate: &Rate| match &args.namespace {
        Some(namespace) => rate.port.split_once('/').is_some_and(|(of, _)| of == *namespace),
        None => true,
    };
    let narrowed = |rates: Vec<Rate>| rates.into_iter().filter(is_of).collect();
    let answers: Vec<Answer<Vec<Rate>>> =
        answers.into_iter().map(|answer| answer.map(narrowed)).collect();
    print(&answers, room.output(), |_| text(&answers, args.limit))?;
    Ok(Outcome::of(&answers, |_| true))
}

/// A Service port on all nodes together.
#[derive(Debug, Default, PartialEq)]
struct Sum<'a> {
    per_second: f64,
    total: u64,
    dropped_per_second: f64,
    dropped: u64,
    /// The node with the most, and its rate.
    busiest: (&'a str, f64),
}

/// Busiest first, then by name.
fn sums(answers: &[Answer<Vec<Rate>>]) -> Vec<(&str, Sum<'_>)> {
    let mut sums: BTreeMap<&str, Sum> = BTreeMap::new();
    for answer in answers {
        for rate in answer.answer().into_iter().flatten() {
            let sum = sums.entry(&rate.port).or_default();
            sum.per_second += rate.per_second;
            sum.total += rate.total;
            sum.dropped_per_second += rate.dropped_per_second;
            sum.dropped += rate.dropped;
            if sum.busiest.0.is_empty() || rate.per_second > sum.busiest.1 {
                sum.busiest = (&answer.node, rate.per_second);
            }
        }
    }
    let mut sums: Vec<(&str, Sum)> = sums.into_iter().collect();
    sums.sort_by(|(_, a), (_, b)| b.per_second.total_cmp(&a.per_second));
    sums
}

fn text(answers: &[Answer<Vec<Rate>>], limit: usize) -> String {
    let sums = sums(answers);
    let row = |(port, sum): &(&str, Sum)| {
        let (node, rate) = sum.busiest;
        let share = if sum.per_second > 0.0 { rate / sum.per_second * 100.0 } else { 0.0 };
        let busiest = if share > 0.0 { format!("{node} ({share:.0} %)") } else { "-".to_owned() };
        let rates = [sum.per_second, sum.dropped_per_second].map(|rate| format!("{rate:.1}"));
        let [per_second, dropped_per_second] = rates;
        let (total, dropped) = (sum.total.to_string(), sum.dropped.to_string());
        vec![(*port).to_owned(), per_second, total, dropped_per_second, dropped, busiest]
    };
    let header =
        ["SERVICE PORT", "NEW CONNECTIONS/S", "TOTAL", "DROPPED/S", "DROPPED", "BUSIEST NODE"];
    let mut text = match sums.is_empty() {
        true => "no service port has anything to count\n".to_owned(),
        false => table(&header, sums.iter().take(limit).map(row)),
    };
    if sums.len() > limit {
        text += &format!("and {} more, see --limit\n", sums.len() - limit);
    }
    text + &section("problems", &unreached(answers), answers.len(), true)
}

#[cfg(test)]
mod tests {
    use super::super::ask::Said;
    use super::*;

    #[test]
    fn rates_of_all_nodes_are_added_up() {
        let rate = |port: &str, per_second, total| Rate {
            port: port.to_owned(),
            per_second,
            total,
            dropped_per_second: 0.5,
            dropped: 3,
        };
        let node = |node: &str, rates| Answer {
            node: node.to_owned(),
            pod: None,
            said: Said::Answer(rates),
        };
        let answers = [
            node("a", vec![rate("s/dns/udp", 1.0, 7), rate("s/web/tcp", 5.0, 10)]),
            node("b", vec![rate("s/web/tcp", 15.0, 1)]),
        ];
        let sums = sums(&answers);
        let web = Sum {
            per_second: 20.0,
            total: 11,
            dropped_per_second: 1.0,
            dropped: 6,
            busiest: ("b", 15.0),
        };
        assert_eq!(sums[0], ("s/web/tcp", web));
        assert!(
            text(&answers, 1).ends_with(
                "s/web/tcp     20.0               11     1.0        6        b (75 %)\nand 1 more, see --limit\n"
            ),
            "{}",
            text(&answers, 1)
        );
    }
}
