//! The first document of a YAML text as a tree, its scalars read as upstream's reader of YAML 1.1
//! reads them.
//!
//! Place in the flow: below [`super::decode`]. The parser is a library's; what a plain scalar means
//! is decided here, because no library has the rules that upstream's files were written for: `017`
//! is 15, `1_000` a thousand, `1.5e+01` a whole number, `yes` a bool and `yEs` a text. Pure.

use std::collections::HashMap;
use std::iter::Peekable;

use granit_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput, Tag};
use serde_json::{Map, Number, Value};

use super::value::parse_integer;

/// Nodes of a document, those that aliases stand for included: far more than a configuration has.
const MOST_NODES: usize = 100_000;
/// Mappings and lists inside each other.
const DEEPEST: usize = 64;

/// The first document of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// What it says; `null` if it is empty.
    pub value: Value,
    /// Keys that stand twice in one mapping; the last one holds.
    pub repeated: Vec<String>,
    /// Whether another document follows that is not empty.
    pub more: bool,
}

/// Why a text is no YAML.
#[derive(Debug, thiserror::Error)]
pub enum YamlError {
    #[error(transparent)]
    Syntax(#[from] ScanError),
    #[error("line {line}: cannot read {text:?} as {tag}")]
    Tagged {
        line: usize,
        text: String,
        /// The tag without its prefix.
        tag: String,
    },
    #[error("line {line}: a key must be a text or a number")]
    Key { line: usize },
    #[error("line {line}: a merge needs a mapping or a list of mappings")]
    Merge { line: usize },
    #[error("line {line}: an alias inside of what it stands for")]
    Recursive { line: usize },
    #[error("more than {MOST_NODES} values, or more than {DEEPEST} levels of them")]
    TooLarge,
}

/// Reads the first document.
///
/// Errors: see [`YamlError`]. What follows the first document is never one.
pub fn first_document(text: &str) -> Result<Document, YamlError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = Reader {
        events: Parser::new_from_str(text).peekable(),
        anchors: HashMap::new(),
        repeated: Vec::new(),
        nodes: 0,
    };
    let value = match reader.enter()? {
        true => reader.node(0)?.value,
        false => Value::Null,
    };
    let more = reader.more();
    Ok(Document { value, repeated: reader.repeated, more })
}

struct Reader<'a> {
    events: Peekable<Parser<'a, StrInput<'a>>>,
    anchors: HashMap<usize, Value>,
    repeated: Vec<String>,
    nodes: usize,
}

/// A value and where it began.
struct Node {
    value: Value,
    line: usize,
    /// `<<`, without quotes.
    merge: bool,
}

impl<'a> Reader<'a> {
    /// The next event that is no comment; `None` at the end.
    fn next(&mut self) -> Result<Option<(Event<'a>, Span)>, ScanError> {
        for next in self.events.by_ref() {
            let (event, span) = next?;
            if !is_comment(&event) {
                return Ok(Some((event, span)));
            }
        }
        Ok(None)
    }

    /// Whether the next event ends a mapping or a list; takes it if so.
    fn ends(&mut self) -> Result<bool, ScanError> {
        while self.events.next_if(|next| matches!(next, Ok((e, _)) if is_comment(e))).is_some() {}
        let end = |next: &Result<(Event<'_>, Span), ScanError>| {
            matches!(next, Ok((Event::MappingEnd | Event::SequenceEnd, _)))
        };
        Ok(self.events.next_if(end).is_some())
    }

    /// Goes to the first node of a document; false if there is no document.
    fn enter(&mut self) -> Result<bool, ScanError> {
        while let Some((event, _)) = self.next()? {
            match event {
                Event::DocumentStart(..) => return Ok(true),
                Event::StreamEnd => return Ok(false),
                _ => {}
            }
        }
        Ok(false)
    }

    /// Whether a later document says something; what cannot be read does.
    fn more(&mut self) -> bool {
        loop {
            match self.enter() {
                Ok(false) => return false,
                Err(_) => return true,
                Ok(true) => {}
            }
            match self.next() {
                Ok(Some((Event::Scalar(text, ScalarStyle::Plain, _, None), _)))
                    if plain(&text).is_null() => {}
                _ => return true,
            }
        }
    }

    fn count(&mut self, nodes: usize, depth: usize) -> Result<(), YamlError> {
        self.nodes += nodes;
        let small = self.nodes <= MOST_NODES && depth <= DEEPEST;
        if small { Ok(()) } else { Err(YamlError::TooLarge) }
    }

