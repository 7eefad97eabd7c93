//! `kubeweir render`.

use std::process::ExitCode;

use super::input::{self, object_name};
use super::{CommandError, print};
use crate::cli::people::RenderArgs;
use crate::inspect::wanted::{narrowed, wanted};
use crate::model::{Families, Family, Kind, Object, ObjectName};
use crate::ruleset::render;
use crate::text::tell;

/// Prints what a node would get, on a kernel that can own tables.
pub fn run(args: &RenderArgs) -> Result<ExitCode, CommandError> {
    let service = args.service.as_deref().map(object_name).transpose()?;
    let setup = input::setup(&args.node, &args.source)?;
    let objects = input::objects(&args.source, &setup.node, setup.allow_external_ips())?;
    let (node, hints) = setup.for_objects(&objects, None, Families::DUAL, true);
    input::tell_hints(&hints);
    let wanted = wanted(&objects, node)?;
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
