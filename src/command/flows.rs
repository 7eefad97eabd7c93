//! `kubeweir flows`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::Serialize;

use super::{CommandError, is_read, print, print_json};
use crate::cli::people::{FlowsArgs, Output};
use crate::conntrack::{Change, Entry};
use crate::inspect::flows::{Flow, Live, Names, Selector, rows};
use crate::inspect::view::{Frontends, frontends};
use crate::kernel::Kernel;
use crate::model::Family;
use crate::netlink::NetlinkKernel;
use crate::netlink::conntrack::{Conntrack, Watch};
use crate::netlink::request::Dump;
use crate::node::addresses;
use crate::ruleset::Environment;
use crate::text::{table, tell};

/// Between two lists while changes are followed: flows that are older than the first watcher end
/// without a message, and Services come and go.
const RELIST: Duration = Duration::from_secs(10);

/// Prints flows, once or as they come and go until it is interrupted.
pub fn run(args: &FlowsArgs) -> Result<ExitCode, CommandError> {
    let selector = match &args.of {
        None => Selector::All,
        Some(text) => Selector::parse(text).ok_or_else(|| CommandError::Selector(text.clone()))?,
    };
    let mut flows = Flows { selector, names: names()?, conntrack: Conntrack::open()? };
    if let Selector::Service(service, port) = &flows.selector
        && !flows.names.knows(service, port.as_deref())
    {
        return Err(CommandError::NoSuchService(args.of.clone().unwrap_or_default()));
    }
    if args.watch {
        return follow(&mut flows, args.output);
    }
    let (entries, complete) = flows.list()?;
    let flows: Vec<Flow> = entries.iter().map(|entry| flows.tell(entry)).collect();
    if !complete {
        tell("note: the table changed while it was read, some flows may be missing\n");
    }
    match args.output {
        Output::Json => print_json(&flows)?,
        Output::Text if flows.is_empty() => tell("no flows\n"),
        Output::Text => {
            let (header, rows) = rows(&flows);
            print(&table(&header, rows))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What is asked, of whom, and what tables say about it.
struct Flows {
    selector: Selector,
    names: Names,
    conntrack: Conntrack,
}

/// Frontends of both tables and the addresses at which NodePorts are.
fn names() -> Result<Names, CommandError> {
    let mut kernel = NetlinkKernel::open()?;
    let mut tables: Vec<Frontends> = Vec::new();
    for family in Family::BOTH {
        tables.push(frontends(&kernel.dump(family)?));
    }
    let local_addresses = super::block_on(addresses::read())??.0.into_iter().collect();
    Ok(Names::new(tables, Environment { local_addresses }))
}

impl Flows {
    /// The selected entries, and whether the list is complete.
    fn list(&mut self) -> Result<(Vec<Entry>, bool), CommandError> {
        let (mut entries, mut complete) = (Vec::new(), true);
        for family in self.selector.families() {
            for question in self.names.questions(&self.selector, family) {
                let selected = |entry: &Entry| self.names.selects(&self.selector, entry);
                let (found, dump) = self.conntrack.entries(family, question, selected)?;
                complete &= dump == Dump::Complete;
                // A pod that dials itself answers to more than one question.
                let new = found.into_iter().filter(|entry| !entries.contains(entry));
                let new: Vec<Entry> = new.collect();
                entries.extend(new);
            }
        }
        let order = |entry: &Entry| {
            let flow = self.names.tell(entry, 0);
            (flow.service, flow.frontend, flow.client)
        };
        entries.sort_by_cached_key(order);
        Ok((entries, complete))
    }

    fn tell(&self, entry: &Entry) -> Flow {
        let now = u64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(0);
        self.names.tell(entry, now)
    }
}

/// A line of a program's output.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum Told {
    /// It was there when the list was made.
    Listed(Flow),
    New(Flow),
    Update(Flow),
    End(Flow),
    /// Changes were lost, the n-th time; a list follows.
    Lost {
        times: u64,
    },
}

impl Told {
    fn of(change: Change, flow: Flow) -> Told {
        match change {
            Change::New => Told::New(flow),
            Change::Updated => Told::Update(flow),
            Change::Ended => Told::End(flow),
        }
    }

    fn line(&self, output: Output) -> String {
        if output == Output::Json {
            return serde_json::to_string(self).expect("flows are plain data") + "\n";
        }
        let (event, flow) = match self {
            Told::Lost { times } => {
                return format!(
                    "changes were lost, for the {times}. time: more happened than could be read; \
                     listing again\n"
                );
            }
            Told::Listed(flow) => ("listed", flow),
            Told::New(flow) => ("new", flow),
            Told::Update(flow) => ("update", flow),
            Told::End(flow) => ("end", flow),
        };
        columns(event, flow.cells())
    }
}

/// Columns of a width that fits IPv4: what comes next is not known yet.
fn columns(event: &str, cells: [impl AsRef<str>; 7]) -> String {
    let [protocol, client, frontend, service, endpoint, state, note] =
        cells.each_ref().map(AsRef::as_ref);
    let line = format!(
        "{event:<7} {protocol:<8} {client:<21} {frontend:<21} {service:<24} {endpoint:<21} {state:<11} {note}"
    );
    line.trim_end().to_owned() + "\n"
}

/// Prints what is there, and then every change.
fn follow(flows: &mut Flows, output: Output) -> Result<ExitCode, CommandError> {
    // Before the list: what happens meanwhile waits in the socket.
    let mut watch = Watch::open()?;
    let (mut live, mut lost) = (Live::default(), 0);
    let mut text = match output {
        Output::Text => columns("EVENT", Flow::COLUMNS),
        Output::Json => String::new(),
    };
    let entries = flows.list()?.0;
    text.extend(entries.iter().map(|e| Told::Listed(flows.tell(e)).line(output)));
    live.relist(entries);
    let mut next_list = Instant::now() + RELIST;
    while is_read(&text)? {
        text.clear();
        let left = next_list.saturating_duration_since(Instant::now());
        let heard = watch.next(left)?;
        for (change, entry) in heard.changes {
            if flows.names.selects(&flows.selector, &entry)
                && let Some((change, entry)) = live.hear(change, entry)
            {
                text += &Told::of(change, flows.tell(&entry)).line(output);
            }
        }
        if heard.lost {
            lost += 1;
            text += &Told::Lost { times: lost }.line(output);
        }
        if heard.lost || Instant::now() >= next_list {
            text += &relist(flows, &mut live, output)?;
            next_list = Instant::now() + RELIST;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Puts right what nobody was told of.
fn relist(flows: &mut Flows, live: &mut Live, output: Output) -> Result<String, CommandError> {
    flows.names = names()?;
    let (entries, complete) = flows.list()?;
    if !complete {
        return Ok(String::new());
    }
    let told = live.relist(entries);
    Ok(told.into_iter().map(|(what, e)| Told::of(what, flows.tell(&e)).line(output)).collect())
}
