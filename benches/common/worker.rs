//! A worker that does nothing but hold builds, so that their logs can be written.

use std::time::Duration;

use anyhow::ensure;
use chrono::Utc;
use kiln::{
    domain::{
        attempt_token::{AttemptKey, Purpose},
        id::{AttemptId, ReplicaId},
    },
    store::{
        self,
        attempt_keys::AttemptKeys,
        leases,
        queue::{ClaimLimits, Claimed, claim},
    },
};
use sqlx::PgPool;
use url::Url;

/// Longer than any benchmark takes.
const LEASE: Duration = Duration::from_hours(1);

pub(crate) struct Worker {
    pub(crate) pool: PgPool,
    id: ReplicaId,
}

impl Worker {
    pub(crate) async fn start(database: &Url) -> anyhow::Result<Self> {
        let pool = store::pool(database.as_str(), 5, Duration::from_secs(30))?;
        let id = ReplicaId::new();
        leases::register(&pool, id, "bench", LEASE).await?;
        Ok(Self { pool, id })
    }

    /// Takes builds from the queue; there must be that many.
    pub(crate) async fn claim(&self, count: usize) -> anyhow::Result<Vec<Claimed>> {
        let limits = ClaimLimits {
            batch: u32::try_from(count)?,
            live: u32::MAX,
            project: kiln::domain::queue::ProjectLimits::NONE,
        };
        let claimed = claim(&self.pool, self.id, limits, "bench-", Utc::now()).await?;
        ensure!(claimed.len() == count, "{} of {count} builds are queued", claimed.len());
        Ok(claimed)
    }

    /// With what an attempt may write its log.
    pub(crate) async fn token(&self, attempt: AttemptId) -> anyhow::Result<String> {
        // Made by whoever needs it first, and that may be this one.
        let keys = AttemptKeys::new(rand::random::<[u8; AttemptKey::LEN]>());
        let key = keys.get(&self.pool).await?;
        Ok(key.token(attempt, Purpose::Log).expose().to_owned())
    }
}
