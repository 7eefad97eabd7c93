//! What a client accepts: choosing a representation by the `Accept` header (RFC 9110, 12.5.1).
//!
//! Place in the flow: asked by the pages of [`super`]. Pure.

use axum::http::{HeaderMap, header};

use crate::metrics::Exposition;

/// One entry of `Accept`.
struct MediaRange<'a> {
    name: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
    quality: f32,
}

impl<'a> MediaRange<'a> {
    fn parse(entry: &'a str) -> Self {
        let mut parts = entry.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let parameters: Vec<_> = parts
            .filter_map(|part| part.split_once('='))
            .map(|(key, value)| (key.trim(), value.trim().trim_matches('"')))
            .collect();
        let quality = parameters.iter().find(|(key, _)| *key == "q");
        let quality = quality.and_then(|(_, value)| value.parse().ok()).unwrap_or(1.0);
        MediaRange { name, parameters, quality }
    }

    fn parameter(&self, key: &str) -> Option<&'a str> {
        self.parameters.iter().find(|(k, _)| *k == key).map(|(_, value)| *value)
    }

    fn includes_text(&self) -> bool {
        matches!(self.name, "text/plain" | "text/*" | "*/*")
    }
}

/// The entries from the most to the least wanted; what is refused (`q=0`) is left out.
fn ranges(headers: &HeaderMap) -> Vec<MediaRange<'_>> {
    let lines = headers.get_all(header::ACCEPT).iter().filter_map(|line| line.to_str().ok());
    let entries = lines.flat_map(|line| line.split(',')).filter(|entry| !entry.trim().is_empty());
    let mut ranges: Vec<_> = entries.map(MediaRange::parse).filter(|r| r.quality > 0.0).collect();
    ranges.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    ranges
}

/// How metrics are exported: text unless protobuf is wanted more.
pub(super) fn exposition(headers: &HeaderMap) -> Exposition {
    let choose = |range: &MediaRange<'_>| {
        let protobuf = range.name == "application/vnd.google.protobuf"
            && range.parameter("proto") == Some("io.prometheus.client.MetricFamily")
            && range.parameter("encoding") == Some("delimited");
        match (protobuf, range.includes_text()) {
            (true, _) => Some(Exposition::Protobuf),
            (false, true) => Some(Exposition::Text),
            (false, false) => None,
        }
    };
    ranges(headers).iter().find_map(choose).unwrap_or(Exposition::Text)
}

/// The version of these objects that upstream warns about.
pub(super) const DEPRECATED: &str = "v1alpha1";

/// How `/flagz` and `/statusz` are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PageForm {
    /// For people.
    Text,
    /// As an object of a version of group `config.k8s.io`.
    Object {
        version: &'static str,
        /// As YAML instead of JSON.
        yaml: bool,
    },
}

/// The form of a page whose object is of kind `kind`; `None` if none that exists is acceptable.
pub(super) fn page_form(headers: &HeaderMap, kind: &str) -> Option<PageForm> {
    let choose = |range: &MediaRange<'_>| {
        if range.includes_text() {
            return Some(PageForm::Text);
        }
        let yaml = range.name == "application/yaml";
        let wanted = (yaml || range.name == "application/json")
            && range.parameter("g") == Some("config.k8s.io")
            && range.parameter("as") == Some(kind);
        let known = ["v1beta1", DEPRECATED].into_iter();
        let version =
            known.filter(|_| wanted).find(|known| range.parameter("v") == Some(*known))?;
        Some(PageForm::Object { version, yaml })
    };
    if !headers.contains_key(header::ACCEPT) {
        return Some(PageForm::Text);
    }
    ranges(headers).iter().find_map(choose)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepting(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::ACCEPT, header::HeaderValue::from_static(value))])
    }

    #[test]
    fn exposition_follows_quality() {
        const PROTO: &str = "application/vnd.google.protobuf;\
                             proto=io.prometheus.client.MetricFamily;encoding=delimited";
        let proto_low = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;\
                         encoding=delimited;q=0.2,text/plain;q=0.9";
        let cases = [
            ("", Exposition::Text),
            ("*/*", Exposition::Text),
            ("application/openmetrics-text;version=1.0.0,text/plain;q=0.3", Exposition::Text),
            (PROTO, Exposition::Protobuf),
            (proto_low, Exposition::Text),
            ("application/vnd.google.protobuf", Exposition::Text),
            ("application/xml", Exposition::Text),
        ];
        for (value, expected) in cases {
            assert_eq!(exposition(&accepting(value)), expected, "{value:?}");
        }
    }

    #[test]
    fn pages_are_text_or_an_object_of_a_known_version() {
        let cases = [
            ("*/*", Some(PageForm::Text)),
            ("text/plain", Some(PageForm::Text)),
            (
                "application/json;v=v1beta1;g=config.k8s.io;as=Flagz",
                Some(PageForm::Object { version: "v1beta1", yaml: false }),
            ),
            (
                "application/json;as=Flagz;g=config.k8s.io;v=v1alpha1",
                Some(PageForm::Object { version: "v1alpha1", yaml: false }),
            ),
            (
                "application/yaml;v=v1beta1;g=config.k8s.io;as=Flagz",
                Some(PageForm::Object { version: "v1beta1", yaml: true }),
            ),
            ("application/yaml", None),
            ("application/cbor;v=v1beta1;g=config.k8s.io;as=Flagz", None),
            ("application/json;v=foo;g=config.k8s.io;as=Flagz,*/*", Some(PageForm::Text)),
            ("application/json;v=v1;g=config.k8s.io;as=Flagz", None),
            ("application/json;v=v1beta1;g=config.k8s.io;as=Statusz", None),
            ("application/json", None),
        ];
        for (value, expected) in cases {
            assert_eq!(page_form(&accepting(value), "Flagz"), expected, "{value:?}");
        }
        assert_eq!(page_form(&HeaderMap::new(), "Flagz"), Some(PageForm::Text));
    }
}
