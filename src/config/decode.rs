//! Text of a configuration file to the v1alpha1 object, with a record of what was ignored.
//!
//! Place in the flow: the caller read the file; the result goes to [`super::complete()`]. Strict
//! problems (unknown fields, duplicate keys) are recorded, everything else is an error (reference
//! 2.1). Knows no defaults and no rules of validity.

use serde_json::Value;

use super::v1alpha1::{API_VERSION, KIND, KubeProxyConfiguration};
use super::yaml::{Document, YamlError, first_document, whole};

#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// The object as written: no defaults.
    pub object: KubeProxyConfiguration,
    /// What strict decoding would have refused, in the words of a user:
    /// `unknown field "iptables.foo"`. Empty if nothing.
    pub ignored: Vec<String>,
    /// Whether another document follows, which counts for nothing.
    pub more: bool,
}

/// Why a file is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("cannot parse YAML or JSON")]
    Syntax(#[source] YamlError),
    /// `apiVersion` or `kind` is missing; an empty file lacks both.
    #[error("{0:?} is missing")]
    Missing(&'static str),
    #[error("no kind {kind:?} is registered for version {api_version:?}")]
    Unknown {
        /// `apiVersion` of the file.
        api_version: String,
        /// `kind` of the file.
        kind: String,
    },
    /// A field has a value of the wrong type (B-034).
    #[error("field {path:?} has a wrong value")]
    Type {
        path: String,
        /// What was found and what was expected.
        #[source]
        source: serde_json::Error,
    },
}

/// Decodes YAML or JSON; of several documents the first.
///
/// Errors: see [`DecodeError`]; strictness problems are none (B-033).
pub fn decode(text: &str) -> Result<Decoded, DecodeError> {
    let Document { mut value, repeated: mut ignored, more } = parse(text)?;
    check_type(&value)?;
    check_mappings(&value)?;
    tidy(&mut value);
    let mut track = serde_path_to_error::Track::new();
    let deserializer = serde_path_to_error::Deserializer::new(value, &mut track);
    let object = serde_ignored::deserialize(deserializer, |path| {
        ignored.push(format!("unknown field {:?}", path.to_string()));
    });
    match object {
        Ok(object) => Ok(Decoded { object, ignored, more }),
        Err(source) => Err(DecodeError::Type { path: track.path().to_string(), source }),
    }
}

/// Text to a tree. What is no YAML may still be JSON: that allows tabs as indentation, and values one
/// after the other.
fn parse(text: &str) -> Result<Document, DecodeError> {
    first_document(text).or_else(|error| {
        let mut values = serde_json::Deserializer::from_str(text).into_iter();
        match values.next() {
            Some(Ok(value @ Value::Object(_))) => {
                let more = values.next().is_some();
                Ok(Document { value, repeated: Vec::new(), more })
            }
            _ => Err(DecodeError::Syntax(error)),
        }
    })
}

/// Both type fields, before anything else is looked at (B-032).
fn check_type(value: &Value) -> Result<(), DecodeError> {
    let field = |name: &'static str| {
        let text = value.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
        text.ok_or(DecodeError::Missing(name))
    };
    let (kind, api_version) = (field("kind")?, field("apiVersion")?);
    if api_version == API_VERSION && kind == KIND {
        return Ok(());
    }
    Err(DecodeError::Unknown { api_version: api_version.to_owned(), kind: kind.to_owned() })
}

/// Sections are mappings; serde would take a list of their fields in order too.
fn check_mappings(value: &Value) -> Result<(), DecodeError> {
    const SECTIONS: [&str; 12] = [
        "clientConnection",
        "logging",
        "logging.options",
        "logging.options.text",
        "logging.options.json",
        "iptables",
        "ipvs",
        "nftables",
        "winkernel",
        "detectLocal",
        "conntrack",
        "kubeweir",
    ];
    let list = SECTIONS.into_iter().find(|path| {
        value.pointer(&format!("/{}", path.replace('.', "/"))).is_some_and(Value::is_array)
    });
    let Some(path) = list else { return Ok(()) };
    let source = serde::de::Error::custom("invalid type: list, expected a mapping");
    Err(DecodeError::Type { path: path.to_owned(), source })
}

