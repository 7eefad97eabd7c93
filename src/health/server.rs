//! `/healthz` and `/livez` of the proxy (section 8.1, port 10256).
//!
//! Place in the flow: asks [`Health`] at each request and counts the answers in
//! [`crate::metrics::Metrics`]. It decides nothing and must not know Services.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use tokio::net::TcpListener;

use super::{Health, Report};
use crate::http_server::{self, Limits, Places, not_found};
use crate::metrics::Metrics;

/// Serves health on a listener from [`http_server::bind`], for ever.
pub async fn run(listener: TcpListener, health: Health, metrics: Arc<Metrics>) -> Infallible {
    http_server::serve(listener, router(health, metrics), Places::new(Limits::default())).await
}

fn router(health: Health, metrics: Arc<Metrics>) -> Router {
    let (live, live_metrics) = (health.clone(), Arc::clone(&metrics));
    let healthz = move || async move {
        let (status, answer) = answer(health.status().healthz());
        metrics.proxy.healthz_answered(status);
        answer
    };
    let livez = move || async move {
        let (status, answer) = answer(live.status().livez());
        live_metrics.proxy.livez_answered(status);
        answer
    };
    Router::new().route("/healthz", any(healthz)).route("/livez", any(livez)).fallback(not_found)
}

fn answer(report: Report) -> (StatusCode, Response) {
    let status = if report.ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers =
        [(header::CONTENT_TYPE, "application/json"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (status, (status, headers, report.body).into_response())
}
