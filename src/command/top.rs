//! `kubeweir top`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::render::{is_read, json, print};
use super::{CommandError, agent_page, table};
use crate::cli::people::{Output, TopArgs};
use crate::inspect::rates::{Connections, Rate, connections, rates};

/// Between two scrapes.
const REFRESH: Duration = Duration::from_secs(1);

/// Prints rates, once or until it is interrupted.
pub fn run(args: &TopArgs) -> Result<ExitCode, CommandError> {
    super::block_on(show(args))?
}

async fn show(args: &TopArgs) -> Result<ExitCode, CommandError> {
    let mut before = scrape(&args.address).await?;
    let mut since = Instant::now();
    loop {
        tokio::time::sleep(REFRESH).await;
        let picture = match scrape(&args.address).await {
            Ok(after) => {
                let rates = rates(&before, &after, since.elapsed());
                (before, since) = (after, Instant::now());
                shown(&rates, args)
            }
            Err(error) if args.once => return Err(error),
            Err(error) => table::trouble(&error, args.output),
        };
        if args.once {
            print(&picture)?;
            return Ok(ExitCode::SUCCESS);
        }
        if !is_read(&table::picture(&picture, args.output))? {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

fn shown(rates: &[Rate], args: &TopArgs) -> String {
    let busiest = &rates[..rates.len().min(args.limit)];
    if args.output == Output::Json {
        return json(&busiest);
    }
    if rates.is_empty() {
        return "no service port has anything to count\n".to_owned();
    }
    let row = |rate: &Rate| {
        vec![rate.port.clone(), format!("{:.1}", rate.per_second), rate.total.to_string()]
    };
    let mut text =
        table::plain(&["SERVICE PORT", "NEW CONNECTIONS/S", "TOTAL"], busiest.iter().map(row));
    if busiest.len() < rates.len() {
        text += &format!("and {} more, see --limit\n", rates.len() - busiest.len());
    }
    text
}

async fn scrape(address: &str) -> Result<Connections, CommandError> {
    let page = agent_page::fetch(address, "/metrics").await?;
    connections(&page).ok_or_else(|| CommandError::NoCounters(address.to_owned()))
}
