//! Keeps history from growing for ever: partitions of the journal, its move into the archive, and deleting what has been
//! kept for long enough. Any number of replicas do it at the same time; each step takes what no other has in hand.

use std::time::Duration;

use chrono::{TimeDelta, Utc};
use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use super::config::seconds;
use crate::{
    journal::archive::{Archive, metrics::Metrics as ArchiveMetrics, mover},
    store::{self, partitions::Period, retention},
};

/// How long things are kept: `[retention]` in the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// Days after their end that builds are kept, with their logs; without end when absent.
    pub builds_days: Option<u32>,
    /// Days that deleted builds are remembered.
    pub deleted_builds_days: u32,
    /// Days that changes of states are kept for those who follow all builds of a project.
    pub changes_days: u32,
    /// Days that tokens are kept after they have expired.
    pub expired_tokens_days: u32,
    /// Days that deliveries to hooks are kept, and known when they come again.
    pub hook_deliveries_days: u32,
    /// Time that a partition of the journal covers.
    pub partition: Period,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            builds_days: None,
            deleted_builds_days: 365,
            changes_days: 30,
            expired_tokens_days: 30,
            hook_deliveries_days: 30,
            partition: Period::Week,
        }
    }
}

/// What the keeper counts.
#[derive(Clone, Default)]
pub struct Metrics {
    partitions: Gauge,
    builds_deleted: Counter,
    failures: Counter,
    archive: ArchiveMetrics,
}

impl Metrics {
    /// Makes the metrics and registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            archive: ArchiveMetrics::register(registry),
            ..Self::default()
        };
        registry.register(
            "kiln_journal_partitions",
            "Partitions of the journal",
            metrics.partitions.clone(),
        );
        registry.register(
            "kiln_builds_deleted",
            "Builds deleted because they were kept for long enough",
            metrics.builds_deleted.clone(),
        );
        registry.register(
            "kiln_keeper_failures",
            "Steps of keeping history in bounds that failed and are tried again",
            metrics.failures.clone(),
        );
        metrics
    }
}

/// What keeps history in bounds.
pub struct Keeper {
    /// The database.
    pub pool: PgPool,
    /// Where journals are moved to; without one they stay.
    pub archive: Option<Archive>,
    /// How long a build is over before its journal is moved.
    pub archive_after_seconds: u32,
    /// How long things are kept.
    pub retention: Retention,
    /// Time between looks.
    pub interval_seconds: u32,
    /// Counters.
    pub metrics: Metrics,
}

impl Keeper {
    /// Looks now and then until told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let interval = seconds(self.interval_seconds);
        // At once, so that a service that was away for long has its partitions.
        let mut pause = Duration::ZERO;
        while stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
            let _ = stop.run_until_cancelled(self.keep(&stop)).await;
            pause = interval.mul_f64(rand::random_range(0.8..1.2));
        }
    }

    /// Does everything once.
    pub async fn keep(&self, stop: &CancellationToken) {
        self.note("partitions of the journal", self.partitions().await);
        self.note("deleting builds", self.delete_builds(stop).await);
        self.note("deleting what is too old", self.delete_rows(stop).await);
        if let Some(archive) = &self.archive {
            self.move_journals(archive, stop).await;
            self.remove_objects(archive).await;
        }
    }

    fn note(&self, step: &'static str, outcome: Result<(), store::Error>) {
        if let Err(error) = outcome {
            self.metrics.failures.inc();
            let cause = std::error::Error::source(&error);
            tracing::warn!(step, error = %error, cause = ?cause, "history is not kept in bounds");
        }
    }

    async fn partitions(&self) -> Result<(), store::Error> {
        let Some(kept) = store::partitions::keep(&self.pool, self.retention.partition, Utc::now()).await? else {
            return Ok(());
        };
        self.metrics
            .partitions
            .set(i64::try_from(kept.count).unwrap_or(i64::MAX));
        if !kept.made.is_empty() || !kept.dropped.is_empty() {
            tracing::info!(made = ?kept.made, dropped = ?kept.dropped, "changed the partitions of the journal");
        }
        Ok(())
    }

    async fn delete_builds(&self, stop: &CancellationToken) -> Result<(), store::Error> {
        let Some(days) = self.retention.builds_days else {
            return Ok(());
        };
        let mut deleted = 0;
        while !stop.is_cancelled() {
            let count = retention::delete_builds(&self.pool, days).await?;
            if count == 0 {
                break;
            }
            self.metrics.builds_deleted.inc_by(count);
            deleted += count;
        }
        if deleted > 0 {
            tracing::info!(count = deleted, "deleted builds that were kept for long enough");
        }
        Ok(())
    }

    async fn delete_rows(&self, stop: &CancellationToken) -> Result<(), store::Error> {
        let days = &self.retention;
        while !stop.is_cancelled()
            && retention::delete_changes(&self.pool, days.changes_days).await?
                + retention::delete_expired_tokens(&self.pool, days.expired_tokens_days).await?
                + store::hooks::deliveries::delete_old(&self.pool, days.hook_deliveries_days).await?
                + retention::forget_deleted(&self.pool, days.deleted_builds_days).await?
                > 0
        {}
        Ok(())
    }

    async fn move_journals(&self, archive: &Archive, stop: &CancellationToken) {
        let metrics = &self.metrics.archive;
        let after = self.archive_after_seconds;
        // It tells of its failures itself.
        let _ = mover::move_due(&self.pool, archive, after, metrics, stop).await;
        match store::archives::backlog(&self.pool, after).await {
            Ok((count, oldest)) => {
                let due = oldest.map(|oldest| Utc::now() - oldest - TimeDelta::seconds(after.into()));
                // Two clocks may be a little apart.
                let age = due.and_then(|due| due.to_std().ok()).unwrap_or_default();
                metrics.backlog(count, age);
            }
            Err(error) => self.note("counting the archive's backlog", Err(error)),
        }
    }

    /// Removes the objects of deleted builds.
    async fn remove_objects(&self, archive: &Archive) {
        loop {
            let objects = match retention::objects_to_remove(&self.pool).await {
                Ok(objects) if objects.is_empty() => return,
                Ok(objects) => objects,
                Err(error) => return self.note("removing objects of deleted builds", Err(error)),
            };
            let mut removed = Vec::new();
            for object in objects {
                match archive.remove(object).await {
                    Ok(()) => removed.push(object.build),
                    Err(error) => {
                        self.metrics.failures.inc();
                        tracing::warn!(build.id = %object.build, error = %error, cause = ?std::error::Error::source(&error), "the archived journal of a deleted build can't be removed");
                        break;
                    }
                }
            }
            if removed.is_empty() {
                return;
            }
            if let Err(error) = retention::objects_removed(&self.pool, &removed).await {
                return self.note("removing objects of deleted builds", Err(error));
            }
        }
    }
}
