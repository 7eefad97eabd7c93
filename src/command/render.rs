//! `kubeweir render`.

use std::io::Write;
use std::process::ExitCode;

use super::{CommandError, setup, source};
use crate::cli::people::RenderArgs;
use crate::inspect::narrow::narrowed;
use crate::inspect::wanted::wanted;
use crate::model::{Families, Family, ObjectName};
use crate::ruleset::render;

/// Prints what a node would get, on a kernel that can own tables.
pub fn run(args: &RenderArgs) -> Result<ExitCode, CommandError> {
    let service = args.service.as_deref().map(service_name).transpose()?;
    let setup = setup::read(&args.node)?;
    let objects = source::read(&args.source, &setup.node, setup.allow_external_ips())?;
    let wanted = wanted(&objects, setup.for_objects(&objects, None, Families::DUAL, true))?;
    let mut text = String::new();
    for family in Family::BOTH {
        text.push_str(&match &service {
            Some(service) => render(&narrowed(&wanted, family, service)),
            None => render(&wanted.rulesets[family]),
        });
    }
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// `namespace/name`.
pub fn service_name(text: &str) -> Result<ObjectName, CommandError> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
            Ok(ObjectName::new(namespace, name))
        }
        _ => Err(CommandError::ServiceName(text.to_owned())),
    }
}

/// Writes to stdout; a reader that went away has seen enough.
pub fn print(text: &str) -> Result<(), CommandError> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(CommandError::Write(error))
        }
        _ => Ok(()),
    }
}

/// The same as JSON.
pub fn print_json(value: &impl serde::Serialize) -> Result<(), CommandError> {
    let text = serde_json::to_string_pretty(value).expect("answers are plain data");
    print(&(text + "\n"))
}
