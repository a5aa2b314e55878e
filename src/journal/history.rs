//! Where journals are read from. Readers ask here and needn't know what keeps a journal.

use sqlx::PgPool;

use super::archive::{Archive, ArchiveError};
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
    /// The build was deleted while its journal was read.
    #[error("the build was deleted")]
    Deleted,
    /// The archive.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

/// The journals of all builds. Cheap to clone.
#[derive(Clone)]
pub struct History {
    pool: PgPool,
    archive: Option<Archive>,
}

impl History {
    /// The journals that this database knows of.
    pub const fn new(pool: PgPool) -> Self {
        Self { pool, archive: None }
    }

    /// The same, with those that were moved into an archive.
    #[must_use]
    pub fn with_archive(self, archive: Option<Archive>) -> Self {
        Self { archive, ..self }
    }

    /// The database.
    pub const fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// The entries after `after`, as many as one page holds; empty when there are none yet.
    pub async fn read(&self, build: BuildId, after: i64) -> Result<Page, ReadError> {
        let page = store::journal::read(&self.pool, build, after).await?;
        if !page.is_empty() {
            return Ok(page);
        }
        // All rows of a journal go at once, so a reader finds its next entry either there or here.
        let Some(archived) = store::archives::get(&self.pool, build).await? else {
            return Ok(page);
        };
        if after >= archived.head {
            return Ok(page);
        }
        Ok(self.archive()?.read(archived, after).await?)
    }

    /// Sees that an archived journal can be read, so that a caller can be told before the answer begins.
    pub async fn check(&self, build: BuildId) -> Result<(), ReadError> {
        if let Some(archived) = store::archives::get(&self.pool, build).await? {
            self.archive()?.check(archived).await?;
        }
        Ok(())
    }

    fn archive(&self) -> Result<&Archive, ArchiveError> {
        self.archive.as_ref().ok_or(ArchiveError::NotConfigured)
    }
}
