//! `kubeweir render`.

use std::io::Write;
use std::process::ExitCode;

use super::{CommandError, setup, source};
use crate::cli::people::RenderArgs;
use crate::inspect::narrow::narrowed;
use crate::inspect::wanted::wanted;
use crate::model::{Families, Family, Kind, Object, ObjectName};
use crate::ruleset::render;

/// Prints what a node would get, on a kernel that can own tables.
pub fn run(args: &RenderArgs) -> Result<ExitCode, CommandError> {
    let service = args.service.as_deref().map(object_name).transpose()?;
    let setup = setup::read(&args.node)?;
    let objects = source::read(&args.source, &setup.node, setup.allow_external_ips())?;
    let wanted = wanted(&objects, setup.for_objects(&objects, None, Families::DUAL, true))?;
    let mut text = String::new();
    if let Some(service) = &service
        && Family::BOTH.iter().all(|f| wanted.engine.applied_placements(*f, service).is_empty())
    {
        tell(&format!("note: {service} has no rules: {}\n", why_not(&objects, service)));
    }
    for family in Family::BOTH {
        text.push_str(&match &service {
            Some(service) => render(&narrowed(&wanted, family, service)),
            None => render(&wanted.rulesets[family]),
        });
    }
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn why_not(objects: &[Object], service: &ObjectName) -> &'static str {
    let is_it = |object: &&Object| object.kind() == Kind::Service && object.name() == service;
    match objects.iter().find(is_it) {
        Some(_) => "it is headless, of type ExternalName, or not meant for this proxy",
        None => "there is no such Service",
    }
}

/// `namespace/name`, of the characters that names consist of.
pub fn object_name(text: &str) -> Result<ObjectName, CommandError> {
    let is_name = |part: &str| {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
        !part.is_empty() && part.chars().all(fits)
    };
    match text.split_once('/') {
        Some((namespace, name)) if is_name(namespace) && is_name(name) => {
            Ok(ObjectName::new(namespace, name))
        }
        _ => Err(CommandError::ObjectName(text.to_owned())),
    }
}

/// Writes to stdout; a reader that went away has seen enough.
pub fn print(text: &str) -> Result<(), CommandError> {
    is_read(text).map(drop)
}

/// The same; whether somebody still reads.
pub fn is_read(text: &str) -> Result<bool, CommandError> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(CommandError::Write(error)),
    }
}

/// Writes to stderr, whether or not somebody reads it.
pub fn tell(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// JSON for programs, which people can read too.
pub fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string_pretty(value).expect("answers are plain data") + "\n"
}

/// The same, written to stdout.
pub fn print_json(value: &impl serde::Serialize) -> Result<(), CommandError> {
    print(&json(value))
}
