//! `/healthz` of the metrics port: that the process answers, nothing more (section 9.1).
//!
//! Place in the flow: one check, `ping`, in the forms Kubernetes components give it; results go to
//! [`crate::metrics::Slis`]. It must not know the proxy's health, which has a port of its own.

use std::sync::Arc;

use axum::Router;
use axum::extract::Query;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::any;

use crate::http_server::text;
use crate::metrics::Metrics;

const PING: &str = "ping";

pub(super) fn router(metrics: Arc<Metrics>) -> Router {
    let all = move |Query(query): Query<Vec<(String, String)>>| async move {
        let page = Page::of(&query);
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
struct Page {
    verbose: bool,
    ping_excluded: bool,
    /// Names in `exclude` that are no check's.
    unknown: Vec<String>,
}

impl Page {
    fn of(query: &[(String, String)]) -> Self {
        let excluded = query.iter().filter(|(key, _)| key == "exclude").map(|(_, value)| value);
        let (ping, unknown): (Vec<_>, Vec<_>) = excluded.cloned().partition(|name| name == PING);
        let verbose = query.iter().any(|(key, _)| key == "verbose");
        Page { verbose, ping_excluded: !ping.is_empty(), unknown }
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
