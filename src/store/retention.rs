//! Deleting what has been kept for long enough, in batches that hold nobody up.

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use uuid::Uuid;

use super::{Error, archives::ObjectId, rows::Place};
use crate::domain::{id::BuildId, project::ProjectName};

/// Builds deleted by one transaction; each may have a long journal.
const BUILDS: i64 = 100;
/// Rows of small tables deleted by one statement.
const ROWS: i64 = 5000;
/// Objects of deleted builds looked for at once.
const OBJECTS: i64 = 100;

/// Deletes builds that have been over for `days`, with all that belongs to them, and leaves a note of each. A limited
/// number at once; returns how many.
pub async fn delete_builds(pool: &PgPool, days: u32) -> Result<u64, Error> {
    let mut transaction = pool.begin().await?;
    let old = sqlx::query_scalar!(
        "SELECT id FROM builds WHERE finished_at IS NOT NULL AND finished_at < now() - make_interval(days => $1)
         ORDER BY finished_at LIMIT $2 FOR UPDATE SKIP LOCKED",
        i32::try_from(days).unwrap_or(i32::MAX),
        BUILDS,
    )
    .fetch_all(&mut *transaction)
    .await?;
    if old.is_empty() {
        transaction.rollback().await?;
        return Ok(0);
    }
    sqlx::query!(
        "INSERT INTO deleted_builds (id, project, objects)
         SELECT b.id, b.project, a.tries FROM builds b LEFT JOIN archives a ON a.build_id = b.id WHERE b.id = ANY($1)
         ON CONFLICT (id) DO NOTHING",
        &old,
    )
    .execute(&mut *transaction)
    .await?;
    sqlx::query!("DELETE FROM journal WHERE build_id = ANY($1)", &old)
        .execute(&mut *transaction)
        .await?;
    let deleted = sqlx::query!("DELETE FROM builds WHERE id = ANY($1)", &old)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(deleted.rows_affected())
}

/// A build that was there once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeletedBuild {
    /// Who owned it.
    pub project: ProjectName,
    /// When it was deleted.
    pub deleted_at: DateTime<Utc>,
}

/// What is remembered of a deleted build.
pub async fn deleted_build(pool: &PgPool, id: BuildId) -> Result<Option<DeletedBuild>, Error> {
    let row = sqlx::query!("SELECT project, deleted_at FROM deleted_builds WHERE id = $1", id.0)
        .fetch_optional(pool)
        .await?;
    row.map(|row| {
        let place = Place {
            table: "deleted_builds",
            row: &id,
        };
        Ok(DeletedBuild {
            project: place.parse("project", &row.project)?,
            deleted_at: row.deleted_at,
        })
    })
    .transpose()
}

/// Deleted builds whose objects may still be in the archive: for each the name that was used last.
pub async fn objects_to_remove(pool: &PgPool) -> Result<Vec<ObjectId>, Error> {
    let rows = sqlx::query!(
        r#"SELECT id, objects AS "objects!" FROM deleted_builds WHERE objects IS NOT NULL ORDER BY deleted_at LIMIT $1"#,
        OBJECTS,
    )
    .fetch_all(pool)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| ObjectId {
            build: BuildId(row.id),
            tries: row.objects,
        })
        .collect())
}

/// Notes that the objects of these builds are gone.
pub async fn objects_removed(pool: &PgPool, builds: &[BuildId]) -> Result<(), Error> {
    let ids: Vec<Uuid> = builds.iter().map(|build| build.0).collect();
    sqlx::query!("UPDATE deleted_builds SET objects = NULL WHERE id = ANY($1)", &ids)
        .execute(pool)
        .await?;
    Ok(())
}

/// Forgets builds that were deleted more than `days` ago and whose objects are gone. A limited number at once; returns
/// how many.
pub async fn forget_deleted(pool: &PgPool, days: u32) -> Result<u64, Error> {
    let deleted = sqlx::query!(
        "DELETE FROM deleted_builds WHERE id IN (
             SELECT id FROM deleted_builds
             WHERE deleted_at < now() - make_interval(days => $1) AND objects IS NULL
             ORDER BY deleted_at LIMIT $2 FOR UPDATE SKIP LOCKED)",
        i32::try_from(days).unwrap_or(i32::MAX),
        ROWS,
    )
    .execute(pool)
    .await?;
    Ok(deleted.rows_affected())
}

/// Deletes changes of states that happened more than `days` ago, in reading order. A limited number at once; returns
/// how many.
pub async fn delete_changes(pool: &PgPool, days: u32) -> Result<u64, Error> {
    let deleted = sqlx::query!(
        "DELETE FROM build_changes WHERE at < now() - make_interval(days => $1) AND seq IN (
             SELECT seq FROM build_changes WHERE seq IS NOT NULL ORDER BY seq LIMIT $2 FOR UPDATE SKIP LOCKED)",
        i32::try_from(days).unwrap_or(i32::MAX),
        ROWS,
    )
    .execute(pool)
    .await?;
    Ok(deleted.rows_affected())
}

/// Deletes tokens that expired more than `days` ago. A limited number at once; returns how many.
pub async fn delete_expired_tokens(pool: &PgPool, days: u32) -> Result<u64, Error> {
    let deleted = sqlx::query!(
        "DELETE FROM tokens WHERE id IN (
             SELECT id FROM tokens WHERE expires_at < now() - make_interval(days => $1) LIMIT $2 FOR UPDATE SKIP LOCKED)",
        i32::try_from(days).unwrap_or(i32::MAX),
        ROWS,
    )
    .execute(pool)
    .await?;
    Ok(deleted.rows_affected())
}
