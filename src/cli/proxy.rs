//! kube-proxy's own face: every flag of upstream, with pflag's habits.
//!
//! Place in the flow: [`super::parse`] hands over the arguments after the program's name; the
//! result goes to [`crate::config::complete()`]. Knows no configuration file.
//!
//! clap carries the table: types, defaults and help stand in one place, and value parsers are its
//! own. What pflag does differently is settled around it: `_` in names is rewritten first, a
//! bool takes its value only after `=`, every other flag takes the next argument even if it
//! starts with a hyphen, the last of repeated flags wins, and errors come out in pflag's words.

use std::collections::BTreeSet;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use super::Exit;
use crate::config::duration::GoDuration;
use crate::config::flags::{self, Flags};
use crate::config::v1alpha1::Quantity;
use crate::config::value::{GateMap, Vmodule};
use crate::config::version::VersionFlag;

/// The flags as given, with what upstream wants to know about the giving.
#[derive(Debug, Clone)]
pub struct Parsed {
    /// Values, defaults included.
    pub flags: Flags,
    /// Name and printed value of every flag, sorted by name: for `/flagz` and [`Parsed::banner`].
    pub shown: Vec<(String, String)>,
    /// For stderr before anything else: notices of deprecated flags (B-006).
    pub notices: String,
}

impl Parsed {
    /// `FLAG: --name="value"` for every flag: logged at start from verbosity 1 on (B-031).
    pub fn banner(&self) -> impl Iterator<Item = String> {
        self.shown.iter().map(|(name, value)| format!("FLAG: --{name}={value:?}"))
    }
}

/// The clap command of this face.
pub fn command() -> Command {
    let command = Command::new("kube-proxy")
        .disable_version_flag(true)
        .args_override_self(true)
        .max_term_width(100);
    Flags::augment_args(command)
        .about("Serves Services on this node: a kube-proxy that programs nftables over netlink")
        .mut_args(as_pflag)
}

/// Bools only take `=value`; everything else takes whatever comes next.
fn as_pflag(arg: Arg) -> Arg {
    if arg.get_id() == "help" {
        return arg;
    }
    let bare = match arg.get_default_values().first().and_then(|value| value.to_str()) {
        Some("true" | "false") => Some("true"),
        _ => None,
    };
    match bare {
        Some(value) => arg.num_args(0..=1).require_equals(true).default_missing_value(value),
        None => arg.num_args(1).allow_hyphen_values(true),
    }
    .hide_possible_values(true)
}

/// Parses the arguments after the program's name.
///
/// Errors: help, version and mistakes come back as what to print and the exit code (B-001..B-006).
pub fn parse(arguments: &[String]) -> Result<Parsed, Exit> {
    let mut command = command();
    let normalised = ["kube-proxy".to_owned()]
        .into_iter()
        .chain(normalise_names(arguments))
        .filter(|argument| !argument.is_empty());
    let matches = match command.try_get_matches_from_mut(normalised) {
        Ok(matches) => matches,
        Err(error) => return Err(refuse(&mut command, &error)),
    };
    let mut flags = match Flags::from_arg_matches(&matches) {
        Ok(flags) => flags,
        Err(error) => return Err(refuse(&mut command, &error)),
    };
    if let Some(stdout) = flags.version.output() {
        return Err(Exit { stdout, stderr: String::new(), code: 0 });
    }
    flags.given = given_flags(&command, &matches);
    Ok(Parsed { shown: shown(&command, &matches), notices: notices(&flags.given), flags })
}

/// Writes `_` in flag names as `-`, up to a `--` and not in values. The value of a flag that takes
/// the next argument is left alone.
fn normalise_names(arguments: &[String]) -> Vec<String> {
    let command = command();
    let takes_next = |name: &str| {
        command
            .get_arguments()
            .any(|arg| arg.get_long() == Some(name) && !arg.is_require_equals_set())
    };
    let mut normalised = Vec::with_capacity(arguments.len());
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let Some(flag) = argument.strip_prefix("--").filter(|flag| !flag.is_empty()) else {
            normalised.push(argument.clone());
            if argument == "--" {
                break;
            }
            continue;
        };
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name.replace('_', "-"), Some(value)),
            None => (flag.replace('_', "-"), None),
        };
        match value {
            Some(value) => normalised.push(format!("--{name}={value}")),
            None if takes_next(&name) => {
                // Joined, so that an empty value stays one.
                let value = rest.next();
                normalised.push(match value {
                    Some(value) => format!("--{name}={value}"),
                    None => format!("--{name}"),
                });
            }
            None => normalised.push(format!("--{name}")),
        }
    }
    normalised.extend(rest.cloned());
    normalised
}

