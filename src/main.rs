//! The `kubeweir` binary: parse, start, exit code. The only place with `anyhow`.

// They panic when nobody reads.
#![deny(clippy::print_stdout, clippy::print_stderr)]

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use kubeweir::agent::{self, Ended, Launch, Source};
use kubeweir::cli::people::Command;
use kubeweir::cli::proxy::Parsed;
use kubeweir::config::Config;
use kubeweir::text::{tell, with_causes};
use kubeweir::{cli, config, logging};
use tracing::error;

/// What becomes of kube-proxy when nobody reads what it prints, as a shell sees it.
const DIED_OF_SIGPIPE: u8 = 141;

fn main() -> ExitCode {
    let arguments = std::env::args_os().map(|argument| argument.to_string_lossy().into_owned());
    match cli::parse(arguments) {
        Ok(cli::Command::Proxy(parsed)) => be_agent(&parsed, Source::Api),
        Ok(cli::Command::People(command)) => match *command {
            Command::Run(run) => match run.as_agent() {
                Ok(parsed) => be_agent(&parsed, Source::Manifests(run.manifests)),
                Err(exit) => leave(&exit),
            },
            command => kubeweir::command::run(&command),
        },
        Err(exit) => leave(&exit),
    }
}

fn leave(exit: &cli::Exit) -> ExitCode {
    tell(&exit.stderr);
    match std::io::stdout().write_all(exit.stdout.as_bytes()) {
        Ok(()) => ExitCode::from(exit.code),
        Err(reason) if reason.kind() == ErrorKind::BrokenPipe => ExitCode::from(DIED_OF_SIGPIPE),
        Err(reason) => {
            tell(&format!("error: writing to stdout: {reason}\n"));
            ExitCode::FAILURE
        }
    }
}

/// Phases and messages of section 1.1: before logging is set up, plain text; after that, records.
fn be_agent(parsed: &Parsed, source: Source) -> ExitCode {
    tell(&parsed.notices);
    match start(parsed, source) {
        Ok(code) => code,
        Err(reason) => {
            // Before the configuration is complete nothing is logged yet; later this has no effect.
            let text =
                config::v1alpha1::Logging { format: "text".to_owned(), ..Default::default() };
            let _ = logging::init(&text);
            error!(err = format!("{reason:#}"), "command failed");
            ExitCode::FAILURE
        }
    }
}

fn start(parsed: &Parsed, source: Source) -> anyhow::Result<ExitCode> {
    let flags = &parsed.flags;
    let file = (!flags.config.is_empty()).then(|| PathBuf::from(&flags.config));
    let (config, log) = configure(parsed, file.as_deref())?;
    if !flags.write_config_to.is_empty() {
        let text = config::write_config(&config.object).context("encoding the configuration")?;
        std::fs::write(&flags.write_config_to, text)
            .with_context(|| format!("writing {}", flags.write_config_to))?;
        return Ok(ExitCode::SUCCESS);
    }
    if flags.cleanup {
        anyhow::ensure!(agent::clean_up(), "encountered an error while cleaning");
        return Ok(ExitCode::SUCCESS);
    }
    // Threads inherit what this one has.
    agent::privilege::settle(&config, flags.init_only);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let launch = Launch {
        config,
        source,
        flags: parsed.shown.clone(),
        version: flags.version.reported().to_owned(),
        init_only: flags.init_only,
        config_file: file,
        log,
    };
    let outcome = runtime.block_on(run(launch));
    // Servers and watches end with the process.
    runtime.shutdown_background();
    outcome
}

/// From flags and file to the configuration that is carried out, with logging as it says.
fn configure(parsed: &Parsed, file: Option<&Path>) -> anyhow::Result<(Config, logging::Handle)> {
    let text = match file {
        Some(path) => Some(
            std::fs::read_to_string(path)
                .with_context(|| format!("failed complete: reading {}", path.display()))?,
        ),
        None => None,
    };
    let completed = config::complete(&parsed.flags, text.as_deref()).context("failed complete")?;
    let log = logging::init(&completed.object.logging).context("initialize logging")?;
    logging::log_flags(parsed.banner());
    let config = config::resolve(completed).context("failed validate")?;
    for note in &config.notes {
        note.log();
    }
    Ok((config, log))
}

async fn run(launch: Launch) -> anyhow::Result<ExitCode> {
    match agent::run(launch).await {
        Ok(Ended::Prepared) => Ok(ExitCode::SUCCESS),
        // As a shell sees who died of it: 128 and the signal's number, 143 or 130.
        Ok(Ended::Signalled(signal)) => {
            Ok(ExitCode::from(128 + u8::try_from(signal.as_raw_value()).unwrap_or(0)))
        }
        Err(reason) => {
            error!(err = with_causes(&reason), "Error running ProxyServer");
            Err(reason.into())
        }
    }
}
