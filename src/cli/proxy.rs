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

// The agent's flags, as a user writes them.
#[cfg(test)]
mod tests {
    use super::*;

    fn parse_line(arguments: &[&str]) -> Result<Parsed, Exit> {
        parse(&arguments.iter().map(|argument| (*argument).to_owned()).collect::<Vec<_>>())
    }

    fn flags(arguments: &[&str]) -> Flags {
        parse_line(arguments).unwrap_or_else(|exit| panic!("{arguments:?}: {}", exit.stderr)).flags
    }

    fn last_line(text: &str) -> &str {
        text.trim_end().lines().last().unwrap_or_default()
    }

    // B-001, B-004: unknown flags, klog's among them, print usage and an error, and exit 1.
    #[test]
    fn unknown_flags() {
        for flag in [
            "--bogus",
            "--logtostderr",
            "--alsologtostderr=true",
            "--log-dir=/x",
            "--udp-timeout=1s",
        ] {
            let exit = parse_line(&[flag]).expect_err(flag);
            let name = flag.split('=').next().unwrap_or_default();
            assert_eq!(exit.code, 1, "{flag}");
            assert_eq!(exit.stdout, "", "{flag}");
            assert!(exit.stderr.contains("Usage:"), "{flag}");
            assert_eq!(last_line(&exit.stderr), format!("Error: unknown flag: {name}"));
        }
        let exit = parse_line(&["-x"]).expect_err("-x");
        assert!(last_line(&exit.stderr).starts_with("Error: unknown shorthand flag: "), "{exit:?}");
    }

    // B-002: a positional argument exits 1 without usage; empty ones are tolerated.
    #[test]
    fn positional_arguments() {
        for arguments in [&["serve"][..], &["--cleanup", "true"], &["--", "x"]] {
            let exit = parse_line(arguments).expect_err("positional");
            assert_eq!((exit.code, exit.stdout.as_str()), (1, ""), "{arguments:?}");
            assert!(!exit.stderr.contains("Usage:"), "{arguments:?}: {}", exit.stderr);
            assert!(exit.stderr.starts_with("Error: "), "{arguments:?}: {}", exit.stderr);
        }
        assert!(parse_line(&["", "--cleanup", ""]).is_ok());
    }

    // B-003: every flag with its default, as the banner prints it. The two minimum sync periods are
    // zero, a named deviation.
    #[test]
    fn every_flag_and_its_default() {
        let parsed = parse_line(&[]).expect("defaults");
        let expected = r#"
        bind-address="0.0.0.0" bind-address-hard-fail="false"
        boot-id-file="/proc/sys/kernel/random/boot_id" cleanup="false" cluster-cidr="" config=""
        config-sync-period="15m0s" conntrack-max-per-core="32768" conntrack-min="131072"
        conntrack-tcp-be-liberal="false" conntrack-tcp-timeout-close-wait="1h0m0s"
        conntrack-tcp-timeout-established="24h0m0s" conntrack-udp-timeout="0s"
        conntrack-udp-timeout-stream="0s" detect-local-mode="" drop-invalid="false"
        end-connections-after="0s" feature-gates=""
        healthz-bind-address="0.0.0.0:10256" healthz-port="10256" help="false"
        hostname-override="" init-only="false" iptables-localhost-nodeports="true"
        iptables-masquerade-bit="14" iptables-min-sync-period="0s" iptables-sync-period="30s"
        ipvs-exclude-cidrs="[]" ipvs-min-sync-period="0s" ipvs-scheduler=""
        ipvs-strict-arp="false" ipvs-sync-period="30s" ipvs-tcp-timeout="0s"
        ipvs-tcpfin-timeout="0s" ipvs-udp-timeout="0s" kube-api-burst="10"
        kube-api-content-type="application/vnd.kubernetes.protobuf" kube-api-qps="5"
        kubeconfig="" log-flush-frequency="5s" log-json-info-buffer-size="0"
        log-json-split-stream="false" log-text-info-buffer-size="0"
        log-text-split-stream="false" logging-format="text"
        machine-id-file="/etc/machine-id,/var/lib/dbus/machine-id" masquerade-all="false"
        master="" metrics-bind-address="127.0.0.1:10249" metrics-port="10249"
        nodeport-addresses="[]" oom-score-adj="-999" pod-bridge-interface=""
        pod-interface-name-prefix="" profiling="false" proxy-mode=""
        service-counters="false" show-hidden-metrics-for-version="" table-ownership="true" v="0"
        version="false" vmodule="" write-config-to=""
    "#;
        let expected: Vec<String> =
            expected.split_whitespace().map(|flag| format!("FLAG: --{flag}")).collect();
        assert_eq!(parsed.banner().collect::<Vec<_>>(), expected);
        assert!(parsed.flags.given.is_empty());
        assert_eq!(parsed.notices, "");
    }

