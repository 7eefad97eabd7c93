//! The layer, from macro to line.

use super::*;
use crate::config::v1alpha1::VmoduleItem;

/// A stream that tests can read.
#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("not poisoned").clone()).expect("UTF-8")
    }
}

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("not poisoned").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn logging(format: &str, verbosity: u32) -> Logging {
    Logging { format: format.to_owned(), verbosity, ..Logging::default() }
}

/// Runs `body` under a layer; returns what went to the error and the info stream.
fn capture(logging: &Logging, split: bool, body: impl FnOnce(&Handle)) -> (String, String) {
    let (error, info) = (Captured::default(), Captured::default());
    let streams = Streams {
        error: Box::new(error.clone()),
        info: split.then(|| -> Box<dyn Write + Send> { Box::new(info.clone()) }),
    };
    let (layer, handle) = KlogLayer::new(logging, streams).expect("valid");
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || body(&handle));
    (error.text(), info.text())
}

/// Message of every line, without quotes.
fn messages(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.split("] \"").nth(1)?.split('"').next().map(str::to_owned))
        .collect()
}

fn one_of_each() {
    tracing::error!("error");
    tracing::warn!("warn");
    tracing::info!("info");
    tracing::info!(v = 1, "info v1");
    tracing::debug!("debug");
    tracing::debug!(v = 4, "debug v4");
    tracing::trace!("trace");
    tracing::debug!(target: "hyper::client", "library");
}

#[test]
fn verbosity_decides_what_is_shown() {
    let cases: [(u32, &[&str]); 5] = [
        (0, &["error", "warn", "info"]),
        (1, &["error", "warn", "info", "info v1"]),
        (2, &["error", "warn", "info", "info v1", "debug"]),
        (4, &["error", "warn", "info", "info v1", "debug", "debug v4"]),
        (6, &["error", "warn", "info", "info v1", "debug", "debug v4", "trace", "library"]),
    ];
    for (verbosity, expected) in cases {
        let (text, _) = capture(&logging("text", verbosity), false, |_| one_of_each());
        assert_eq!(messages(&text), expected, "verbosity {verbosity}");
    }
}

// B-030: text and JSON lines from the same event.
#[test]
fn lines_of_both_formats() {
    let event = |_: &Handle| tracing::warn!(object = %"default/a", count = 3, "Skipped");
    let (text, _) = capture(&logging("text", 0), false, event);
    let (head, tail) = text.split_once("] ").expect("klog header");
    assert!(head.starts_with('W') && head.contains(" tests.rs:"), "{head}");
    assert_eq!(tail, "\"Skipped\" object=\"default/a\" count=3\n");
    let (json, _) = capture(&logging("json", 0), false, event);
    let value: serde_json::Value = serde_json::from_str(&json).expect("one JSON object");
    assert_eq!(value["msg"], "Skipped");
    assert_eq!(value["object"], "default/a");
    assert_eq!(value["count"], 3);
    assert_eq!(value["v"], 0);
    assert!(value["ts"].as_f64().is_some_and(|ts| ts > 1.7e12), "{value}");
    assert!(value["caller"].as_str().is_some_and(|caller| caller.starts_with("tests.rs:")));
}

// B-031: the flags are logged at verbosity 1, as they are.
#[test]
fn flags_are_logged_from_verbosity_one_on() {
    let log = |_: &Handle| log_flags(["FLAG: --v=\"1\"".to_owned()].into_iter());
    assert_eq!(capture(&logging("text", 0), false, log).0, "");
    let (text, _) = capture(&logging("text", 1), false, log);
    assert!(text.ends_with("] FLAG: --v=\"1\"\n"), "{text}");
}

#[test]
fn split_streams() {
    let (error, info) = capture(&logging("text", 0), true, |_| one_of_each());
    assert_eq!(messages(&error), ["error"]);
    assert_eq!(messages(&info), ["warn", "info"]);
}

#[test]
fn verbosity_changes_at_runtime() {
    let step = |message: &'static str| tracing::debug!("{message}");
    let (text, _) = capture(&logging("text", 0), false, |handle| {
        step("before");
        handle.set_verbosity(2);
        step("during");
        handle.set_verbosity(0);
        step("after");
        assert_eq!(handle.verbosity(), 0);
    });
    assert_eq!(messages(&text), ["during"]);
}

#[test]
fn vmodule_applies_to_this_file() {
    let vmodule = vec![VmoduleItem { file_pattern: "test?".to_owned(), verbosity: 2 }];
    let with = Logging { vmodule, ..logging("text", 0) };
    let (text, _) = capture(&with, false, |_| tracing::debug!("shown"));
    assert_eq!(messages(&text), ["shown"]);
    let (text, _) = capture(&logging("text", 0), false, |_| tracing::debug!("hidden"));
    assert_eq!(text, "");
}

#[test]
fn unknown_formats_are_refused() {
    let streams = Streams { error: Box::new(Captured::default()), info: None };
    assert!(matches!(KlogLayer::new(&logging("xml", 0), streams), Err(LoggingError::Format(_))));
}

#[test]
fn an_error_is_printed_with_its_causes() {
    let inner = io::Error::new(io::ErrorKind::NotFound, "no such file");
    let outer = crate::api::ConnectionError::Kubeconfig {
        path: "k".into(),
        source: kube::config::KubeconfigError::ReadConfig(inner, "k".into()),
    };
    let (text, _) = capture(&logging("text", 0), false, |_| {
        tracing::warn!(error = &outer as &dyn std::error::Error, "failed");
    });
    assert!(text.contains("cannot load kubeconfig k: failed to read"), "{text}");
}
