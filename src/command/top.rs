//! `kubeweir top`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::render::print;
use super::{CommandError, agent_page, table};
use crate::cli::people::TopArgs;
use crate::inspect::rates::{Connections, connections, rates};

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
        let after = scrape(&args.address).await?;
        let rates = rates(&before, &after, since.elapsed());
        (before, since) = (after, Instant::now());
        let rows = rates
            .into_iter()
            .take(args.limit)
            .map(|rate| vec![rate.port, format!("{:.1}", rate.per_second), rate.total.to_string()]);
        let text = table::plain(&["SERVICE PORT", "NEW/S", "TOTAL"], rows);
        if args.once {
            print(&text)?;
            return Ok(ExitCode::SUCCESS);
        }
        print(&format!("{}{text}", table::clear()))?;
    }
}

async fn scrape(address: &str) -> Result<Connections, CommandError> {
    let page = agent_page::fetch(address, "/metrics").await?;
    connections(&page).ok_or_else(|| CommandError::NoCounters(address.to_owned()))
}
