//! `kubeweir status` and `kubeweir top`: both ask the agent on its metrics port.

use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;

use super::input::running;
use super::{CommandError, failure, is_read, print, screen};
use crate::cli::people::{Output, StatusArgs, TopArgs};
use crate::inspect::rates::{Rate, Sample, connections, drops as dropped, rates, service_drops};
use crate::inspect::status::{
    DROP_COLUMNS, SYNC_COLUMNS, conntrack, drops, endings, figures, problems, remarks, syncs,
};
use crate::status::{PATH, Status};
use crate::text::{json, red, table};

/// How long the agent may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// kube-proxy's metrics port.
const USUAL_PORT: u16 = 10_249;

/// Between two screens.
const REFRESH: Duration = Duration::from_secs(1);

/// Prints the agent's state, once or until it is interrupted; 1 if something is wrong.
pub fn status(args: &StatusArgs) -> Result<ExitCode, CommandError> {
    super::block_on(show_status(args))?
}

/// Where the agent's metrics server is.
fn metrics(address: &str, agent: bool) -> Result<String, CommandError> {
    if agent { Ok(running()?.metrics()) } else { Ok(address.to_owned()) }
}

async fn show_status(args: &StatusArgs) -> Result<ExitCode, CommandError> {
    let address = metrics(&args.address, args.agent)?;
    let status = fetch(&address).await?;
    if !args.watch {
        print(&shown(&status, args.output))?;
        return Ok(ExitCode::from(u8::from(!problems(&status).is_empty())));
    }
    let mut text = shown(&status, args.output);
    while is_read(&screen(&text, args.output))? {
        tokio::time::sleep(REFRESH).await;
        text = match fetch(&address).await {
            Ok(status) => shown(&status, args.output),
            Err(error) => failure(&error, args.output),
        };
    }
    Ok(ExitCode::SUCCESS)
}

fn shown(status: &Status, output: Output) -> String {
    match output {
        Output::Json => json(status),
        Output::Text => text(status),
    }
}

/// The state of the agent whose metrics server is there.
pub async fn fetch(address: &str) -> Result<Status, CommandError> {
    let text = page(address, PATH).await?;
    serde_json::from_str(&text).map_err(|source| CommandError::Agent {
        address: address.to_owned(),
        path: PATH.to_owned(),
        source: Box::new(source),
    })
}

fn text(status: &Status) -> String {
    let Status { version, node, mode, backlog, .. } = status;
    let mut text = format!("kubeweir {version} on {node}, mode {mode}, backlog {backlog}\n");
    let problems: Vec<String> = problems(status).iter().map(|p| red(p)).collect();
    for (title, sentences) in [("problems", problems), ("notes", remarks(status))] {
        if !sentences.is_empty() {
            text += &format!("\n{title}:\n  {}\n", sentences.join("\n  "));
        }
    }
    if !status.families.is_empty() {
        let (header, rows) = figures(status);
        text += &format!("\n{}", table(&header, rows));
        text += &format!("\n{}", table(&SYNC_COLUMNS, syncs(status)));
    }
    let drops = drops(status);
    if !drops.is_empty() {
        text += &format!("\n{}", table(&DROP_COLUMNS, drops));
    }
    let lines = [conntrack(status), endings(status)];
    text.extend(lines.into_iter().flatten().map(|line| format!("\n{line}\n")));
    text
}

/// Prints rates, once or until it is interrupted.
pub fn top(args: &TopArgs) -> Result<ExitCode, CommandError> {
    super::block_on(show_top(args))?
}

async fn show_top(args: &TopArgs) -> Result<ExitCode, CommandError> {
    let address = metrics(&args.address, args.agent)?;
    let mut before = scrape(&address).await?;
    let mut since = Instant::now();
    loop {
        tokio::time::sleep(REFRESH).await;
        let text = match scrape(&address).await {
            Ok(after) => {
                let elapsed = since.elapsed();
                let connections = rates(&before.services, &after.services, elapsed);
                let drops = rates(&before.reasons, &after.reasons, elapsed);
                (before, since) = (after, Instant::now());
                shown_rates(&connections, &drops, args)
            }
            Err(error) if args.once => return Err(error),
            Err(error) => failure(&error, args.output),
        };
        if args.once {
            print(&text)?;
            return Ok(ExitCode::SUCCESS);
        }
        if !is_read(&screen(&text, args.output))? {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// Connections, and packets that were not let through.
const SERVICE_COLUMNS: [&str; 5] =
    ["SERVICE PORT", "NEW CONNECTIONS/S", "TOTAL", "DROPPED/S", "DROPPED"];

/// As JSON the service ports alone: what is not let through is in the status.
fn shown_rates(rates: &[Rate], drops: &[Rate], args: &TopArgs) -> String {
    let busiest = &rates[..rates.len().min(args.limit)];
    if args.output == Output::Json {
        return json(&busiest);
    }
    let row = |rate: &Rate| {
        vec![rate.port.clone(), format!("{:.1}", rate.per_second), rate.total.to_string()]
    };
    let of_service = |rate: &Rate| {
        let dropped = [format!("{:.1}", rate.dropped_per_second), rate.dropped.to_string()];
        [row(rate), dropped.into()].concat()
    };
    let mut text = match rates.is_empty() {
        true => "no service port has anything to count\n".to_owned(),
        false => table(&SERVICE_COLUMNS, busiest.iter().map(of_service)),
    };
    if busiest.len() < rates.len() {
        text += &format!("and {} more, see --limit\n", rates.len() - busiest.len());
    }
    let mut drops = drops.iter().filter(|rate| rate.total > 0).map(row).peekable();
    if drops.peek().is_some() {
        text += &format!("\n{}", table(&["NOT LET THROUGH", "PACKETS/S", "SO FAR"], drops));
    }
    text
}

/// What `top` takes from a scrape.
struct Scrape {
    services: Sample,
    reasons: Sample,
}

async fn scrape(address: &str) -> Result<Scrape, CommandError> {
    let text = page(address, "/metrics").await?;
    let counts = connections(&text).ok_or_else(|| CommandError::NoCounters(address.to_owned()))?;
    let services = Sample { counts, drops: service_drops(&text) };
    Ok(Scrape { services, reasons: Sample { counts: dropped(&text), ..Sample::default() } })
}

/// An answer that is no page.
#[derive(Debug, thiserror::Error)]
enum NoPage {
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Late,
    #[error("it answers {0}")]
    Refused(http::StatusCode),
}

/// Fetches a page as text.
async fn page(address: &str, path: &str) -> Result<String, CommandError> {
    let failed = |source: Box<dyn Error + Send + Sync>| CommandError::Agent {
        address: address.to_owned(),
        path: path.to_owned(),
        source,
    };
    match tokio::time::timeout(TIMEOUT, get(address, path)).await {
        Ok(page) => page.map_err(failed),
        Err(_) => Err(failed(NoPage::Late.into())),
    }
}

/// An address alone means the agent's usual port.
fn with_port(address: &str) -> String {
    match address.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, USUAL_PORT).to_string(),
        Err(_) => address.to_owned(),
    }
}

async fn get(address: &str, path: &str) -> Result<String, Box<dyn Error + Send + Sync>> {
    let uri: http::Uri = format!("http://{}{path}", with_port(address)).parse()?;
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<bytes::Bytes>>();
    let answer = client.get(uri).await?;
    if !answer.status().is_success() {
        return Err(NoPage::Refused(answer.status()).into());
    }
    let body = answer.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8_lossy(&body).into_owned())
}
