//! `/flagz` and `/statusz` (KEP-4828, KEP-4827), a text for people or an object for programs; `/healthz`
//! and `/debug`.
//!
//! Place in the flow: words what [`super::Pages`] carries.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Query};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::accept::{DEPRECATED, PageForm, page_form};
use super::{SetVerbosity, Statusz};
use crate::http_server::text;
use crate::metrics::Metrics;

/// The component's name on these pages, whatever the program is called.
const COMPONENT: &str = "kube-proxy";

pub(super) fn flagz(flags: &BTreeMap<String, String>, headers: &HeaderMap) -> Response {
    match page_form(headers, "Flagz") {
        Some(PageForm::Text) => {
            let mut page = title("flagz");
            for (name, value) in flags {
                line(&mut page, name, value);
            }
            text(StatusCode::OK, page)
        }
        Some(form @ PageForm::Object { .. }) => object("Flagz", form, json!({ "flags": flags })),
        None => not_acceptable(),
    }
}

pub(super) fn statusz(
    status: &Statusz,
    now: Timestamp,
    paths: &[&str],
    headers: &HeaderMap,
) -> Response {
    let up = now.duration_since(status.started).as_secs().max(0);
    match page_form(headers, "Statusz") {
        Some(PageForm::Text) => {
            let mut page = title("statusz");
            let started = status.started.strftime("%a %b %e %H:%M:%S UTC %Y");
            line(&mut page, "Started", &started.to_string());
            line(&mut page, "Up", &uptime(up));
            line(&mut page, "Go version", &status.compiler_version);
            line(&mut page, "Binary version", &status.binary_version);
            line(&mut page, "Emulation version", &status.emulation_version);
            line(&mut page, "Paths", &paths.join(" "));
            text(StatusCode::OK, page)
        }
        Some(form @ PageForm::Object { .. }) => object(
            "Statusz",
            form,
            json!({
                "startTime": whole_second(status.started),
                "uptimeSeconds": up,
                "goVersion": status.compiler_version,
                "binaryVersion": status.binary_version,
                "emulationVersion": status.emulation_version,
                "paths": paths,
            }),
        ),
        None => not_acceptable(),
    }
}

/// An empty line, the title, the warning (section 9.1).
fn title(page: &str) -> String {
    format!(
        "\n{COMPONENT} {page}\nWarning: this page is for people and may change its form at any \
         time; programs ask for the object instead.\n\n"
    )
}

fn line(page: &mut String, name: &str, value: &str) {
    writeln!(page, "{name}: {value}").expect("a String takes any text");
}

fn object(kind: &str, form: PageForm, mut fields: Value) -> Response {
    let PageForm::Object { version, yaml } = form else { return not_acceptable() };
    fields["kind"] = json!(kind);
    fields["apiVersion"] = json!(format!("config.k8s.io/{version}"));
    fields["metadata"] = json!({ "name": COMPONENT });
    let (content_type, body) = match yaml {
        true => ("application/yaml", serde_saphyr::to_string(&fields).expect("it is plain data")),
        false => ("application/json", fields.to_string()),
    };
    let mut response = ([(header::CONTENT_TYPE, content_type)], body).into_response();
    if version == DEPRECATED {
        let warning = "299 - \"this version of the page is deprecated; ask for a newer one\"";
        response.headers_mut().insert(header::WARNING, HeaderValue::from_static(warning));
    }
    response
}

fn not_acceptable() -> Response {
    text(StatusCode::NOT_ACCEPTABLE, "neither text nor a known version of the object is accepted\n")
}

/// Kubernetes' times have whole seconds.
fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).expect("a time's own seconds are in range")
}

/// `26 hr 03 min 00 sec`.
fn uptime(seconds: i64) -> String {
    format!("{} hr {:02} min {:02} sec", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// Of a verbosity: a number and some white space.
const MAX_BODY: usize = 64;

/// `/debug/...`, with profiling enabled (section 9.1, B-252): a new verbosity goes to the logging's
/// callback.
pub fn debug(set_verbosity: SetVerbosity) -> Router {
    let verbosity = move |method: Method, body: String| async move {
        put_verbosity(&method, &body, &set_verbosity)
    };
    Router::new()
        .route("/debug/flags/v", any(verbosity))
        .route("/debug/flags", any(|| async { text(StatusCode::OK, "v\n") }))
        .route("/debug/pprof/cmdline", any(cmdline))
        .route("/debug/pprof/", any(index))
        .route("/debug/pprof/{profile}", any(no_profile))
        .layer(DefaultBodyLimit::max(MAX_BODY))
}

fn put_verbosity(method: &Method, body: &str, set_verbosity: &SetVerbosity) -> Response {
    if method != Method::PUT {
        return text(StatusCode::NOT_ACCEPTABLE, "only PUT is accepted\n");
    }
    match body.trim().parse() {
        Ok(verbosity) => {
            set_verbosity(verbosity);
            text(StatusCode::OK, format!("log verbosity is now {verbosity}"))
        }
        Err(reason) => {
            text(StatusCode::BAD_REQUEST, format!("verbosity {:?}: {reason}\n", body.trim()))
        }
    }
}

async fn index() -> Response {
    let page = "Go's profiles do not exist here; profile the process with perf.\ncmdline\n";
    text(StatusCode::OK, page)
}

/// The arguments, each but the last followed by a NUL, as Go's handler gives them.
async fn cmdline() -> Response {
    let arguments: Vec<_> =
        std::env::args_os().map(|argument| argument.to_string_lossy().into_owned()).collect();
    text(StatusCode::OK, arguments.join("\0"))
}

async fn no_profile() -> Response {
    text(StatusCode::NOT_IMPLEMENTED, "no such profile: this is not a Go program\n")
}

/// The one check.
const PING: &str = "ping";

/// `/healthz` of the metrics port (section 9.1): that the process answers, in the forms Kubernetes
/// components give it. The proxy's health has a port of its own.
pub fn healthz(metrics: Arc<Metrics>) -> Router {
    let all = move |Query(query): Query<Vec<(String, String)>>| async move {
        let page = Healthz::of(&query);
        if !page.ping_excluded {
            metrics.slis.passed(PING);
        }
        page.answer()
    };
    let ping = || async { text(StatusCode::OK, "ok") };
    Router::new().route("/healthz", any(all)).route("/healthz/ping", any(ping))
}

/// What the query asks for.
#[derive(Debug, PartialEq, Eq)]
struct Healthz {
    verbose: bool,
    ping_excluded: bool,
    /// Names in `exclude` that are no check's.
    unknown: Vec<String>,
}

impl Healthz {
    fn of(query: &[(String, String)]) -> Self {
        let excluded = query.iter().filter(|(key, _)| key == "exclude").map(|(_, value)| value);
        let (ping, unknown): (Vec<_>, Vec<_>) = excluded.cloned().partition(|name| name == PING);
        let verbose = query.iter().any(|(key, _)| key == "verbose");
        Healthz { verbose, ping_excluded: !ping.is_empty(), unknown }
    }

    fn answer(&self) -> Response {
        text(StatusCode::OK, if self.verbose { self.listing() } else { "ok".to_owned() })
    }

    fn listing(&self) -> String {
        let check = if self.ping_excluded { "[+]ping excluded: ok\n" } else { "[+]ping ok\n" };
        let unknown = match self.unknown.as_slice() {
            [] => String::new(),
            names => format!("warn: cannot be excluded, no such check: {}\n", names.join(", ")),
        };
        format!("{check}{unknown}healthz check passed\n")
    }
}
