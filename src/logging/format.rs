//! One record as one line, in klog's text format or as JSON. Pure: time and pid are passed in.

use std::error::Error;
use std::fmt::{Debug, Write};

use jiff::Zoned;
use serde_json::{Number, json};
use tracing::field::{Field, Visit};
use tracing::{Event, Level};

/// Form of the lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// klog's text.
    Text,
    /// One JSON object a line.
    Json,
}

/// How serious a record is; klog's letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Severity {
    /// `I`.
    Info,
    /// `W`.
    Warning,
    /// `E`.
    Error,
}

impl Severity {
    pub(super) fn of(level: Level) -> Severity {
        match level {
            Level::ERROR => Severity::Error,
            Level::WARN => Severity::Warning,
            _ => Severity::Info,
        }
    }

    fn letter(self) -> char {
        match self {
            Severity::Info => 'I',
            Severity::Warning => 'W',
            Severity::Error => 'E',
        }
    }
}

/// When and by whom.
#[derive(Debug, Clone)]
pub(super) struct Header {
    pub time: Zoned,
    pub pid: u32,
}

/// What is logged.
#[derive(Debug)]
pub(super) struct Record<'a> {
    pub severity: Severity,
    pub v: u32,
    pub file: &'a str,
    pub line: u32,
    pub message: &'a str,
    /// Whether the text format puts the message in quotes.
    pub quoted: bool,
    pub fields: &'a [(&'static str, Value)],
}

impl Record<'_> {
    /// The source file without its directories.
    fn file_name(&self) -> &str {
        self.file.rsplit('/').next().unwrap_or(self.file)
    }
}

impl Format {
    /// From `logging.format`.
    pub(super) fn from_name(name: &str) -> Option<Format> {
        match name {
            "text" => Some(Format::Text),
            "json" => Some(Format::Json),
            _ => None,
        }
    }

    /// The line, its end included.
    pub(super) fn line(self, header: &Header, record: &Record<'_>) -> String {
        match self {
            Format::Text => text(header, record),
            Format::Json => json(header, record),
        }
    }
}

/// `I1121 03:52:03.123456    1234 file.rs:12] "message" key="value"`.
fn text(header: &Header, record: &Record<'_>) -> String {
    let time = &header.time;
    let mut line = format!(
        "{}{:02}{:02} {:02}:{:02}:{:02}.{:06} {:>7} {}:{}] {}",
        record.severity.letter(),
        time.month(),
        time.day(),
        time.hour(),
        time.minute(),
        time.second(),
        time.subsec_nanosecond() / 1_000,
        header.pid,
        record.file_name(),
        record.line,
        if record.quoted { quoted(record.message) } else { record.message.to_owned() },
    );
    for (key, value) in record.fields {
        let value = match value {
            Value::Text(text) => quoted(text),
            Value::Integer(number) => number.to_string(),
            Value::Float(number) => number.to_string(),
            Value::Bool(value) => value.to_string(),
        };
        // Writing to a String cannot fail.
        let _ = write!(line, " {key}={value}");
    }
    line.push('\n');
    line
}

/// In quotes, on one line, printable characters as they are: Go's `%q`.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() => {
                // Writing to a String cannot fail.
                let _ = write!(quoted, "\\x{:02x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// `ts` in milliseconds, `caller`, `msg`, `v` unless it is an error, and the fields, in that order.
fn json(header: &Header, record: &Record<'_>) -> String {
    // Microseconds as f64 are exact until the year 2255.
    let milliseconds = header.time.timestamp().as_microsecond() as f64 / 1_000.0;
    let mut pairs = vec![
        ("ts", json!(milliseconds)),
        ("caller", json!(format!("{}:{}", record.file_name(), record.line))),
        ("msg", json!(record.message)),
    ];
    if record.severity != Severity::Error {
        pairs.push(("v", json!(record.v)));
    }
    pairs.extend(record.fields.iter().map(|(key, value)| (*key, json_value(value))));
    let texts = pairs.iter().map(|(key, value)| format!("{}:{value}", json!(key)));
    format!("{{{}}}\n", texts.collect::<Vec<_>>().join(","))
}

fn json_value(value: &Value) -> serde_json::Value {
    match value {
        Value::Text(text) => json!(text),
        Value::Integer(number) => Number::from_i128(*number)
            .map_or_else(|| json!(number.to_string()), serde_json::Value::Number),
        Value::Float(number) => json!(number),
        Value::Bool(value) => json!(value),
    }
}

// What a `tracing` event holds: message, keys and values, explicit verbosity.

/// A value of a key.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    /// Printed in quotes.
    Text(String),
    /// Printed as it is.
    Integer(i128),
    /// Printed as it is.
    Float(f64),
    /// Printed as it is.
    Bool(bool),
}

