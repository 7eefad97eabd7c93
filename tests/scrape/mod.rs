//! Prometheus' text format, read back.

use std::collections::{BTreeMap, BTreeSet};

/// A scrape in the text format.
#[derive(Debug, Default)]
pub struct Scrape {
    pub kinds: BTreeMap<String, String>,
    pub samples: Vec<Sample>,
}

#[derive(Debug)]
pub struct Sample {
    pub name: String,
    pub labels: Vec<(String, String)>,
    pub value: f64,
}

impl Scrape {
    pub fn parse(text: &str) -> Scrape {
        let mut scrape = Scrape::default();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("name and type");
                scrape.kinds.insert(name.to_owned(), kind.to_owned());
            } else if !line.starts_with('#') {
                scrape.samples.push(Sample::parse(line));
            }
        }
        scrape
    }

    /// The samples of a metric; for a histogram those of its buckets.
    pub fn of<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a Sample> + use<'a> {
        let (name, bucket) = (name.to_owned(), format!("{name}_bucket"));
        self.samples.iter().filter(move |s| s.name == name || s.name == bucket)
    }

    /// The value of one series.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let has = |sample: &Sample| {
            labels.iter().all(|(k, v)| sample.labels.iter().any(|(a, b)| a == k && b == v))
        };
        self.samples.iter().find(|s| s.name == name && has(s)).map(|s| s.value)
    }

    /// Label names of a metric's samples, without `le`; all samples must agree.
    pub fn labels<'a>(&'a self, name: &str) -> BTreeSet<&'a str> {
        let mut sets = self.of(name).map(|sample| {
            let names = sample.labels.iter().map(|(key, _)| key.as_str());
            names.filter(|key| *key != "le").collect::<BTreeSet<_>>()
        });
        let first = sets.next().expect("at least one sample");
        assert!(sets.all(|set| set == first), "{name}: series with different labels");
        first
    }

    /// A histogram's bounds in one family, as exported, `+Inf` last.
    pub fn buckets<'a>(&'a self, name: &str) -> Vec<&'a str> {
        let first_series = self.of(name).filter(|s| s.has("ip_family", "IPv4"));
        first_series.filter_map(|s| s.label("le")).collect()
    }
}

impl Sample {
    fn parse(line: &str) -> Sample {
        let (series, value) = line.rsplit_once(' ').expect("series and value");
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let labels = labels.trim_end_matches('}').split("\",").filter(|pair| !pair.is_empty());
        let labels = labels.map(|pair| {
            let (key, value) = pair.split_once("=\"").expect("label=\"value\"");
            (key.to_owned(), value.trim_end_matches('"').to_owned())
        });
        Sample {
            name: name.to_owned(),
            labels: labels.collect(),
            value: value.parse().expect("a number"),
        }
    }

    pub fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn has(&self, name: &str, value: &str) -> bool {
        self.label(name) == Some(value)
    }
}
