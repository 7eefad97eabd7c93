//! The log: klog's text format or component-base's JSON, from `tracing` events.
//!
//! Place in the flow: `main` calls [`init`] once, after the configuration is complete and before it
//! is validated; everyone else uses `tracing`'s macros. Must not know what is logged.
//!
//! | tracing | klog | shown from verbosity |
//! | --- | --- | --- |
//! | `error!` | `E` | 0 |
//! | `warn!` | `W` | 0 |
//! | `info!` | `I` | 0 |
//! | `debug!` | `I` | 2 (libraries: 6) |
//! | `trace!` | `I` | 5 (libraries: 8) |
//! | any, with a field `v = n` | `I` for info and below | n |
//!
//! Fields become keys as they are written; spans add nothing. Lines are written whole and at once,
//! so there is nothing to flush. Lines go to stderr, and with split streams everything but errors
//! goes to stdout (Q-04: upstream's help says stdout, its program does stderr).

mod format;
#[cfg(test)]
mod tests;
mod verbosity;

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

use crate::config::v1alpha1::Logging;
use format::{Format, Header, Record, Severity};
use verbosity::Thresholds;

/// Target of events whose message is printed without quotes in the text format, for lines that
/// people search for as they are.
const UNSTRUCTURED: &str = concat!(env!("CARGO_CRATE_NAME"), "::unstructured");

/// Logs `FLAG: --name="value"` lines; shown from verbosity 1 on (B-031).
pub fn log_flags(lines: impl Iterator<Item = String>) {
    for line in lines {
        tracing::info!(target: UNSTRUCTURED, v = 1, "{line}");
    }
}

/// Changes the verbosity of a running process: `/debug/flags/v`.
#[derive(Debug, Clone)]
pub struct Handle(Arc<Thresholds>);

impl Handle {
    pub fn verbosity(&self) -> u32 {
        self.0.verbosity()
    }

    pub fn set_verbosity(&self, verbosity: u32) {
        self.0.set_verbosity(verbosity);
        tracing::callsite::rebuild_interest_cache();
    }
}

/// Logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    #[error("unsupported log format {0:?}")]
    Format(String),
    #[error("logging is set up twice")]
    Twice(#[from] tracing::subscriber::SetGlobalDefaultError),
}

/// Where lines go.
struct Streams {
    /// Errors, and everything else without split streams.
    error: Box<dyn Write + Send>,
    /// Everything but errors, with split streams.
    info: Option<Box<dyn Write + Send>>,
}

impl Streams {
    /// Writes one line. A log that cannot be written is lost: there is nowhere to say so.
    fn write(&mut self, severity: Severity, line: &str) {
        let stream = match &mut self.info {
            Some(info) if severity != Severity::Error => info,
            _ => &mut self.error,
        };
        let _ = stream.write_all(line.as_bytes()).and_then(|()| stream.flush());
    }
}

/// Turns events into lines.
struct KlogLayer {
    format: Format,
    thresholds: Arc<Thresholds>,
    streams: Mutex<Streams>,
    zone: TimeZone,
}

impl KlogLayer {
    fn new(logging: &Logging, streams: Streams) -> Result<(KlogLayer, Handle), LoggingError> {
        let format = Format::from_name(&logging.format)
            .ok_or_else(|| LoggingError::Format(logging.format.clone()))?;
        let thresholds = Arc::new(Thresholds::new(logging.verbosity, &logging.vmodule));
        let handle = Handle(Arc::clone(&thresholds));
        let layer = KlogLayer {
            format,
            thresholds,
            streams: Mutex::new(streams),
            zone: TimeZone::system(),
        };
        Ok((layer, handle))
    }
}

impl<S: Subscriber> Layer<S> for KlogLayer {
    /// Never cached as "always": the verbosity can change, and events with a field `v` decide for
    /// themselves.
    fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
        Interest::sometimes()
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        metadata.is_event() && self.thresholds.may_show(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.thresholds.max_level())
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        let content = format::read(event);
        let v = content.v.unwrap_or_else(|| verbosity::of_metadata(metadata));
        let severity = Severity::of(*metadata.level());
        if severity == Severity::Info && !self.thresholds.shows(v, metadata.file()) {
            return;
        }
        let header =
            Header { time: Timestamp::now().to_zoned(self.zone.clone()), pid: std::process::id() };
        let record = Record {
            severity,
            v,
            file: metadata.file().unwrap_or_default(),
            line: metadata.line().unwrap_or_default(),
            message: &content.message,
            quoted: metadata.target() != UNSTRUCTURED,
            fields: &content.fields,
        };
        let line = self.format.line(&header, &record);
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).write(severity, &line);
    }
}

/// Sets up the process's log.
///
/// Errors: an unknown format, or a second call.
pub fn init(logging: &Logging) -> Result<Handle, LoggingError> {
    let routing = match logging.format.as_str() {
        "json" => &logging.options.json,
        _ => &logging.options.text,
    };
    let info: Option<Box<dyn Write + Send>> =
        if routing.split_stream { Some(Box::new(io::stdout())) } else { None };
    let (layer, handle) = KlogLayer::new(logging, Streams { error: Box::new(io::stderr()), info })?;
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layer))?;
    Ok(handle)
}
