//! Go's durations, as kube-proxy's flags and configuration file spell them.
//!
//! Place in the flow: read from flags and file, kept in the v1alpha1 object, turned into
//! [`std::time::Duration`] when the configuration is resolved. Knows nothing of either source.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A signed duration in nanoseconds, written like `1h2m3.5s`.
///
/// Signed because a negative value must survive decoding to be reported by validation together
/// with everything else that is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct GoDuration(i64);

/// A text that is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("time: invalid duration {0:?}")]
pub struct InvalidDuration(String);

/// Units with their nanoseconds; longer spellings before their prefixes.
const UNITS: [(&str, i64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

impl GoDuration {
    /// No time.
    pub const ZERO: GoDuration = GoDuration(0);

    pub const fn from_secs(seconds: i64) -> GoDuration {
        GoDuration(seconds * 1_000_000_000)
    }

    pub const fn from_nanos(nanoseconds: i64) -> GoDuration {
        GoDuration(nanoseconds)
    }

    /// Whether it is exactly zero, which the file treats as "not set".
    pub fn is_zero(self) -> bool {
        self.0 == 0
    }

    pub fn is_negative(self) -> bool {
        self.0 < 0
    }

    /// As an unsigned duration; negative ones, which validation refuses, become zero.
    pub fn to_std(self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0).unwrap_or(0))
    }
}

/// Splits `rest` after its leading decimal number.
fn split_number(rest: &str) -> (&str, &str) {
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    rest.split_at(end)
}

/// Nanoseconds of `number` units; `None` if the number is malformed or too large.
fn scale(number: &str, unit: i64) -> Option<i64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut nanoseconds = whole.checked_mul(unit)?;
    let mut place = unit;
    for digit in fraction.bytes() {
        place /= 10;
        nanoseconds = nanoseconds.checked_add(i64::from(digit - b'0') * place)?;
    }
    Some(nanoseconds)
}

/// Parses without sign; `None` for anything malformed.
fn parse_unsigned(text: &str) -> Option<i64> {
    if text == "0" {
        return Some(0);
    }
    if text.is_empty() {
        return None;
    }
    let (mut rest, mut total) = (text, 0i64);
    while !rest.is_empty() {
        let (number, after) = split_number(rest);
        let (name, unit) = UNITS
            .into_iter()
            .filter(|(name, _)| after.starts_with(name))
            .max_by_key(|(name, _)| name.len())?;
        total = total.checked_add(scale(number, unit)?)?;
        rest = &after[name.len()..];
    }
    Some(total)
}

impl FromStr for GoDuration {
    type Err = InvalidDuration;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (negative, unsigned) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let value = parse_unsigned(unsigned).ok_or_else(|| InvalidDuration(text.to_owned()))?;
        Ok(GoDuration(if negative { -value } else { value }))
    }
}

/// Writes `value` units of ten to the `digits` without trailing zeros.
fn write_decimal(f: &mut fmt::Formatter<'_>, value: u64, digits: usize) -> fmt::Result {
    let unit = 10u64.pow(u32::try_from(digits).unwrap_or(0));
    write!(f, "{}", value / unit)?;
    let fraction = format!("{:0digits$}", value % unit);
    match fraction.trim_end_matches('0') {
        "" => Ok(()),
        shown => write!(f, ".{shown}"),
    }
}

impl fmt::Display for GoDuration {
    /// Go's canonical form: `24h0m0s`, `1.5s`, `10ms`, `0s`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 < 0 {
            f.write_str("-")?;
        }
        let nanoseconds = self.0.unsigned_abs();
        match nanoseconds {
            0 => return f.write_str("0s"),
            1..1_000 => return write!(f, "{nanoseconds}ns"),
            1_000..1_000_000 => {
                write_decimal(f, nanoseconds, 3)?;
                return f.write_str("\u{b5}s");
            }
            1_000_000..1_000_000_000 => {
                write_decimal(f, nanoseconds, 6)?;
                return f.write_str("ms");
            }
            _ => {}
        }
        let (minutes, rest) = (nanoseconds / 60_000_000_000, nanoseconds % 60_000_000_000);
        if minutes >= 60 {
            write!(f, "{}h", minutes / 60)?;
        }
        if minutes > 0 {
            write!(f, "{}m", minutes % 60)?;
        }
        write_decimal(f, rest, 9)?;
        f.write_str("s")
    }
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    /// Only strings: a bare number is a type error (B-034).
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_print_as_go_does() {
        let cases = [
            ("0", Some("0s")),
            ("0s", Some("0s")),
            ("30s", Some("30s")),
            ("90s", Some("1m30s")),
            ("24h", Some("24h0m0s")),
            ("1h2m3.5s", Some("1h2m3.5s")),
            ("1.5h", Some("1h30m0s")),
            ("100ms", Some("100ms")),
            ("1500us", Some("1.5ms")),
            ("5ns", Some("5ns")),
            ("-1s", Some("-1s")),
            ("+1m", Some("1m0s")),
            (".5s", Some("500ms")),
            ("", None),
            ("30", None),
            ("s", None),
            ("1x", None),
            ("1.2.3s", None),
            ("-", None),
            ("9999999999h", None),
        ];
        for (text, expected) in cases {
            let shown = text.parse::<GoDuration>().ok().map(|d| d.to_string());
            assert_eq!(shown.as_deref(), expected, "{text:?}");
        }
    }
}
