//! `kubeweir explain`.

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use super::input::{self, object_name};
use super::{CommandError, print, print_json};
use crate::cli::people::{ExplainArgs, Output};
use crate::inspect::explain::{Explainer, Explanation, Question, Verdict};
use crate::kernel::Kernel;
use crate::model::address::{parse_destination, parse_ip, split_protocol};
use crate::model::{Family, Object, Protocol, Service};
use crate::netlink::NetlinkKernel;
use crate::node::addresses;
use crate::ruleset::{Environment, Ruleset};
use crate::text::red;

/// A port that no service port is: only the source address is of interest.
const SOURCE_PORT: u16 = 0;

/// Walks the kernel's table and prints what becomes of the packet.
pub fn run(args: &ExplainArgs) -> Result<ExitCode, CommandError> {
    let family = parse_destination(&args.to).map(|(to, _)| Family::of(&to.ip()));
    let from = origin(args, family)?;
    let (to, protocol) = destination(args, Family::of(&from))?;
    if Family::of(&from) != Family::of(&to.ip()) {
        return Err(endpoint(&args.to, "not of the source's address family"));
    }
    let node = Environment {
        local_addresses: super::block_on(addresses::read())??.0.into_iter().collect(),
    };
    let input = match &args.interface {
        Some(name) => Some(name.clone()),
        None if node.is_local(from) => None,
        None => Some(super::block_on(addresses::interface_towards(from))??.unwrap_or_default()),
    };
    let mut ruleset = NetlinkKernel::open()?.dump(Family::of(&from))?;
    forget_expired(&mut ruleset);
    let question = Question { from: SocketAddr::new(from, SOURCE_PORT), to, protocol, input };
    let mut explanation = Explainer::new(ruleset).explain(&question, &node);
    if let Some(count) = &mut explanation.count {
        count.last_minute = in_the_last_minute(question.to, &count.counter);
    }
    match args.output {
        Output::Text => print(&coloured(&explanation))?,
        Output::Json => print_json(&explanation)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What the agent that runs here saw of a counter; `None` without one, or if it does not answer.
fn in_the_last_minute(to: SocketAddr, counter: &str) -> Option<u64> {
    let address = input::running().ok()?.metrics();
    let status = super::block_on(super::agent::fetch(&address)).ok()?.ok()?;
    let family = status.families.get(&Family::of(&to.ip()).to_string())?;
    Some(family.dropped.get(counter)?.last_minute)
}

/// The first line stands out if the connection fails.
fn coloured(explanation: &Explanation) -> String {
    let text = explanation.to_string();
    match (explanation.verdict, text.split_once('\n')) {
        (Verdict::Refused | Verdict::Dropped, Some((first, rest))) => {
            format!("{}\n{rest}", red(first))
        }
        _ => text,
    }
}

/// An address, or that of a pod: of the destination's family, where that is known.
fn origin(args: &ExplainArgs, family: Option<Family>) -> Result<IpAddr, CommandError> {
    let text = &args.from;
    if let Some(address) = parse_ip(text) {
        return Ok(address);
    }
    if !text.contains('/') {
        return Err(endpoint(text, "neither an address nor NAMESPACE/POD"));
    }
    if !input::is_named(&args.source) {
        return Err(endpoint(text, UNNAMED));
    }
    let addresses = input::pod_addresses_of(&args.source, &object_name(text)?)?
        .ok_or_else(|| endpoint(text, "there is no such pod"))?;
    let fits = |ip: &IpAddr| family.is_none_or(|family| family == Family::of(ip));
    addresses
        .into_iter()
        .find(fits)
        .ok_or_else(|| endpoint(text, "the pod has no address of the destination's family"))
}

const UNNAMED: &str = "names need -f or --kubeconfig to look them up";

fn endpoint(text: &str, reason: &str) -> CommandError {
    CommandError::Endpoint { text: text.to_owned(), reason: reason.to_owned() }
}

/// The kernel removes expired elements now and then; packets do not find them.
fn forget_expired(ruleset: &mut Ruleset) {
    for (_, elements) in ruleset.sets.values_mut() {
        elements.retain(|_, element| element.lifetime.is_none_or(|life| life.expires > 0));
    }
}

/// An address, or `NAMESPACE/SERVICE:PORT[/PROTOCOL]` with a source of objects.
fn destination(args: &ExplainArgs, family: Family) -> Result<(SocketAddr, Protocol), CommandError> {
    if let Some(known) = parse_destination(&args.to) {
        return Ok(known);
    }
    let (rest, protocol) = split_protocol(&args.to);
    let (name, port) = rest
        .rsplit_once(':')
        .filter(|(name, _)| name.contains('/'))
        .ok_or_else(|| endpoint(&args.to, "neither ADDRESS:PORT nor NAMESPACE/SERVICE:PORT"))?;
    if !input::is_named(&args.source) {
        return Err(endpoint(&args.to, UNNAMED));
    }
    let name = object_name(name)?;
    let objects = input::objects(&args.source, "", true)?;
    let service = objects.iter().find_map(|object| match object {
        Object::Service(service) if service.name == name => Some(service),
        _ => None,
    });
    let service = service.ok_or_else(|| endpoint(&args.to, "there is no such Service"))?;
    let ip = service
        .cluster_ip(family)
        .ok_or_else(|| endpoint(&args.to, "the Service has no ClusterIP of the source's family"))?;
    let (port, protocol) = service_port(service, port, protocol)
        .ok_or_else(|| endpoint(&args.to, "the Service has no such port"))?;
    Ok((SocketAddr::new(ip, port), protocol))
}

/// By name or by number.
fn service_port(
    service: &Service,
    text: &str,
    protocol: Option<Protocol>,
) -> Option<(u16, Protocol)> {
    let fits = |port: &&crate::model::ServicePort| {
        (*port.name == *text || port.port.to_string() == text)
            && protocol.is_none_or(|protocol| protocol == port.protocol)
    };
    service.ports.iter().find(fits).map(|port| (port.port, port.protocol))
}
