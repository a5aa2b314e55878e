//! The key that attempts' tokens are made with: the same for all replicas, made by whichever needs it first.

use std::sync::Arc;

use sqlx::PgPool;
use tokio::sync::OnceCell;

use super::Error;
use crate::domain::attempt_token::AttemptKey;

/// The installation's key, read when it is first needed. Clones share it.
#[derive(Clone, Debug)]
pub struct AttemptKeys {
    /// What the key becomes if there is none.
    candidate: AttemptKey,
    key: Arc<OnceCell<AttemptKey>>,
}

impl AttemptKeys {
    /// Nothing is asked yet. The random bytes become the key if the installation has none.
    pub fn new(random: [u8; AttemptKey::LEN]) -> Self {
        Self {
            candidate: AttemptKey::from_bytes(random),
            key: Arc::default(),
        }
    }

    /// The key.
    pub async fn get(&self, pool: &PgPool) -> Result<&AttemptKey, Error> {
        self.key.get_or_try_init(|| self.fetch(pool)).await
    }

    async fn fetch(&self, pool: &PgPool) -> Result<AttemptKey, Error> {
        sqlx::query!(
            "INSERT INTO installation_keys (name, key) VALUES ('attempts', $1) ON CONFLICT (name) DO NOTHING",
            self.candidate.as_bytes().as_slice(),
        )
        .execute(pool)
        .await?;
        let stored = sqlx::query_scalar!("SELECT key FROM installation_keys WHERE name = 'attempts'")
            .fetch_one(pool)
            .await?;
        let key = stored.try_into().map_err(|_| Error::Inconsistent {
            table: "installation_keys",
            column: "key",
            row: "attempts".to_owned(),
            problem: "not 32 bytes".to_owned(),
        })?;
        Ok(AttemptKey::from_bytes(key))
    }
}