    fn node(&mut self, depth: usize) -> Result<Node, YamlError> {
        self.count(1, depth)?;
        let Some((event, span)) = self.next()? else {
            return Ok(Node { value: Value::Null, line: 0, merge: false });
        };
        let line = span.start.line();
        let mut merge = false;
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                merge = text == "<<" && style == ScalarStyle::Plain && tag.is_none();
                (scalar(&text, style, tag.as_deref(), line)?, anchor)
            }
            Event::SequenceStart(_, anchor, _) => (self.list(depth)?, anchor),
            Event::MappingStart(_, anchor, _) => (self.mapping(depth)?, anchor),
            Event::Alias(anchor) => {
                let value = self.anchors.get(&anchor).cloned();
                let value = value.ok_or(YamlError::Recursive { line })?;
                self.count(size(&value), depth)?;
                (value, 0)
            }
            // No other event stands in the place of a node.
            _ => (Value::Null, 0),
        };
        if anchor != 0 {
            self.anchors.insert(anchor, value.clone());
        }
        Ok(Node { value, line, merge })
    }

    fn list(&mut self, depth: usize) -> Result<Value, YamlError> {
        let mut items = Vec::new();
        while !self.ends()? {
            items.push(self.node(depth + 1)?.value);
        }
        Ok(Value::Array(items))
    }

    fn mapping(&mut self, depth: usize) -> Result<Value, YamlError> {
        let mut fields = Map::new();
        let mut merged = Map::new();
        while !self.ends()? {
            let key = self.node(depth + 1)?;
            let value = self.node(depth + 1)?.value;
            if key.merge {
                merge(&mut merged, value, key.line)?;
                continue;
            }
            let name = key_text(key.value).ok_or(YamlError::Key { line: key.line })?;
            if fields.insert(name.clone(), value).is_some() {
                self.repeated.push(format!("line {}: key {name:?} already set", key.line));
            }
        }
        // What is written in the mapping itself wins.
        merged.extend(fields);
        Ok(Value::Object(merged))
    }
}

fn is_comment(event: &Event<'_>) -> bool {
    matches!(event, Event::Comment(..))
}

/// Values in a value, itself included.
fn size(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(size).sum(),
        Value::Object(fields) => fields.values().map(size).sum(),
        _ => 0,
    }
}

/// Takes the fields of a mapping or of a list of mappings, of which the first wins.
fn merge(into: &mut Map<String, Value>, value: Value, line: usize) -> Result<(), YamlError> {
    match value {
        Value::Object(fields) => into.extend(fields),
        Value::Array(items) => {
            for item in items.into_iter().rev() {
                let Value::Object(fields) = item else { return Err(YamlError::Merge { line }) };
                into.extend(fields);
            }
        }
        _ => return Err(YamlError::Merge { line }),
    }
    Ok(())
}

fn key_text(key: Value) -> Option<String> {
    match key {
        Value::String(text) => Some(text),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(state) => Some(state.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// A scalar with its style and tag: quotes and `!!str` make a text, other tags of YAML's own insist.
fn scalar(
    text: &str,
    style: ScalarStyle,
    tag: Option<&Tag>,
    line: usize,
) -> Result<Value, YamlError> {
    let core = tag.map(|tag| if tag.handle() == "tag:yaml.org,2002:" { tag.suffix() } else { "" });
    let value = match core {
        None if style == ScalarStyle::Plain => return Ok(plain(text)),
        Some("int" | "float" | "bool" | "null") => plain(text),
        _ => return Ok(Value::String(text.to_owned())),
    };
    let fits = match (core, &value) {
        (Some("int"), Value::Number(number)) => !is_float(text, number),
        (Some("float"), Value::Number(_)) => true,
        (Some("bool"), Value::Bool(_)) | (Some("null"), Value::Null) => true,
        _ => false,
    };
    let tag = core.unwrap_or_default().to_owned();
    if fits { Ok(value) } else { Err(YamlError::Tagged { line, text: text.to_owned(), tag }) }
}

/// Whether a number was written as a float, though its value is whole.
fn is_float(text: &str, number: &Number) -> bool {
    number.is_f64() || integer(&text.replace('_', "")).is_none()
}

/// What a scalar without quotes and tag means.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            Value::Bool(true)
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            Value::Bool(false)
        }
        _ => number(text).map_or_else(|| Value::String(text.to_owned()), Value::Number),
    }
}

/// A number; `None` for what is a text. Underscores are there for people to read.
fn number(text: &str) -> Option<Number> {
    let numeral = match text.as_bytes().first()? {
        b'0'..=b'9' | b'+' | b'-' => text.replace('_', ""),
        b'.' => text.to_owned(),
        _ => return None,
    };
    integer(&numeral).or_else(|| {
        let decimal = |c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.' | 'e' | 'E');
        let float: f64 = numeral.chars().all(decimal).then(|| numeral.parse().ok())??;
        whole(float).or_else(|| Number::from_f64(float))
    })
}

fn integer(numeral: &str) -> Option<Number> {
    parse_integer(numeral).and_then(Number::from_i128)
}

/// The integer that a float is, if it is one: JSON knows no difference between `1.0` and `1`.
pub fn whole(float: f64) -> Option<Number> {
    const LIMIT: f64 = 9_007_199_254_740_992.0;
    (float.fract() == 0.0 && float.abs() <= LIMIT).then(|| Number::from(float as i64))
}
