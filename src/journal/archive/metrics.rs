//! What the archive counts.

use std::{sync::atomic::AtomicU64, time::Duration};

use prometheus_client::{
    metrics::{
        counter::Counter,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

/// Counters and timers of the archive. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    builds: Counter,
    bytes: Counter,
    seconds: Histogram,
    /// Journals that couldn't be moved.
    pub(super) failures: Counter,
    backlog: Gauge,
    backlog_age: Gauge<f64, AtomicU64>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            builds: Counter::default(),
            bytes: Counter::default(),
            seconds: Histogram::new(exponential_buckets(0.01, 2.5, 12)),
            failures: Counter::default(),
            backlog: Gauge::default(),
            backlog_age: Gauge::default(),
        }
    }
}

impl Metrics {
    /// Makes the metrics and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "kiln_archive_builds",
            "Journals moved into the archive",
            metrics.builds.clone(),
        );
        registry.register(
            "kiln_archive_bytes",
            "Size of the objects written into the archive",
            metrics.bytes.clone(),
        );
        registry.register(
            "kiln_archive_seconds",
            "Time that moving one journal into the archive took",
            metrics.seconds.clone(),
        );
        registry.register(
            "kiln_archive_failures",
            "Journals that could not be moved into the archive and are tried again",
            metrics.failures.clone(),
        );
        registry.register(
            "kiln_archive_backlog",
            "Journals that are due to be moved into the archive, counted up to 10000",
            metrics.backlog.clone(),
        );
        registry.register(
            "kiln_archive_backlog_age_seconds",
            "How long the oldest of them has been due",
            metrics.backlog_age.clone(),
        );
        metrics
    }

    pub(super) fn moved(&self, bytes: u64, took: Duration) {
        self.builds.inc();
        self.bytes.inc_by(bytes);
        self.seconds.observe(took.as_secs_f64());
    }

    /// What is due and still here.
    pub fn backlog(&self, count: i64, age: Duration) {
        self.backlog.set(count);
        self.backlog_age.set(age.as_secs_f64());
    }
}
