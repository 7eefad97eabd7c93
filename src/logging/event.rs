//! What a `tracing` event holds: message, keys and values, explicit verbosity.

use std::error::Error;
use std::fmt::Debug;

use tracing::Event;
use tracing::field::{Field, Visit};

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

/// Reads an event.
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
