//! What the engine counts. Labels are bounded by enums.

use chrono::TimeDelta;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

/// How a build or an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct EndLabels {
    /// The final state.
    pub state: &'static str,
    /// The failure's code, or `none`.
    pub code: &'static str,
}

/// What an attempt failed with.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CodeLabels {
    /// The failure's code.
    pub code: &'static str,
}

/// What is missing of a log.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct GapLabels {
    /// `end`, or `within`: lines between others.
    pub place: &'static str,
}

/// A part of a build's way.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StageLabels {
    /// `queue`, `start`, `run`, `log_drain` or `verify`.
    pub stage: &'static str,
}

fn stage_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.01, 2.5, 14))
}

/// The engine's counters and timers.
#[derive(Clone)]
pub struct Metrics {
    /// Builds that ended.
    pub builds_finished: Family<EndLabels, Counter>,
    /// Attempts that ended, those included whose build is tried again.
    pub attempts_finished: Family<EndLabels, Counter>,
    /// Builds claimed from the queue.
    pub claimed: Counter,
    /// Builds taken over from a worker that died or gave them up.
    pub taken_over: Counter,
    /// Attempts found running when they were to be launched.
    pub adopted: Counter,
    /// Failures of attempts that their node is to blame for, by code.
    pub node_failures: Family<CodeLabels, Counter>,
    /// Gaps written, by what is missing.
    pub log_gaps: Family<GapLabels, Counter>,
    /// Times that a step's log had to be read because it wasn't pushed.
    pub log_fallbacks: Counter,
    /// Seconds that builds spent at each stage.
    pub stage_seconds: Family<StageLabels, Histogram, fn() -> Histogram>,
    /// Sweeps that could not look for remains or could not remove them.
    pub sweep_failures: Counter,
    /// Remains of ended attempts that a sweep removed.
    pub swept: Counter,
    /// Uploads deleted because their time was over.
    pub uploads_expired: Counter,
    /// Seconds from a claim until the pod existed.
    pub launch_seconds: Histogram,
}

impl Metrics {
    /// Counts the time that a build spent at a stage.
    pub(super) fn stage(&self, stage: &'static str, spent: TimeDelta) {
        // Two clocks may be a little apart.
        let seconds = spent.to_std().unwrap_or_default().as_secs_f64();
        self.stage_seconds
            .get_or_create(&StageLabels { stage })
            .observe(seconds);
    }

    /// Makes the metrics and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            builds_finished: Family::default(),
            attempts_finished: Family::default(),
            claimed: Counter::default(),
            taken_over: Counter::default(),
            adopted: Counter::default(),
            node_failures: Family::default(),
            log_gaps: Family::default(),
            log_fallbacks: Counter::default(),
            stage_seconds: Family::new_with_constructor(stage_histogram),
            sweep_failures: Counter::default(),
            swept: Counter::default(),
            uploads_expired: Counter::default(),
            launch_seconds: Histogram::new(exponential_buckets(0.002, 2.0, 14)),
        };
        registry.register(
            "kiln_builds_finished",
            "Builds that ended",
            metrics.builds_finished.clone(),
        );
        registry.register(
            "kiln_attempts_finished",
            "Attempts that ended, retried ones included",
            metrics.attempts_finished.clone(),
        );
        registry.register(
            "kiln_builds_claimed",
            "Builds claimed from the queue",
            metrics.claimed.clone(),
        );
        registry.register(
            "kiln_builds_taken_over",
            "Builds taken over from a worker that died or gave them up",
            metrics.taken_over.clone(),
        );
        registry.register(
            "kiln_attempts_adopted",
            "Attempts found running when they were to be launched",
            metrics.adopted.clone(),
        );
        registry.register(
            "kiln_node_failures",
            "Failures of attempts that their node is to blame for",
            metrics.node_failures.clone(),
        );
        registry.register(
            "kiln_log_gaps",
            "Gaps written because a part of a step's log was missing",
            metrics.log_gaps.clone(),
        );
        registry.register(
            "kiln_log_fallbacks",
            "Times that a step's log was read from where it ran because it was not pushed",
            metrics.log_fallbacks.clone(),
        );
        registry.register(
            "kiln_stage_seconds",
            "Time that builds spent at each stage",
            metrics.stage_seconds.clone(),
        );
        registry.register(
            "kiln_sweep_failures",
            "Sweeps that could not look for remains or could not remove them",
            metrics.sweep_failures.clone(),
        );
        registry.register(
            "kiln_swept",
            "Remains of ended attempts that a sweep removed",
            metrics.swept.clone(),
        );
        registry.register(
            "kiln_uploads_expired",
            "Uploads deleted because their time was over",
            metrics.uploads_expired.clone(),
        );
        registry.register(
            "kiln_launch_seconds",
            "From the claim of a build until its pod existed",
            metrics.launch_seconds.clone(),
        );
        metrics
    }
}
