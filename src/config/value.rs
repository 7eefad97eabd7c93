//! Values of flags, read as Go's pflag reads them.
//!
//! Place in the flow: value parsers of [`super::flags`]. Knows no flag by name.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::net::IpAddr;

use super::address::{parse_ip, parse_ip_port};
use super::v1alpha1::VmoduleItem;

/// Why a value was refused. The text is what pflag prints after `invalid argument`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidValue {
    #[error("strconv.ParseBool: parsing {0:?}: invalid syntax")]
    Bool(String),
    #[error("strconv.ParseInt: parsing {0:?}: invalid syntax")]
    Int(String),
    #[error("strconv.ParseInt: parsing {0:?}: value out of range")]
    IntRange(String),
    #[error("strconv.ParseFloat: parsing {0:?}: invalid syntax")]
    Float(String),
    #[error("strconv.ParseFloat: parsing {0:?}: value out of range")]
    FloatRange(String),
    #[error("failed to parse IP: {0:?}")]
    Ip(String),
    #[error("must be an IP address or IP:port, not {0:?}")]
    IpPort(String),
    #[error("missing bool value for {0}")]
    MissingBool(String),
    #[error("invalid value of {key}={value}")]
    MapBool {
        /// Name before the equals sign.
        key: String,
        /// Text after it.
        value: String,
    },
    #[error("expect comma-separated list of filename=N, not {0:?}")]
    Vmodule(String),
}

/// Go's bools.
pub fn parse_bool(text: &str) -> Result<bool, InvalidValue> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(InvalidValue::Bool(text.to_owned())),
    }
}

/// An integer as Go writes constants, without underscores: in base 2, 8 or 16 after `0b`, `0` or `0o`,
/// `0x`. As large as 64 bits can be, with sign or without.
pub fn parse_integer(numeral: &str) -> Option<i128> {
    let (negative, digits) = match numeral.as_bytes().first()? {
        b'-' => (true, &numeral[1..]),
        b'+' => (false, &numeral[1..]),
        _ => (false, numeral),
    };
    let (base, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', b'o' | b'O', ..] => (8, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    // A second sign is none.
    if !digits.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return None;
    }
    let magnitude = i128::from(u64::from_str_radix(digits, base).ok()?);
    Some(if negative { -magnitude } else { magnitude })
}

/// Go's 32-bit integers, whose digits underscores may separate.
pub fn parse_int32(text: &str) -> Result<i32, InvalidValue> {
    let unsigned = text.trim_start_matches(['+', '-']);
    let prefixes = ["0x", "0X", "0o", "0O", "0b", "0B"];
    let digits = prefixes.iter().find_map(|prefix| unsigned.strip_prefix(prefix));
    // One may stand behind a prefix too.
    let digits = digits.map_or(unsigned, |digits| digits.strip_prefix('_').unwrap_or(digits));
    let separated = !digits.split('_').any(str::is_empty);
    let value = separated.then(|| parse_integer(&text.replace('_', ""))).flatten();
    let value = value.ok_or_else(|| InvalidValue::Int(text.to_owned()))?;
    i32::try_from(value).map_err(|_| InvalidValue::IntRange(text.to_owned()))
}

/// Go's 32-bit floats.
pub fn parse_float32(text: &str) -> Result<f32, InvalidValue> {
    let value: f32 = text.parse().map_err(|_| InvalidValue::Float(text.to_owned()))?;
    // Infinity is what somebody may write, and not what is too large.
    if value.is_infinite() && text.bytes().any(|byte| byte.is_ascii_digit()) {
        return Err(InvalidValue::FloatRange(text.to_owned()));
    }
    Ok(value)
}

/// An item of a list: pflag reads CSV, so that quotes which no shell took away are none of its text.
pub fn parse_item(text: &str) -> Result<String, Infallible> {
    let quoted = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    Ok(quoted.unwrap_or(text).to_owned())
}

/// The text of an IP address, or an empty text, which keeps the default.
pub fn parse_ip_text(text: &str) -> Result<String, InvalidValue> {
    if text.is_empty() || parse_ip(text).is_some() {
        return Ok(text.to_owned());
    }
    Err(InvalidValue::Ip(text.to_owned()))
}

