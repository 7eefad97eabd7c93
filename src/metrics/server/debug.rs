//! `/debug/...`, with profiling enabled (section 9.1, B-252).
//!
//! Place in the flow: hands a new verbosity to the logging's callback. Go's profiles do not exist.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use axum::routing::any;

use super::SetVerbosity;
use crate::http_server::text;

/// A number and some white space.
const MAX_BODY: usize = 64;

pub(super) fn router(set_verbosity: SetVerbosity) -> Router {
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
