//! Metrics of the API client, `rest_client_*` (section 9.4), as client-go names them.
//!
//! Place in the flow: [`crate::api`] records each request. It must not know what was asked.

use std::time::Duration;

use prometheus::{HistogramVec, IntCounterVec};

use super::definition::{Registrar, Spec};

const VERB_HOST: &[&str] = &["verb", "host"];

const LATENCY: [f64; 12] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];

const SIZE: [f64; 11] = [
    64.0, 256.0, 512.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0,
    16777216.0,
];

/// Metrics of requests to the API server.
#[derive(Debug)]
pub struct ClientMetrics {
    requests: IntCounterVec,
    duration: HistogramVec,
    throttled: HistogramVec,
    request_size: HistogramVec,
    response_size: HistogramVec,
}

/// A request that ended.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The HTTP method: `GET`.
    pub method: &'a str,
    /// The server: `host:port`.
    pub host: &'a str,
    /// The HTTP status; `None` when no answer came.
    pub status: Option<u16>,
    /// From sending to the answer's head.
    pub took: Duration,
    /// Bytes of the request's body.
    pub request_bytes: usize,
    /// Bytes of the answer's body; `None` for streams, which have no end.
    pub response_bytes: Option<usize>,
}

impl ClientMetrics {
    pub(super) fn register(r: &mut Registrar<'_>) -> Self {
        let spec = Spec::new;
        ClientMetrics {
            requests: r.counters(spec(
                "rest_client_requests_total",
                &["code", "method", "host"],
                "Requests to the API server, by status, method and host.",
            )),
            duration: r.histograms(
                spec(
                    "rest_client_request_duration_seconds",
                    VERB_HOST,
                    "Time until the API server answered, in seconds.",
                ),
                &LATENCY,
            ),
            throttled: r.histograms(
                spec(
                    "rest_client_rate_limiter_duration_seconds",
                    VERB_HOST,
                    "Time requests waited for the client's own rate limit, in seconds.",
                ),
                &LATENCY,
            ),
            request_size: r.histograms(
                spec(
                    "rest_client_request_size_bytes",
                    VERB_HOST,
                    "Size of request bodies, in bytes.",
                ),
                &SIZE,
            ),
            response_size: r.histograms(
                spec(
                    "rest_client_response_size_bytes",
                    VERB_HOST,
                    "Size of answers' bodies, in bytes.",
                ),
                &SIZE,
            ),
        }
    }

    /// A request ended.
    pub fn requested(&self, request: Request<'_>) {
        let code = request.status.map_or("<error>".to_owned(), |status| status.to_string());
        self.requests.with_label_values(&[code.as_str(), request.method, request.host]).inc();
        let labels = &[request.method, request.host];
        self.duration.with_label_values(labels).observe(request.took.as_secs_f64());
        self.request_size.with_label_values(labels).observe(request.request_bytes as f64);
        if let Some(bytes) = request.response_bytes {
            self.response_size.with_label_values(labels).observe(bytes as f64);
        }
    }

    /// A request had to wait for the client's rate limit; zero when it had not.
    pub fn throttled(&self, method: &str, host: &str, waited: Duration) {
        self.throttled.with_label_values(&[method, host]).observe(waited.as_secs_f64());
    }
}
