//! `kubeweir explain`.

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

use super::render::{print, print_json, service_name};
use super::{CommandError, source};
use crate::cli::people::{ExplainArgs, Output};
use crate::config::address::{parse_ip, parse_ip_port};
use crate::inspect::explain::{Question, explain};
use crate::model::{Family, Object, Protocol, Service};
use crate::netlink::NetlinkKernel;
use crate::node::{addresses, route};
use crate::ruleset::{Environment, Ruleset};
use crate::transaction::Kernel;

/// A port that no service port is: only the source address is of interest.
const SOURCE_PORT: u16 = 0;

/// Walks the kernel's table and prints what becomes of the packet.
pub fn run(args: &ExplainArgs) -> Result<ExitCode, CommandError> {
    let from = parse_ip(&args.from).ok_or_else(|| endpoint(&args.from, NO_SOURCE))?;
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
        None => Some(super::block_on(route::interface_towards(from))??.unwrap_or_default()),
    };
    let mut ruleset = NetlinkKernel::open()?.dump(Family::of(&from))?;
    forget_expired(&mut ruleset);
    let question = Question { from: SocketAddr::new(from, SOURCE_PORT), to, protocol, input };
    let explanation = explain(&ruleset, &question, &node);
    match args.output {
        Output::Text => print(&explanation.to_string())?,
        Output::Json => print_json(&explanation)?,
    }
    Ok(ExitCode::SUCCESS)
}

const NO_SOURCE: &str =
    "the source has to be an IP address (kubectl get pod -o wide shows a pod's)";

fn endpoint(text: &str, reason: &str) -> CommandError {
    CommandError::Endpoint { text: text.to_owned(), reason: reason.to_owned() }
}

/// The kernel removes expired elements now and then; packets do not find them.
fn forget_expired(ruleset: &mut Ruleset) {
    for (_, elements) in ruleset.sets.values_mut() {
        elements.retain(|_, element| element.lifetime.is_none_or(|life| life.expires > 0));
    }
}

/// `ADDRESS:PORT[/PROTOCOL]`, or `NAMESPACE/SERVICE:PORT[/PROTOCOL]` with a source of objects.
fn destination(args: &ExplainArgs, family: Family) -> Result<(SocketAddr, Protocol), CommandError> {
    let (rest, protocol) = match args.to.rsplit_once('/') {
        Some((rest, name)) => match Protocol::from_api(&name.to_uppercase()) {
            Some(protocol) => (rest, Some(protocol)),
            None => (args.to.as_str(), None),
        },
        None => (args.to.as_str(), None),
    };
    if let Some(address) = parse_ip_port(rest) {
        return Ok((address, protocol.unwrap_or(Protocol::Tcp)));
    }
    let (name, port) = rest
        .rsplit_once(':')
        .filter(|(name, _)| name.contains('/'))
        .ok_or_else(|| endpoint(&args.to, "neither ADDRESS:PORT nor NAMESPACE/SERVICE:PORT"))?;
    if !source::is_named(&args.source) {
        return Err(endpoint(&args.to, "names need -f or --kubeconfig to look them up"));
    }
    let name = service_name(name)?;
    let objects = source::read(&args.source, "", true)?;
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
    Ok((SocketAddr::new(IpAddr::to_canonical(&ip), port), protocol))
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
