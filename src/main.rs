//! The `kubeweir` binary: parse, start, exit code. The only place with `anyhow`.

use std::process::ExitCode;

use anyhow::Context;
use kubeweir::agent::{self, Launch, Source};
use kubeweir::cli::people::Command;
use kubeweir::cli::proxy::Parsed;
use kubeweir::{cli, config, logging};
use tracing::error;

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
    print!("{}", exit.stdout);
    eprint!("{}", exit.stderr);
    ExitCode::from(exit.code)
}

/// Phases and messages of section 1.1: before logging is set up, plain text; after that, records.
fn be_agent(parsed: &Parsed, source: Source) -> ExitCode {
    eprint!("{}", parsed.notices);
    match start(parsed, source) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            // Before the configuration is complete nothing is logged yet; later this has no effect.
            let _ = logging::init(&config::v1alpha1::Logging::default());
            error!(err = format!("{reason:#}"), "command failed");
            ExitCode::FAILURE
        }
    }
}

fn start(parsed: &Parsed, source: Source) -> anyhow::Result<()> {
    let flags = &parsed.flags;
    let file = (!flags.config.is_empty()).then(|| std::path::PathBuf::from(&flags.config));
    let text = match &file {
        Some(path) => Some(
            std::fs::read_to_string(path)
                .with_context(|| format!("failed complete: reading {}", path.display()))?,
        ),
        None => None,
    };
    let completed = config::complete(parsed, text.as_deref()).context("failed complete")?;
    let log = logging::init(&completed.object.logging).context("initialize logging")?;
    logging::log_flags(parsed.banner());
    let config = config::resolve(completed).context("failed validate")?;
    for note in &config.notes {
        note.log();
    }
    if !flags.write_config_to.is_empty() {
        let text = config::write_config(&config.object).context("encoding the configuration")?;
        return std::fs::write(&flags.write_config_to, text)
            .with_context(|| format!("writing {}", flags.write_config_to));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the runtime")?;
    if flags.cleanup {
        anyhow::ensure!(runtime.block_on(agent::clean_up()), "encountered an error while cleaning");
        return Ok(());
    }
    let launch = Launch {
        config,
        source,
        flags: parsed.shown.clone(),
        version: flags.version.reported().to_owned(),
        init_only: flags.init_only,
        config_file: file,
        log,
    };
    let outcome = runtime.block_on(agent::run(launch));
    if let Err(reason) = &outcome {
        error!(err = agent::with_causes(reason), "Error running ProxyServer");
    }
    // Servers and watches end with the process.
    runtime.shutdown_background();
    outcome.map_err(Into::into)
}
