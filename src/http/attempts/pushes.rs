//! What the operations on attempts' logs share: the way into the journal, the memory that pushes may take, and counters.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{http::error::ApiError, journal::Logs};

/// Memory is given out in units of this many bytes.
const UNIT: u64 = 64 * 1024;
/// What a push takes in memory, in units, when nothing is known of it: the body, its frames and the entries made of it.
const MOST_UNITS: u32 = 48;
/// About how much more a compressed body takes once it is in hand.
const GROWTH: u64 = 16;
/// How long a push waits for memory before its attempt is asked to come back.
const PATIENCE: Duration = Duration::from_secs(2);

/// Takes pushes in. Cheap to clone.
#[derive(Clone)]
pub struct Pushes {
    logs: Logs,
    memory: Arc<Semaphore>,
    metrics: PushMetrics,
}

impl Pushes {
    /// Into these logs, by their limits.
    pub fn new(logs: Logs, metrics: PushMetrics) -> Self {
        let units = logs.limits().max_push_memory.0 / UNIT;
        let units = usize::try_from(units).unwrap_or(usize::MAX);
        Self {
            memory: Arc::new(Semaphore::new(units.clamp(MOST_UNITS as usize, Semaphore::MAX_PERMITS))),
            logs,
            metrics,
        }
    }

    pub(super) const fn logs(&self) -> &Logs {
        &self.logs
    }

    pub(super) const fn metrics(&self) -> &PushMetrics {
        &self.metrics
    }

    /// Waits until there is memory for a body of this length; not for long.
    pub(super) async fn admit(&self, length: Option<u64>) -> Result<Option<OwnedSemaphorePermit>, ApiError> {
        let units = match length {
            Some(0) => return Ok(None),
            Some(length) => u32::try_from((length * GROWTH).div_ceil(UNIT)).map_or(MOST_UNITS, |n| n.min(MOST_UNITS)),
            None => MOST_UNITS,
        };
        let room = Arc::clone(&self.memory).acquire_many_owned(units);
        match tokio::time::timeout(PATIENCE, room).await {
            Ok(Ok(permit)) => Ok(Some(permit)),
            // It is never closed.
            Ok(Err(_)) | Err(_) => Err(ApiError::PushesFull),
        }
    }
}

/// Why a push was refused.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusedLabels {
    reason: &'static str,
}

/// Counters of what attempts push. Cheap to clone.
#[derive(Clone)]
pub struct PushMetrics {
    bytes: Counter,
    lag: Histogram,
    refused: Family<RefusedLabels, Counter>,
}

impl PushMetrics {
    /// Makes the metrics and has them shown by `/metrics`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            bytes: Counter::default(),
            lag: Histogram::new(exponential_buckets(0.01, 2.0, 16)),
            refused: Family::default(),
        };
        registry.register(
            "kiln_log_pushed_bytes",
            "Bytes of log that attempts pushed and that are durable, before compression",
            metrics.bytes.clone(),
        );
        registry.register(
            "kiln_log_push_lag_seconds",
            "From the moment at which the newest line of a push was printed until it was durable",
            metrics.lag.clone(),
        );
        registry.register(
            "kiln_log_pushes_refused",
            "Pushes and seals that were not taken, by reason",
            metrics.refused.clone(),
        );
        metrics
    }

    /// Counts a push that is durable.
    pub(super) fn took(&self, bytes: usize, newest_ms: Option<u64>, now: DateTime<Utc>) {
        self.bytes.inc_by(bytes as u64);
        let printed = newest_ms.and_then(|at| i64::try_from(at).ok());
        if let Some(printed) = printed.and_then(DateTime::from_timestamp_millis) {
            // Two clocks may be a little apart.
            let lag = (now - printed).to_std().unwrap_or_default();
            self.lag.observe(lag.as_secs_f64());
        }
    }

    /// Counts a push that was not taken.
    pub(super) fn refused(&self, error: &ApiError) {
        let reason = match error {
            ApiError::LogOffset(_) => "offset",
            ApiError::AttemptOver | ApiError::NotFound(_) => "over",
            ApiError::PushesFull => "busy",
            ApiError::Store(_) | ApiError::Journal => "database",
            _ => "invalid",
        };
        self.refused.get_or_create(&RefusedLabels { reason }).inc();
    }
}