/// `null` says nothing: Go leaves such a field at its zero value (B-051). A number with an integral
/// value is an integer, however it is written: Helm writes `1.048576e+06`.
fn tidy(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, field| !field.is_null());
            map.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        Value::Number(number) if number.is_f64() => {
            if let Some(integer) = number.as_f64().and_then(whole) {
                *number = integer;
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str =
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

    fn with_head(body: &str) -> Result<Decoded, DecodeError> {
        decode(&format!("{HEAD}{body}"))
    }

    // B-032: version and kind are mandatory and known.
    #[test]
    fn version_and_kind_are_required() {
        let cases = [
            ("empty", ""),
            ("comment only", "# nothing\n"),
            ("no kind", "apiVersion: kubeproxy.config.k8s.io/v1alpha1\n"),
            ("no version", "kind: KubeProxyConfiguration\n"),
            (
                "other version",
                "apiVersion: kubeproxy.config.k8s.io/v9\nkind: KubeProxyConfiguration\n",
            ),
            (
                "other kind",
                "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeletConfiguration\n",
            ),
            ("no mapping", "- a\n"),
        ];
        for (name, text) in cases {
            let error = decode(text).expect_err(name);
            assert!(
                matches!(error, DecodeError::Missing(_) | DecodeError::Unknown { .. }),
                "{name}: {error:?}"
            );
        }
    }

    // B-033: unknown fields and duplicate keys are recorded, the last duplicate wins.
    #[test]
    fn strict_problems_are_recorded() {
        let decoded = with_head("Mode: x\niptables:\n  foo: 1\nmode: ipvs\nmode: nftables\n")
            .expect("lenient decoding accepts it");
        assert_eq!(decoded.object.mode, "nftables");
        assert_eq!(decoded.ignored.len(), 3, "{:?}", decoded.ignored);
        assert!(decoded.ignored[0].contains("mode"), "{:?}", decoded.ignored);
        assert!(decoded.ignored.contains(&"unknown field \"Mode\"".to_owned()));
        assert!(decoded.ignored.contains(&"unknown field \"iptables.foo\"".to_owned()));
        assert_eq!(with_head("mode: ipvs\n").expect("valid").ignored, Vec::<String>::new());
    }

    // B-034: a value of the wrong type is fatal and its path is named.
    #[test]
    fn wrong_types_are_fatal() {
        let cases = [
            ("configSyncPeriod: 30\n", "configSyncPeriod"),
            ("nftables: {syncPeriod: 5}\n", "nftables.syncPeriod"),
            ("nftables: {syncPeriod: fast}\n", "nftables.syncPeriod"),
            ("conntrack: {min: many}\n", "conntrack.min"),
            ("mode: 4\n", "mode"),
            ("enableProfiling: \"yes\"\n", "enableProfiling"),
            ("logging: {verbosity: -1}\n", "logging.verbosity"),
            ("nodePortAddresses: 10.0.0.0/8\n", "nodePortAddresses"),
            ("clientConnection: x\n", "clientConnection"),
            ("clientConnection: {qps: 1e39}\n", "clientConnection.qps"),
            ("conntrack: []\n", "conntrack"),
            ("logging: {options: {json: [true, 0]}}\n", "logging.options.json"),
        ];
        for (body, expected) in cases {
            match with_head(body) {
                Err(DecodeError::Type { path, .. }) => assert_eq!(path, expected, "{body}"),
                other => panic!("{body}: {other:?}"),
            }
        }
        assert!(matches!(with_head("mode: [\n"), Err(DecodeError::Syntax(_))));
    }

    // B-035: JSON is accepted, with tabs too.
    #[test]
    fn json_is_accepted() {
        let text = "{\n\t\"apiVersion\": \"kubeproxy.config.k8s.io/v1alpha1\",\n\t\"kind\": \
                    \"KubeProxyConfiguration\",\n\t\"mode\": \"nftables\"\n}";
        let decoded = decode(text).expect("JSON");
        assert_eq!(decoded.object.mode, "nftables");
        assert!(decoded.ignored.is_empty());
    }

    #[test]
    fn yaml_1_1_booleans_and_integer_flush_frequency() {
        let decoded = with_head("enableProfiling: yes\nlogging: {flushFrequency: 1000000000}\n")
            .expect("valid");
        assert!(decoded.object.enable_profiling);
        assert_eq!(decoded.object.logging.flush_frequency.to_string(), "1s");
    }

    // B-051: the zero values that kubeadm writes are as good as absent.
    #[test]
    fn nulls_are_as_good_as_absent() {
        let decoded = with_head(
            "nodePortAddresses: null\nconntrack: {maxPerCore: null, min: null}\nmode: \"\"\n\
             featureGates: null\noomScoreAdj: null\niptables: {masqueradeBit: null, syncPeriod: 0s}\n",
        )
        .expect("valid");
        let expected = with_head("").expect("valid");
        assert_eq!(decoded, expected);
    }
}