    // B-003: every flag is accepted with `-` and `_`, and its type is checked.
    #[test]
    fn every_flag_takes_its_type() {
        let by_type: [(&str, &str, &[&str]); 5] = [
            (
                "true",
                "maybe",
                &[
                    "cleanup",
                    "init-only",
                    "bind-address-hard-fail",
                    "profiling",
                    "masquerade-all",
                    "iptables-localhost-nodeports",
                    "ipvs-strict-arp",
                    "conntrack-tcp-be-liberal",
                    "log-text-split-stream",
                    "log-json-split-stream",
                ],
            ),
            (
                "7",
                "x",
                &[
                    "healthz-port",
                    "metrics-port",
                    "kube-api-burst",
                    "kube-api-qps",
                    "iptables-masquerade-bit",
                    "oom-score-adj",
                    "conntrack-max-per-core",
                    "conntrack-min",
                    "v",
                ],
            ),
            (
                "1m30s",
                "30",
                &[
                    "iptables-sync-period",
                    "iptables-min-sync-period",
                    "ipvs-sync-period",
                    "ipvs-min-sync-period",
                    "ipvs-tcp-timeout",
                    "ipvs-tcpfin-timeout",
                    "ipvs-udp-timeout",
                    "conntrack-tcp-timeout-established",
                    "conntrack-tcp-timeout-close-wait",
                    "conntrack-udp-timeout",
                    "conntrack-udp-timeout-stream",
                    "config-sync-period",
                    "log-flush-frequency",
                ],
            ),
            ("1.2.3.4", "xx", &["bind-address", "healthz-bind-address", "metrics-bind-address"]),
            ("64Ki", "x", &["log-text-info-buffer-size", "log-json-info-buffer-size"]),
        ];
        for (good, bad, names) in by_type {
            for name in names {
                let parsed =
                    parse_line(&[&format!("--{}={good}", name.replace('-', "_"))]).expect(name);
                assert!(parsed.flags.given.contains(*name), "{name}");
                let shown = format!("FLAG: --{name}={good:?}");
                assert!(parsed.banner().any(|line| line == shown), "{name}: {:?}", parsed.shown);
                let exit = parse_line(&[&format!("--{name}={bad}")]).expect_err(name);
                let start = format!("Error: invalid argument {bad:?} for \"--{name}\" flag: ");
                assert!(
                    last_line(&exit.stderr).starts_with(&start),
                    "{name}: {}",
                    last_line(&exit.stderr)
                );
                assert_eq!(exit.code, 1, "{name}");
            }
        }
    }

    #[test]
    fn values_are_taken_as_pflag_takes_them() {
        assert_eq!(flags(&["--oom-score-adj", "-5"]).oom_score_adj, -5);
        assert_eq!(flags(&["--config", "--cleanup"]).config, "--cleanup");
        assert_eq!(flags(&["--cluster_cidr", "a_b"]).cluster_cidr, "a_b");
        for arguments in [&["-v", "4"][..], &["-v=4"], &["-v4"], &["--v", "4"], &["--v=4"]] {
            assert_eq!(flags(arguments).v, 4, "{arguments:?}");
        }
        for (text, expected) in
            [("t", true), ("T", true), ("TRUE", true), ("1", true), ("F", false), ("0", false)]
        {
            assert_eq!(flags(&[&format!("--profiling={text}")]).profiling, expected, "{text}");
        }
        assert!(flags(&["--profiling"]).profiling);
        assert!(parse_line(&["--profiling="]).is_err());
        assert_eq!(flags(&["--v=1", "--v=2"]).v, 2, "the last one wins");
        let lists =
            flags(&["--nodeport-addresses=a,b", "--nodeport_addresses", "c"]).nodeport_addresses;
        assert_eq!(lists, ["a", "b", "c"]);
        assert_eq!(flags(&["--config", ""]).config, "");
        let exit = parse_line(&["--config"]).expect_err("no value");
        assert_eq!(last_line(&exit.stderr), "Error: flag needs an argument: --config");
    }

    // B-005: the version goes to stdout and needs nothing else.
    #[test]
    fn version() {
        for arguments in [&["--version"][..], &["--version=true"], &["--config=/none", "--version"]]
        {
            let exit = parse_line(arguments).expect_err("exits");
            assert_eq!((exit.code, exit.stderr.as_str()), (0, ""), "{arguments:?}");
            assert!(exit.stdout.starts_with("Kubernetes v1.37."), "{arguments:?}: {}", exit.stdout);
        }
        assert!(
            parse_line(&["--version=raw"]).expect_err("exits").stdout.starts_with("version.Info{")
        );
        assert_eq!(flags(&["--version=v1.37.0-x"]).version.reported(), "v1.37.0-x");
        assert_eq!(parse_line(&["--version=v1.2.3"]).expect_err("other release").code, 1);
        assert_eq!(parse_line(&["--version=maybe"]).expect_err("no bool").code, 1);
    }

    // B-006: the deprecated ports work, say so, and are hidden.
    #[test]
    fn deprecated_ports() {
        let parsed = parse_line(&["--healthz-port=1", "--metrics_port", "2"]).expect("accepted");
        assert_eq!((parsed.flags.healthz_port, parsed.flags.metrics_port), (1, 2));
        let notices: Vec<_> = parsed.notices.lines().collect();
        assert_eq!(notices.len(), 2, "{notices:?}");
        assert!(notices[0].starts_with("Flag --healthz-port has been deprecated, "), "{notices:?}");
        assert!(notices[1].starts_with("Flag --metrics-port has been deprecated, "), "{notices:?}");
        let help = parse_line(&["--help"]).expect_err("help");
        assert_eq!((help.code, help.stderr.as_str()), (0, ""));
        assert!(help.stdout.contains("--healthz-bind-address"), "{}", help.stdout);
        assert!(!help.stdout.contains("--healthz-port"), "{}", help.stdout);
    }

    // B-031: given values are shown, in Go's form.
    #[test]
    fn banner_shows_given_values() {
        let parsed = parse_line(&[
            "--config-sync-period=90s",
            "--feature-gates=B=false,A=false",
            "--feature-gates=B=true",
            "--nodeport-addresses=a,b",
        ])
        .expect("valid");
        for line in [
            "FLAG: --config-sync-period=\"1m30s\"",
            "FLAG: --feature-gates=\"A=false,B=true\"",
            "FLAG: --nodeport-addresses=\"[a,b]\"",
        ] {
            assert!(parsed.banner().any(|shown| shown == line), "{line}: {:?}", parsed.shown);
        }
    }
}