/// The text of an IP address or `IP:port`, or an empty text, which keeps the default.
pub fn parse_ip_port_text(text: &str) -> Result<String, InvalidValue> {
    let bare: Option<IpAddr> = parse_ip(text);
    if text.is_empty() || bare.is_some() || parse_ip_port(text).is_some() {
        return Ok(text.to_owned());
    }
    Err(InvalidValue::IpPort(text.to_owned()))
}

/// `--feature-gates`: comma separated `name=bool`; printed in the same form, sorted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GateMap(pub BTreeMap<String, bool>);

impl GateMap {
    /// Several together; of settings of one gate the last wins.
    pub fn merge<'a>(maps: impl IntoIterator<Item = &'a GateMap>) -> GateMap {
        GateMap(maps.into_iter().flat_map(|map| map.0.clone()).collect())
    }
}

/// Reads a [`GateMap`]; items and their parts are trimmed.
pub fn parse_gates(text: &str) -> Result<GateMap, InvalidValue> {
    let mut gates = BTreeMap::new();
    for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let (key, value) =
            item.split_once('=').ok_or_else(|| InvalidValue::MissingBool(item.to_owned()))?;
        let (key, value) = (key.trim(), value.trim());
        let state = parse_bool(value)
            .map_err(|_| InvalidValue::MapBool { key: key.to_owned(), value: value.to_owned() })?;
        gates.insert(key.to_owned(), state);
    }
    Ok(GateMap(gates))
}

impl fmt::Display for GateMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let items: Vec<_> = self.0.iter().map(|(name, on)| format!("{name}={on}")).collect();
        f.write_str(&items.join(","))
    }
}

/// `--vmodule`: comma separated `pattern=N`, in the order written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Vmodule(pub Vec<VmoduleItem>);

/// Reads a [`Vmodule`].
pub fn parse_vmodule(text: &str) -> Result<Vmodule, InvalidValue> {
    let mut items = Vec::new();
    for item in text.split(',').filter(|item| !item.is_empty()) {
        let invalid = || InvalidValue::Vmodule(item.to_owned());
        let (pattern, verbosity) = item.split_once('=').ok_or_else(invalid)?;
        let verbosity = verbosity.parse().map_err(|_| invalid())?;
        if pattern.is_empty() {
            return Err(invalid());
        }
        items.push(VmoduleItem { file_pattern: pattern.to_owned(), verbosity });
    }
    Ok(Vmodule(items))
}

impl fmt::Display for Vmodule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let items: Vec<_> =
            self.0.iter().map(|item| format!("{}={}", item.file_pattern, item.verbosity)).collect();
        f.write_str(&items.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates() {
        let gates = parse_gates("B=true, A=0,").expect("valid");
        assert_eq!(gates.to_string(), "A=false,B=true");
        assert_eq!(parse_gates("A").expect_err("no value").to_string(), "missing bool value for A");
        assert_eq!(parse_gates("A=on").expect_err("no bool").to_string(), "invalid value of A=on");
    }

    #[test]
    fn vmodule() {
        assert_eq!(parse_vmodule("a*=4,b=1").expect("valid").to_string(), "a*=4,b=1");
        for text in ["a", "=1", "a=x", "a=-1"] {
            assert!(parse_vmodule(text).is_err(), "{text}");
        }
    }

    #[test]
    fn integers() {
        for (text, value) in [
            ("0", Some(0)),
            ("-999", Some(-999)),
            ("+5", Some(5)),
            ("0x_1F", Some(31)),
            ("0_17", Some(15)),
            ("2147483647", Some(i32::MAX)),
            ("2147483648", None),
            ("-2147483648", Some(i32::MIN)),
            ("0b102", None),
            ("+-5", None),
            ("1__0", None),
            ("_0", None),
            ("-_1", None),
            ("0x", None),
            ("0x__1", None),
        ] {
            assert_eq!(parse_int32(text).ok(), value, "{text:?}");
        }
    }

    // B-011: empty addresses are accepted.
    #[test]
    fn addresses() {
        for (text, ip, ip_port) in [
            ("", true, true),
            ("1.2.3.4", true, true),
            ("::1", true, true),
            ("1.2.3.4:80", false, true),
            ("[::1]:80", false, true),
            ("[::1]", false, false),
            ("xx", false, false),
            ("host:80", false, false),
        ] {
            assert_eq!(parse_ip_text(text).is_ok(), ip, "{text:?} as IP");
            assert_eq!(parse_ip_port_text(text).is_ok(), ip_port, "{text:?} as IP or IP:port");
        }
    }
}
