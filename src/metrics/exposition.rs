//! How a scrape is encoded, and metric families that are encoded without being held.
//!
//! Place in the flow: the registry's families go through the library's encoders. Those with a series
//! for each service port are written here, one series after the other: the library would hold ten
//! thousand series as fifty thousand pairs of texts, and leave the heap full of holes.

use prometheus::proto::MetricFamily;
use prometheus::{Encoder, PROTOBUF_FORMAT, ProtobufEncoder, TextEncoder};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

use super::definition::{MetricKind, Spec};

/// How a scrape is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposition {
    /// Prometheus' text format 0.0.4.
    Text,
    /// Length-delimited `io.prometheus.client.MetricFamily`.
    Protobuf,
}

impl Exposition {
    /// The `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Exposition::Text => "text/plain; version=0.0.4; charset=utf-8",
            Exposition::Protobuf => PROTOBUF_FORMAT,
        }
    }

    pub(super) fn encode(self, families: &[MetricFamily]) -> Result<Vec<u8>, prometheus::Error> {
        let mut body = Vec::new();
        match self {
            Exposition::Text => TextEncoder::new().encode(families, &mut body)?,
            Exposition::Protobuf => ProtobufEncoder::new().encode(families, &mut body)?,
        }
        Ok(body)
    }
}

/// A metric family while it is written at the end of a page; nothing of it is seen until it has a
/// series, as with the library's.
pub(super) struct FamilyWriter<'a> {
    exposition: Exposition,
    spec: Spec,
    kind: MetricKind,
    body: &'a mut Vec<u8>,
    start: usize,
}

impl<'a> FamilyWriter<'a> {
    /// A counter or a gauge.
    pub fn new(
        exposition: Exposition,
        (spec, kind): (Spec, MetricKind),
        body: &'a mut Vec<u8>,
    ) -> FamilyWriter<'a> {
        let start = body.len();
        FamilyWriter { exposition, spec, kind, body, start }
    }

    /// Adds a series. Labels are in the order of their names.
    pub fn add(&mut self, labels: &[(&str, &str)], value: u64) {
        let begins = self.body.len() == self.start;
        match self.exposition {
            Exposition::Text => {
                if begins {
                    self.text_header();
                }
                self.text_series(labels, value);
            }
            Exposition::Protobuf => {
                if begins {
                    self.protobuf_header();
                }
                protobuf_series(self.body, self.kind, labels, value);
            }
        }
    }

    /// Ends the family.
    pub fn end(self) {
        let length = self.body.len() - self.start;
        if self.exposition == Exposition::Protobuf && length > 0 {
            let mut prefix = Vec::new();
            encode_varint(length as u64, &mut prefix);
            self.body.splice(self.start..self.start, prefix);
        }
    }

    fn kind(&self) -> (&'static str, u64) {
        match self.kind {
            MetricKind::Counter => ("counter", 0),
            MetricKind::Gauge => ("gauge", 1),
            MetricKind::Histogram => ("histogram", 4),
        }
    }

    fn text_header(&mut self) {
        let (name, help, kind) = (self.spec.name, self.spec.opts().help, self.kind().0);
        let header = format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
        self.body.extend_from_slice(header.as_bytes());
    }

    fn text_series(&mut self, labels: &[(&str, &str)], value: u64) {
        let body = &mut *self.body;
        body.extend_from_slice(self.spec.name.as_bytes());
        for (index, (name, value)) in labels.iter().enumerate() {
            body.push(if index == 0 { b'{' } else { b',' });
            body.extend_from_slice(name.as_bytes());
            body.extend_from_slice(b"=\"");
            put_escaped(body, value);
            body.push(b'"');
        }
        body.extend_from_slice(if labels.is_empty() { b" " } else { b"} " });
        put_number(body, value);
        body.push(b'\n');
    }

    fn protobuf_header(&mut self) {
        put_field(self.body, 1, self.spec.name.as_bytes());
        put_field(self.body, 2, self.spec.opts().help.as_bytes());
        encode_key(3, WireType::Varint, self.body);
        encode_varint(self.kind().1, self.body);
    }
}

