//! The metrics and debug server (section 9.1, port 10249).
//!
//! Place in the flow: reads what others recorded or handed over at start; the agent's own pages come
//! as extra routes. It decides nothing and must not know services or rules.
//!
//! Go's profiles have no counterpart here: with profiling enabled, `/debug/pprof/` says so,
//! `cmdline` answers, and the other profiles are 501 (a named deviation from B-252).

mod accept;
mod pages;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use jiff::Timestamp;
use tokio::net::TcpListener;
use tracing::error;

use super::{Exposition, Metrics};
use crate::http_server::{self, Limits, Places, not_found, text};

/// Sets the log verbosity, klog's `-v`.
pub type SetVerbosity = Arc<dyn Fn(i32) + Send + Sync>;

/// What the server serves besides metrics.
#[derive(Clone)]
pub struct Pages {
    /// Answer of `/proxyMode`: the configured mode (B-250).
    pub proxy_mode: String,
    /// The effective v1alpha1 configuration, with `apiVersion` and `kind` (B-251).
    pub configuration: serde_json::Value,
    /// Flags and their values for `/flagz`; `None` when gate ComponentFlagz is off.
    pub flags: Option<BTreeMap<String, String>>,
    /// For `/statusz`; `None` when gate ComponentStatusz is off.
    pub status: Option<Statusz>,
    /// `Some` when profiling is enabled: `/debug/...` exists (B-252).
    pub profiling: Option<SetVerbosity>,
    /// More routes; none may be one of the server's own.
    pub extra: Router,
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages")
            .field("proxy_mode", &self.proxy_mode)
            .field("profiling", &self.profiling.is_some())
            .finish_non_exhaustive()
    }
}

/// What `/statusz` tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statusz {
    /// When the process started.
    pub started: Timestamp,
    /// Version of the compiler, in the place of Go's.
    pub compiler_version: String,
    /// Version of the program.
    pub binary_version: String,
    /// The Kubernetes release it behaves as: `1.37`.
    pub emulation_version: String,
}

/// Serves metrics and pages on a listener from [`http_server::bind`], for ever.
pub async fn run(listener: TcpListener, metrics: Arc<Metrics>, pages: Pages) -> Infallible {
    http_server::serve(listener, router(metrics, pages), Places::new(Limits::default())).await
}

fn router(metrics: Arc<Metrics>, pages: Pages) -> Router {
    // As upstream lists them: by what they start with.
    let mut paths = vec!["/configz", "/healthz", "/metrics", "/proxyMode"];
    let (scraped, slis, checked) = (Arc::clone(&metrics), Arc::clone(&metrics), metrics);
    let mode = pages.proxy_mode;
    let configz = configz(pages.configuration);
    let mut router =
        Router::new()
            .route("/metrics", any(move |headers: HeaderMap| scrape(Arc::clone(&scraped), headers)))
            .route(
                "/metrics/slis",
                any(move |method, headers: HeaderMap| async move {
                    slis_page(&slis, &method, &headers)
                }),
            )
            .route("/proxyMode", any(move || async move { text(StatusCode::OK, mode) }))
            .route("/configz", any(move || async move { configz }))
            .merge(pages::healthz(checked));
    if let Some(flags) = pages.flags {
        paths.push("/flagz");
        let page = move |headers: HeaderMap| async move { pages::flagz(&flags, &headers) };
        router = router.route("/flagz", any(page));
    }
    if let Some(set_verbosity) = pages.profiling {
        paths.push("/debug");
        router = router.merge(pages::debug(set_verbosity));
    }
    if let Some(status) = pages.status {
        paths.push("/statusz");
        paths.sort_unstable();
        let page = move |headers: HeaderMap| async move {
            pages::statusz(&status, Timestamp::now(), &paths, &headers)
        };
        router = router.route("/statusz", any(page));
    }
    router.merge(pages.extra).fallback(not_found)
}

/// `/metrics`. The kernel's counters may have to be read, so it runs where blocking is allowed.
async fn scrape(metrics: Arc<Metrics>, headers: HeaderMap) -> Response {
    let exposition = accept::exposition(&headers);
    let scrape = tokio::task::spawn_blocking(move || metrics.scrape(exposition)).await;
    match scrape {
        Ok(Ok(body)) => exposed(exposition, body),
        Ok(Err(reason)) => scrape_failed(&reason),
        Err(reason) => scrape_failed(&reason),
    }
}

/// `/metrics/slis`; `DELETE` forgets the results so far.
fn slis_page(metrics: &Metrics, method: &Method, headers: &HeaderMap) -> Response {
    if method == Method::DELETE {
        metrics.slis.reset();
        return text(StatusCode::OK, "metrics reset\n");
    }
    let exposition = accept::exposition(headers);
    match metrics.slis.scrape(exposition) {
        Ok(body) => exposed(exposition, body),
        Err(reason) => scrape_failed(&reason),
    }
}

fn exposed(exposition: Exposition, body: Vec<u8>) -> Response {
    ([(header::CONTENT_TYPE, exposition.content_type())], body).into_response()
}

fn scrape_failed(reason: &dyn fmt::Display) -> Response {
    error!(%reason, "Cannot export metrics");
    text(StatusCode::INTERNAL_SERVER_ERROR, "cannot export metrics\n")
}

/// `/configz`: the configuration under its group's key, worded once.
fn configz(configuration: serde_json::Value) -> Response<String> {
    let body = serde_json::json!({ "kubeproxy.config.k8s.io": configuration });
    let mut response = Response::new(body.to_string());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    let nosniff = header::HeaderValue::from_static("nosniff");
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    response
}
