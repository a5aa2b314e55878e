//! Counters of the API. Labels are bounded: the path is the route's pattern, an unknown method is `other`.

use std::{sync::atomic::AtomicI64, time::Instant};

use axum::{
    extract::{MatchedPath, Request, State},
    http::Method,
    middleware::Next,
    response::Response,
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

/// The API's own metrics. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    seconds: Family<RouteLabels, Histogram, fn() -> Histogram>,
    problems: Family<ProblemLabels, Counter>,
    streams: Gauge<i64, AtomicI64>,
    uploaded: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    path: String,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    method: &'static str,
    path: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProblemLabels {
    code: &'static str,
}

fn histogram() -> Histogram {
    Histogram::new([
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
    ])
}

impl Metrics {
    /// Makes the metrics and has them shown by `/metrics`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            seconds: Family::new_with_constructor(histogram),
            problems: Family::default(),
            streams: Gauge::default(),
            uploaded: Counter::default(),
        };
        registry.register(
            "kiln_http_requests",
            "Requests answered, by route",
            metrics.requests.clone(),
        );
        registry.register_with_unit(
            "kiln_http_request_duration",
            "Time to the first byte of the answer, by route",
            Unit::Seconds,
            metrics.seconds.clone(),
        );
        registry.register(
            "kiln_http_problems",
            "Problem documents sent, by code",
            metrics.problems.clone(),
        );
        registry.register(
            "kiln_http_streams",
            "Open event and log streams",
            metrics.streams.clone(),
        );
        registry.register(
            "kiln_uploaded_bytes",
            "Size of the archives that were stored",
            metrics.uploaded.clone(),
        );
        metrics
    }

    pub(super) fn problem(&self, code: &'static str) {
        self.problems.get_or_create(&ProblemLabels { code }).inc();
    }

    /// Counts an archive that was stored.
    pub(super) fn uploaded(&self, bytes: u64) {
        self.uploaded.inc_by(bytes);
    }

    /// Counts a stream for as long as the value lives.
    pub(super) fn stream(&self) -> OpenStream {
        self.streams.inc();
        OpenStream(self.streams.clone())
    }
}

/// A stream that is open.
pub(super) struct OpenStream(Gauge<i64, AtomicI64>);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// Middleware: counts and times requests.
pub(super) async fn observe(State(metrics): State<Metrics>, request: Request, next: Next) -> Response {
    let method = method(request.method());
    let path = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("unmatched", MatchedPath::as_str)
        .to_owned();
    let started = Instant::now();
    let response = next.run(request).await;
    let route = RouteLabels {
        method,
        path: path.clone(),
    };
    metrics
        .seconds
        .get_or_create(&route)
        .observe(started.elapsed().as_secs_f64());
    let labels = RequestLabels {
        method,
        path,
        status: response.status().as_u16(),
    };
    metrics.requests.get_or_create(&labels).inc();
    response
}
