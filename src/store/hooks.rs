//! Hooks of projects, and what they share with their senders. What came to them is in [`deliveries`].

pub mod deliveries;
pub mod secrets;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{PgPool, types::Json};
use uuid::Uuid;

use self::secrets::{SecretRow, Shared};
use super::{Error, rows::Place, secrets::seal::Sealed};
use crate::domain::{
    hook::{HookDefinition, HookId},
    project::ProjectName,
};

/// Most hooks of a project.
const MAX: i64 = 200;

/// A hook.
#[derive(Clone, Debug)]
pub struct Hook {
    /// Its id.
    pub id: HookId,
    /// Who owns it and its builds.
    pub project: ProjectName,
    /// Who sends, and what is built.
    pub definition: HookDefinition,
    /// Its secrets, newest first; one that was replaced may still be good.
    pub secrets: Vec<Shared>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
}

struct HookRow {
    id: Uuid,
    project: String,
    name: String,
    forge: String,
    rules: Value,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

impl HookRow {
    fn with(self, secrets: Vec<Shared>) -> Result<Hook, Error> {
        let place = Place {
            table: "hooks",
            row: &self.id,
        };
        Ok(Hook {
            id: HookId(self.id),
            project: place.parse("project", &self.project)?,
            definition: HookDefinition {
                name: place.parse("name", &self.name)?,
                forge: place.parse("forge", &self.forge)?,
                rules: place.json("rules", self.rules)?,
            },
            secrets,
            created_at: self.created_at,
            updated_at: self.updated_at,
        })
    }
}

/// What became of a new hook.
#[derive(Clone, Debug)]
pub enum CreateOutcome {
    /// It is stored.
    Created(Box<Hook>),
    /// There is no such project.
    UnknownProject,
    /// The project has as many hooks as it may have: this many.
    Full(i64),
}

/// Stores a hook with its first secret.
pub async fn create(
    pool: &PgPool,
    id: HookId,
    project: &ProjectName,
    definition: &HookDefinition,
    sealed: &Sealed,
) -> Result<CreateOutcome, Error> {
    let mut transaction = pool.begin().await?;
    // Hooks of a project are made one after the other, so that they can be counted.
    let found = sqlx::query_scalar!("SELECT name FROM projects WHERE name = $1 FOR UPDATE", project.as_str())
        .fetch_optional(&mut *transaction)
        .await?;
    if found.is_none() {
        return Ok(CreateOutcome::UnknownProject);
    }
    let count = sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM hooks WHERE project = $1"#,
        project.as_str()
    )
    .fetch_one(&mut *transaction)
    .await?;
    if count >= MAX {
        return Ok(CreateOutcome::Full(MAX));
    }
    let row = sqlx::query_as!(
        HookRow,
        "INSERT INTO hooks (id, project, name, forge, rules) VALUES ($1, $2, $3, $4, $5)
         RETURNING id, project, name, forge, rules, created_at, updated_at",
        id.0,
        project.as_str(),
        definition.name.as_str(),
        definition.forge.as_str(),
        Json(&definition.rules) as _,
    )
    .fetch_one(&mut *transaction)
    .await?;
    secrets::insert(&mut transaction, id, secrets::FIRST, sealed).await?;
    let secrets = secrets::of(&mut transaction, &[id.0]).await?;
    transaction.commit().await?;
    row.with(secrets::take(secrets, id)?)
        .map(|hook| CreateOutcome::Created(Box::new(hook)))
}

/// A hook, whoever owns it.
pub async fn get(pool: &PgPool, id: HookId) -> Result<Option<Hook>, Error> {
    let mut connection = pool.acquire().await?;
    let row = sqlx::query_as!(
        HookRow,
        "SELECT id, project, name, forge, rules, created_at, updated_at FROM hooks WHERE id = $1",
        id.0,
    )
    .fetch_optional(&mut *connection)
    .await?;
    let Some(row) = row else { return Ok(None) };
    let secrets = secrets::of(&mut connection, &[id.0]).await?;
    row.with(secrets::take(secrets, id)?).map(Some)
}

/// A project's hooks, oldest first.
pub async fn list(pool: &PgPool, project: &ProjectName) -> Result<Vec<Hook>, Error> {
    let mut connection = pool.acquire().await?;
    let rows = sqlx::query_as!(
        HookRow,
        "SELECT id, project, name, forge, rules, created_at, updated_at FROM hooks WHERE project = $1 ORDER BY id",
        project.as_str(),
    )
    .fetch_all(&mut *connection)
    .await?;
    let ids: Vec<Uuid> = rows.iter().map(|row| row.id).collect();
    let mut secrets: Vec<SecretRow> = secrets::of(&mut connection, &ids).await?;
    rows.into_iter()
        .map(|row| {
            let (own, others) = secrets.drain(..).partition(|secret| secret.hook_id == row.id);
            secrets = others;
            let own = secrets::take(own, HookId(row.id))?;
            row.with(own)
        })
        .collect()
}

/// Puts another definition in place of a hook's own, if that is still the one that was changed; false when it isn't.
pub async fn update(pool: &PgPool, old: &Hook, definition: &HookDefinition) -> Result<bool, Error> {
    let changed = sqlx::query!(
        "UPDATE hooks SET name = $3, rules = $4, updated_at = clock_timestamp() WHERE id = $1 AND updated_at = $2",
        old.id.0,
        old.updated_at,
        definition.name.as_str(),
        Json(&definition.rules) as _,
    )
    .execute(pool)
    .await?;
    Ok(changed.rows_affected() == 1)
}

/// Deletes a hook, with all that came to it; false when the project has none of this id.
pub async fn delete(pool: &PgPool, project: &ProjectName, id: HookId) -> Result<bool, Error> {
    let deleted = sqlx::query!(
        "DELETE FROM hooks WHERE project = $1 AND id = $2",
        project.as_str(),
        id.0
    )
    .execute(pool)
    .await?;
    Ok(deleted.rows_affected() == 1)
}
