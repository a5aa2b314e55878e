//! Limits and timers of the engine: `[engine]` in the configuration.

use std::time::Duration;

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};

use crate::domain::{
    node::AvoidPolicy,
    spec::{Limits, MemoryBytes},
    state::RetryPolicy,
};

/// Limits and timers. Durations are whole seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Live builds (starting, running, cancelling) in the whole installation.
    pub max_live_builds: u32,
    /// Builds claimed in one statement.
    pub claim_batch: u32,
    /// A worker that hasn't renewed its row for this long is taken for dead.
    pub lease_seconds: u32,
    /// How long a pod may wait for a node.
    pub unscheduled_timeout_seconds: u32,
    /// How long a pod's images may take to arrive once pulling has failed the first time.
    pub image_pull_timeout_seconds: u32,
    /// How long a pod may take to run its first step.
    pub pending_timeout_seconds: u32,
    /// How long an attempt that was told to stop may take before it is removed by force.
    pub stop_timeout_seconds: u32,
    /// How long the rest of a log may take to arrive after its step has ended.
    pub log_drain_timeout_seconds: u32,
    /// How long an attempt that could push its log may be silent before its log is read instead.
    pub log_push_patience_seconds: u32,
    /// How long an attempt that pushes its log may take to hand over the rest after a step has ended.
    pub log_seal_timeout_seconds: u32,
    /// Attempts that a build gets when the infrastructure fails it.
    pub max_attempts: u32,
    /// Wait before the second attempt; doubles with each further one.
    pub retry_backoff_seconds: u32,
    /// How long a build that failed on a node waits for another one before it may go there again.
    pub other_node_timeout_seconds: u32,
    /// So many failures of a node …
    pub node_failures: u32,
    /// … within this time …
    pub node_failures_seconds: u32,
    /// … have builds sent elsewhere for this long.
    pub avoid_node_seconds: u32,
    /// The most memory that a build which ran out of it is given.
    #[serde(skip, default = "max_memory")]
    pub max_memory: MemoryBytes,
    /// How long a drain (SIGTERM) may take before what is left is given up to other workers.
    pub drain_timeout_seconds: u32,
    /// Time between looks for what nobody owns any more.
    pub sweep_interval_seconds: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_live_builds: 500,
            claim_batch: 64,
            lease_seconds: 15,
            unscheduled_timeout_seconds: 300,
            image_pull_timeout_seconds: 60,
            pending_timeout_seconds: 600,
            stop_timeout_seconds: 20,
            log_drain_timeout_seconds: 60,
            log_push_patience_seconds: 15,
            log_seal_timeout_seconds: 600,
            max_attempts: 4,
            retry_backoff_seconds: 5,
            other_node_timeout_seconds: 30,
            node_failures: 2,
            node_failures_seconds: 600,
            avoid_node_seconds: 1800,
            max_memory: max_memory(),
            drain_timeout_seconds: 10,
            sweep_interval_seconds: 60,
        }
    }
}

fn max_memory() -> MemoryBytes {
    Limits::default().max_resources.memory
}

pub(super) const fn seconds(count: u32) -> Duration {
    Duration::from_secs(count as u64)
}

impl Config {
    /// What is tried again: of a build that asked for `asked` of memory, after an attempt that had `given`.
    pub(super) fn retry(&self, asked: MemoryBytes, given: MemoryBytes) -> RetryPolicy {
        let raised = given != asked;
        RetryPolicy {
            // The attempt that ran out of memory is none of the infrastructure's.
            max_attempts: self.max_attempts.saturating_add(raised.into()),
            backoff: TimeDelta::seconds(self.retry_backoff_seconds.into()),
            more_memory: !raised && self.more_memory(given) > given,
        }
    }

    /// What an attempt is given after one that ran out of this much.
    pub(super) fn more_memory(&self, given: MemoryBytes) -> MemoryBytes {
        MemoryBytes(given.0.saturating_mul(2).min(self.max_memory.0)).max(given)
    }

    pub(super) fn avoid(&self) -> AvoidPolicy {
        AvoidPolicy {
            failures: self.node_failures,
            within: TimeDelta::seconds(self.node_failures_seconds.into()),
            lasts: TimeDelta::seconds(self.avoid_node_seconds.into()),
        }
    }
}
