//! Where journals are read from. Readers ask here and needn't know what keeps a journal.

use sqlx::PgPool;

use crate::{
    domain::id::BuildId,
    store::{self, journal::Page},
};

/// Why a journal can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The database.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// The journals of all builds. Cheap to clone.
#[derive(Clone)]
pub struct History {
    pool: PgPool,
}

impl History {
    /// The journals that this database knows of.
    pub const fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// The database.
    pub const fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// The entries after `after`, as many as one page holds; empty when there are none yet.
    pub async fn read(&self, build: BuildId, after: i64) -> Result<Page, ReadError> {
        Ok(store::journal::read(&self.pool, build, after).await?)
    }
}