/// The content of an event.
#[derive(Debug, Default)]
pub(super) struct Content {
    pub message: String,
    /// Keys and values in the order written.
    pub fields: Vec<(&'static str, Value)>,
    /// The field `v`.
    pub v: Option<u32>,
}

pub(super) fn read(event: &Event<'_>) -> Content {
    let mut content = Content::default();
    event.record(&mut content);
    content
}

impl Content {
    fn integer(&mut self, field: &Field, value: i128) {
        match (field.name(), u32::try_from(value)) {
            ("v", Ok(v)) => self.v = Some(v),
            (name, _) => self.fields.push((name, Value::Integer(value))),
        }
    }

    fn text(&mut self, field: &Field, value: String) {
        match field.name() {
            "message" => self.message = value,
            name => self.fields.push((name, Value::Text(value))),
        }
    }
}

impl Visit for Content {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.text(field, format!("{value:?}"));
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.text(field, crate::text::with_causes(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value.to_owned());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.integer(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.integer(field, value.into());
    }

    fn record_i128(&mut self, field: &Field, value: i128) {
        self.integer(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.fields.push((field.name(), Value::Bool(value)));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.fields.push((field.name(), Value::Float(value)));
    }
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;

    use super::*;

    fn header() -> Header {
        let time: jiff::Timestamp = "2026-11-21T03:52:03.000042Z".parse().expect("RFC 3339");
        Header { time: time.to_zoned(TimeZone::UTC), pid: 1234 }
    }

    fn fields() -> Vec<(&'static str, Value)> {
        vec![
            ("object", Value::Text("default/a \"b\"\n".to_owned())),
            ("count", Value::Integer(-3)),
            ("ok", Value::Bool(true)),
            ("seconds", Value::Float(0.5)),
        ]
    }

    // B-030: klog's text format.
    #[test]
    fn text_line() {
        let fields = fields();
        let record = Record {
            severity: Severity::Info,
            v: 2,
            file: "src/engine/sync.rs",
            line: 12,
            quoted: true,
            message: "Synced \u{e9}\u{1}",
            fields: &fields,
        };
        assert_eq!(
            Format::Text.line(&header(), &record),
            "I1121 03:52:03.000042    1234 sync.rs:12] \"Synced \u{e9}\\x01\" \
             object=\"default/a \\\"b\\\"\\n\" count=-3 ok=true seconds=0.5\n"
        );
    }

    // B-030: one JSON object a line; errors have no v.
    #[test]
    fn json_line() {
        let fields = fields();
        let mut record = Record {
            severity: Severity::Info,
            v: 2,
            file: "src/engine/sync.rs",
            line: 12,
            quoted: true,
            message: "Synced",
            fields: &fields,
        };
        let line = Format::Json.line(&header(), &record);
        assert_eq!(line.matches('\n').count(), 1);
        assert!(line.starts_with("{\"ts\":1795233123000.042,\"caller\":\"sync.rs:12\","), "{line}");
        let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(
            value,
            json!({"ts": 1795233123000.042, "caller": "sync.rs:12", "msg": "Synced", "v": 2,
                "object": "default/a \"b\"\n", "count": -3, "ok": true, "seconds": 0.5})
        );
        record.severity = Severity::Error;
        let value: serde_json::Value =
            serde_json::from_str(&Format::Json.line(&header(), &record)).expect("JSON");
        assert_eq!(value.get("v"), None);
    }
}
