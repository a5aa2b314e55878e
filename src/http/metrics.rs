//! Counters of the API. Labels are bounded: the path is the route's pattern, an unknown method is `other`.

use std::{
    sync::atomic::{AtomicI64, AtomicU64},
    time::{Duration, Instant},
};

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
use sqlx::PgPool;

use crate::{domain::state::StateName, store};

/// The database has this long to answer whoever asks for the metrics.
const READ_TIMEOUT: Duration = Duration::from_secs(2);

/// The API's own metrics. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    requests: Family<RequestLabels, Counter>,
    seconds: Family<RouteLabels, Histogram, fn() -> Histogram>,
    problems: Family<ProblemLabels, Counter>,
    streams: Gauge<i64, AtomicI64>,
    uploaded: Counter,
    /// Of the whole installation, read from the rows when the metrics are asked for.
    builds: Family<StateLabels, Gauge>,
    orphaned: Gauge,
    queue_age: Gauge<f64, AtomicU64>,
    workers: Family<StateLabels, Gauge>,
    nodes_avoided: Gauge,
    database_up: Gauge,
    connections: Family<StateLabels, Gauge>,
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
struct StateLabels {
    state: &'static str,
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
            builds: Family::default(),
            orphaned: Gauge::default(),
            queue_age: Gauge::default(),
            workers: Family::default(),
            nodes_avoided: Gauge::default(),
            database_up: Gauge::default(),
            connections: Family::default(),
        };
        registry.register(
            "kiln_builds",
            "Builds that are not over, in the whole installation",
            metrics.builds.clone(),
        );
        registry.register(
            "kiln_builds_orphaned",
            "Live builds that no worker has in hand, in the whole installation",
            metrics.orphaned.clone(),
        );
        registry.register(
            "kiln_queue_oldest_seconds",
            "How long the build has waited that could have been claimed first",
            metrics.queue_age.clone(),
        );
        registry.register(
            "kiln_workers",
            "Workers that are alive, in the whole installation",
            metrics.workers.clone(),
        );
        registry.register(
            "kiln_nodes_avoided",
            "Nodes that builds are kept away from because they failed several",
            metrics.nodes_avoided.clone(),
        );
        registry.register(
            "kiln_database_up",
            "Whether the database answered when the metrics were asked for",
            metrics.database_up.clone(),
        );
        registry.register(
            "kiln_database_connections",
            "Connections of this process to the database",
            metrics.connections.clone(),
        );
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

    /// Reads the gauges of the installation. Without the database they keep their values, and `kiln_database_up` says so.
    pub(super) async fn read_installation(&self, pool: &PgPool) {
        let idle = pool.num_idle();
        let open = usize::try_from(pool.size()).unwrap_or(usize::MAX);
        let set = |family: &Family<StateLabels, Gauge>, state, count: i64| {
            family.get_or_create(&StateLabels { state }).set(count);
        };
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        set(&self.connections, "idle", count(idle));
        set(&self.connections, "in_use", count(open.saturating_sub(idle)));
        let totals = tokio::time::timeout(READ_TIMEOUT, store::waiting::totals(pool)).await;
        let Ok(Ok(totals)) = totals else {
            self.database_up.set(0);
            return;
        };
        self.database_up.set(1);
        for (state, count) in [
            (StateName::Queued, totals.queued),
            (StateName::Starting, totals.starting),
            (StateName::Running, totals.running),
            (StateName::Cancelling, totals.cancelling),
        ] {
            set(&self.builds, state.as_str(), count);
        }
        self.orphaned.set(totals.orphaned);
        let age = totals.oldest_available.map_or(0.0, |since| {
            (totals.now - since).to_std().unwrap_or_default().as_secs_f64()
        });
        self.queue_age.set(age);
        self.nodes_avoided.set(totals.avoided_nodes);
        set(&self.workers, "ready", totals.ready_workers);
        set(&self.workers, "not_ready", totals.blocked_workers);
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
