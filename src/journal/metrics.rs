//! What the journal's writer counts.

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge, histogram::Histogram, histogram::exponential_buckets},
    registry::Registry,
};

/// Counters and timers of the journal's writer. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    /// Seconds that one flush took, waiting for the database included.
    pub(super) flush_seconds: Histogram,
    /// Entries written.
    pub(super) entries: Counter,
    /// Bytes written, after compression.
    pub(super) bytes: Counter,
    /// Appends that have been handed in and aren't durable yet.
    pub(super) waiting: Gauge,
    /// Flushes that had to be tried again or were refused.
    pub(super) failures: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            flush_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 14)),
            entries: Counter::default(),
            bytes: Counter::default(),
            waiting: Gauge::default(),
            failures: Counter::default(),
        }
    }
}

impl Metrics {
    /// Makes the metrics and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "kiln_journal_flush_seconds",
            "Group commits of log entries",
            metrics.flush_seconds.clone(),
        );
        registry.register("kiln_journal_entries", "Log entries written", metrics.entries.clone());
        registry.register(
            "kiln_journal_bytes",
            "Bytes of log entries written, compressed",
            metrics.bytes.clone(),
        );
        registry.register(
            "kiln_journal_waiting",
            "Appends that were handed in and are not durable yet",
            metrics.waiting.clone(),
        );
        registry.register(
            "kiln_journal_failures",
            "Group commits that failed and were tried again, or were refused",
            metrics.failures.clone(),
        );
        metrics
    }
}