/// clap's verdict in pflag's words.
fn refuse(command: &mut Command, error: &clap::Error) -> Exit {
    if error.kind() == ErrorKind::DisplayHelp {
        return Exit {
            stdout: command.render_long_help().to_string(),
            stderr: String::new(),
            code: 0,
        };
    }
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.clone(),
        _ => String::new(),
    };
    let argument = text(ContextKind::InvalidArg);
    let flag = argument.split([' ', '=', '[']).next().unwrap_or_default().to_owned();
    let message = match error.kind() {
        ErrorKind::UnknownArgument if !flag.starts_with('-') => {
            let stderr = format!("Error: unknown command {flag:?} for \"kube-proxy\"\n");
            return Exit { stdout: String::new(), stderr, code: 1 };
        }
        ErrorKind::UnknownArgument if flag.starts_with("--") => format!("unknown flag: {flag}"),
        ErrorKind::UnknownArgument => format!("unknown shorthand flag: {flag}"),
        ErrorKind::InvalidValue | ErrorKind::WrongNumberOfValues | ErrorKind::NoEquals
            if text(ContextKind::InvalidValue).is_empty() && error_source(error).is_empty() =>
        {
            format!("flag needs an argument: {flag}")
        }
        _ => format!(
            "invalid argument {:?} for \"{flag}\" flag: {}",
            text(ContextKind::InvalidValue),
            error_source(error)
        ),
    };
    let stderr = format!("{}\nError: {message}\n", command.render_long_help());
    Exit { stdout: String::new(), stderr, code: 1 }
}

fn error_source(error: &clap::Error) -> String {
    std::error::Error::source(error).map(ToString::to_string).unwrap_or_default()
}

fn given_flags(command: &Command, matches: &ArgMatches) -> BTreeSet<String> {
    let given =
        |arg: &&Arg| matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
    command.get_arguments().filter(given).filter_map(Arg::get_long).map(str::to_owned).collect()
}

/// Notices of the flags that upstream marks as deprecated.
fn notices(given: &BTreeSet<String>) -> String {
    ["healthz", "metrics"]
        .into_iter()
        .filter(|server| given.contains(&format!("{server}-port")))
        .map(|server| {
            format!(
                "Flag --{server}-port has been deprecated, This flag is deprecated and will be \
                 removed in a future release. Please use --{server}-bind-address instead.\n"
            )
        })
        .collect()
}

fn shown(command: &Command, matches: &ArgMatches) -> Vec<(String, String)> {
    let pair = |arg: &Arg| {
        let value = match arg.get_id().as_str() {
            "help" => "false".to_owned(),
            id => shown_value(matches, id),
        };
        arg.get_long().map(|name| (name.to_owned(), value))
    };
    let mut pairs: Vec<_> = command.get_arguments().filter_map(pair).collect();
    pairs.sort();
    pairs
}

/// A flag's value as pflag prints it, whatever its type.
fn shown_value(matches: &ArgMatches, id: &str) -> String {
    fn one<T: Clone + Send + Sync + ToString + 'static>(
        m: &ArgMatches,
        id: &str,
    ) -> Option<String> {
        m.try_get_one::<T>(id).ok().flatten().map(ToString::to_string)
    }
    let list = || {
        let values = matches.try_get_many::<String>(id).ok().flatten()?;
        Some(values.cloned().collect::<Vec<_>>().join(","))
    };
    if flags::LISTS.contains(&id) {
        return format!("[{}]", list().unwrap_or_default());
    }
    if id == flags::GATES {
        let maps = matches.try_get_many::<GateMap>(id).ok().flatten().unwrap_or_default();
        return GateMap::merge(maps).to_string();
    }
    one::<String>(matches, id)
        .or_else(|| one::<bool>(matches, id))
        .or_else(|| one::<i32>(matches, id))
        .or_else(|| one::<u32>(matches, id))
        .or_else(|| one::<f32>(matches, id))
        .or_else(|| one::<GoDuration>(matches, id))
        .or_else(|| one::<Vmodule>(matches, id))
        .or_else(|| one::<Quantity>(matches, id))
        .or_else(|| one::<VersionFlag>(matches, id))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
