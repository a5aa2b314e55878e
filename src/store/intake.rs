//! What every request asks: whose token this is; and where it is for a build, which cache the project has, and that the
//! build be stored.

use sqlx::PgPool;

use super::{
    Error,
    builds::{self, CreateOutcome, IdempotencyKey, NewBuild},
    gather::Gather,
    projects::{self, NewBuilds},
    tokens::{self, Token},
};
use crate::domain::project::ProjectName;

/// Answers requests that come at the same time together. Cheap to clone.
#[derive(Clone)]
pub struct Intake {
    pool: PgPool,
    tokens: Gather<tokens::ByHash>,
    projects: Gather<projects::OfNewBuilds>,
    builds: Gather<builds::Insert>,
}

impl Intake {
    /// One for a process; without requests it holds no connection.
    pub fn new(pool: PgPool) -> Self {
        Self {
            tokens: Gather::new(pool.clone()),
            projects: Gather::new(pool.clone()),
            builds: Gather::new(pool.clone()),
            pool,
        }
    }

    /// The token with this hash, expired or not, as it is stored after this was called.
    pub async fn token(&self, hash: [u8; 32]) -> Result<Option<Token>, Error> {
        self.tokens.ask(hash).await
    }

    /// What a project says of new builds; `queued` is the limit of projects that have none of their own.
    pub async fn project(&self, project: ProjectName, queued: Option<u32>) -> Result<NewBuilds, Error> {
        self.projects.ask((project, queued)).await
    }

    /// As [`builds::create`].
    pub async fn create(&self, new: NewBuild, key: Option<IdempotencyKey>) -> Result<CreateOutcome, Error> {
        // Those depend on more than their own row.
        if key.is_some() || new.coalesce || new.spec.source.upload().is_some() || new.spec.group.is_some() {
            return builds::create(&self.pool, new, key).await;
        }
        builds::create_with_others(&self.builds, new).await
    }
}