/// Field 4 of a family: a `Metric` of label pairs and a value.
fn protobuf_series(body: &mut Vec<u8>, kind: MetricKind, labels: &[(&str, &str)], value: u64) {
    /// A key and a double.
    const VALUE: usize = 9;
    let pair = |(name, value): &(&str, &str)| field_len(name.len()) + field_len(value.len());
    let pairs: usize = labels.iter().map(|label| field_len(pair(label))).sum();
    put_key(body, 4, pairs + field_len(VALUE));
    for label in labels {
        put_key(body, 1, pair(label));
        put_field(body, 1, label.0.as_bytes());
        put_field(body, 2, label.1.as_bytes());
    }
    put_key(body, if kind == MetricKind::Gauge { 2 } else { 3 }, VALUE);
    encode_key(1, WireType::SixtyFourBit, body);
    body.extend_from_slice(&(value as f64).to_le_bytes());
}

/// Bytes of a field with a number below 16.
fn field_len(content: usize) -> usize {
    1 + encoded_len_varint(content as u64) + content
}

fn put_key(body: &mut Vec<u8>, field: u32, content: usize) {
    encode_key(field, WireType::LengthDelimited, body);
    encode_varint(content as u64, body);
}

fn put_field(body: &mut Vec<u8>, field: u32, content: &[u8]) {
    put_key(body, field, content.len());
    body.extend_from_slice(content);
}

/// As a label's value is written in the text format.
fn put_escaped(body: &mut Vec<u8>, text: &str) {
    if !text.contains(['\\', '"', '\n']) {
        body.extend_from_slice(text.as_bytes());
        return;
    }
    for byte in text.bytes() {
        match byte {
            b'\n' => body.extend_from_slice(b"\\n"),
            b'\\' | b'"' => body.extend_from_slice(&[b'\\', byte]),
            _ => body.push(byte),
        }
    }
}

fn put_number(body: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    while at == digits.len() || value > 0 {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
    }
    body.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use prometheus::core::Collector;
    use prometheus::{IntCounterVec, IntGauge};

    use super::*;

    const SPEC: Spec = Spec::new("a_total", &["namespace", "service"], "What is counted.");
    const VALUES: [([&str; 2], u64); 4] = [
        (["", "web"], 0),
        (["ns", "a\"b\\c\nd"], 10),
        (["ns", "web"], 4_000_000_000),
        (["ns", "long"], 7),
    ];

    fn written(exposition: Exposition, series: &[([&str; 2], u64)]) -> Vec<u8> {
        let mut body = Vec::new();
        let mut family = FamilyWriter::new(exposition, (SPEC, MetricKind::Counter), &mut body);
        for ([namespace, service], value) in series {
            family.add(&[("namespace", namespace), ("service", service)], *value);
        }
        family.end();
        body
    }

    // The library's encoders say what is right.
    #[test]
    fn a_family_is_written_as_the_library_writes_it() {
        let long = "x".repeat(253);
        for exposition in [Exposition::Text, Exposition::Protobuf] {
            for (labels, value) in VALUES {
                let labels = labels.map(|label| if label == "long" { &*long } else { label });
                let library = IntCounterVec::new(SPEC.opts(), SPEC.labels).expect("valid");
                library.with_label_values(&labels).inc_by(value);
                let expected = exposition.encode(&library.collect()).expect("valid");
                assert_eq!(written(exposition, &[(labels, value)]), expected, "{exposition:?}");
            }
            let library = IntGauge::with_opts(SPEC.opts()).expect("valid");
            library.set(7);
            let mut body = Vec::new();
            let mut gauge = FamilyWriter::new(exposition, (SPEC, MetricKind::Gauge), &mut body);
            gauge.add(&[], 7);
            gauge.end();
            assert_eq!(body, exposition.encode(&library.collect()).expect("valid"));
        }
    }

    #[test]
    fn many_series_are_one_family_and_none_are_nothing() {
        let one = |labels, value| written(Exposition::Text, &[(labels, value)]);
        let [first, second, ..] = VALUES;
        let both = written(Exposition::Text, &[first, second]);
        let series = |page: Vec<u8>| String::from_utf8(page).expect("text");
        let last = series(one(second.0, second.1)).lines().last().expect("a series").to_owned();
        assert_eq!(series(both), format!("{}{last}\n", series(one(first.0, first.1))));
        assert!(written(Exposition::Text, &[]).is_empty());
        assert!(written(Exposition::Protobuf, &[]).is_empty());
        let library = IntCounterVec::new(SPEC.opts(), SPEC.labels).expect("valid");
        VALUES.iter().for_each(|(labels, value)| library.with_label_values(labels).inc_by(*value));
        let expected = Exposition::Protobuf.encode(&library.collect()).expect("valid");
        assert_eq!(written(Exposition::Protobuf, &VALUES).len(), expected.len(), "in some order");
    }
}
