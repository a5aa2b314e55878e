//! Archives that callers sent. They are kept in pieces, so that neither side ever holds one whole, and in the database,
//! so that any replica can hand them out.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use uuid::Uuid;

use super::{Error, rows::Place};
use crate::domain::{
    id::{AttemptId, UploadId},
    project::ProjectName,
    spec::Sha256Hex,
};

/// Bytes of every piece but the last.
pub const CHUNK: usize = 512 * 1024;

/// Most uploads that one sweep deletes; each may be large.
const SWEEP_BATCH: i64 = 20;

/// An archive, without the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    /// Its id.
    pub id: UploadId,
    /// Who owns it.
    pub project: ProjectName,
    /// Of the archive as it was sent.
    pub sha256: Sha256Hex,
    /// Size of the archive as it was sent.
    pub bytes: u64,
    /// When it was stored.
    pub created_at: DateTime<Utc>,
    /// When it may be deleted, unless a build that isn't over needs it.
    pub expires_at: DateTime<Utc>,
}

/// An archive about to be stored.
#[derive(Clone, Debug)]
pub struct NewUpload {
    /// Its id, made by the caller.
    pub id: UploadId,
    /// Who is to own it.
    pub project: ProjectName,
    /// Of the archive as it was sent.
    pub sha256: Sha256Hex,
    /// Size of the archive as it was sent.
    pub bytes: u64,
    /// How long it is kept after it was sent or last asked to be built from.
    pub keep_seconds: u32,
    /// Most bytes that the project's uploads may take together.
    pub max_project_bytes: u64,
}

/// What became of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreOutcome {
    /// It is stored.
    Stored(Upload),
    /// The project's uploads would take too much together.
    NoRoom,
    /// There is no such project.
    UnknownProject,
}

/// Why an archive couldn't be stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database.
    #[error(transparent)]
    Store(#[from] Error),
    /// The archive can't be read back from where it waits.
    #[error("the spooled archive can't be read")]
    Read(#[source] std::io::Error),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

struct UploadRow {
    id: Uuid,
    project: String,
    sha256: String,
    bytes: i64,
    created_at: DateTime<Utc>,
    expires_at: DateTime<Utc>,
}

impl TryFrom<UploadRow> for Upload {
    type Error = Error;

    fn try_from(row: UploadRow) -> Result<Self, Error> {
        let place = Place {
            table: "uploads",
            row: &row.id,
        };
        Ok(Self {
            id: UploadId(row.id),
            project: place.parse("project", &row.project)?,
            sha256: place.parse("sha256", &row.sha256)?,
            bytes: u64::try_from(row.bytes).map_err(|error| place.inconsistent("bytes", error.to_string()))?,
            created_at: row.created_at,
            expires_at: row.expires_at,
        })
    }
}

/// Stores an archive, all of it or nothing.
pub async fn create(
    pool: &PgPool,
    new: NewUpload,
    mut archive: impl AsyncRead + Unpin,
) -> Result<StoreOutcome, StoreError> {
    let bytes = i64::try_from(new.bytes).unwrap_or(i64::MAX);
    let mut transaction = pool.begin().await?;
    // Under the project's lock, so that two uploads don't both get the last room.
    let known = sqlx::query_scalar!(
        "SELECT name FROM projects WHERE name = $1 FOR NO KEY UPDATE",
        new.project.as_str(),
    )
    .fetch_optional(&mut *transaction)
    .await?;
    if known.is_none() {
        transaction.rollback().await?;
        return Ok(StoreOutcome::UnknownProject);
    }
    let row = sqlx::query_as!(
        UploadRow,
        "INSERT INTO uploads (id, project, sha256, bytes, keep_seconds, expires_at)
         SELECT $1, $2, $3, $4::bigint, $5::bigint, now() + make_interval(secs => $5::bigint)
         WHERE $4::bigint <= $6::bigint - (SELECT coalesce(sum(bytes), 0)::bigint FROM uploads WHERE project = $2)
         RETURNING id, project, sha256, bytes, created_at, expires_at",
        new.id.0,
        new.project.as_str(),
        new.sha256.as_str(),
        bytes,
        i64::from(new.keep_seconds),
        i64::try_from(new.max_project_bytes).unwrap_or(i64::MAX),
    )
    .fetch_optional(&mut *transaction)
    .await?;
    let Some(row) = row else {
        transaction.rollback().await?;
        return Ok(StoreOutcome::NoRoom);
    };
    let mut chunk = Vec::with_capacity(CHUNK);
    for number in 0.. {
        chunk.clear();
        let limit = u64::try_from(CHUNK).unwrap_or(u64::MAX);
        (&mut archive)
            .take(limit)
            .read_to_end(&mut chunk)
            .await
            .map_err(StoreError::Read)?;
        if chunk.is_empty() {
            break;
        }
        sqlx::query!(
            "INSERT INTO upload_chunks (upload_id, number, body) VALUES ($1, $2, $3)",
            new.id.0,
            number,
            chunk.as_slice(),
        )
        .execute(&mut *transaction)
        .await?;
    }
    transaction.commit().await?;
    Ok(StoreOutcome::Stored(row.try_into()?))
}

/// An upload that hasn't expired.
pub async fn get(pool: &PgPool, id: UploadId) -> Result<Option<Upload>, Error> {
    let row = sqlx::query_as!(
        UploadRow,
        "SELECT id, project, sha256, bytes, created_at, expires_at FROM uploads WHERE id = $1 AND expires_at > now()",
        id.0,
    )
    .fetch_optional(pool)
    .await?;
    row.map(Upload::try_from).transpose()
}

/// What became of a wish to delete an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeleteOutcome {
    /// It is gone.
    Deleted,
    /// A build that isn't over needs it.
    InUse,
    /// There was none.
    Missing,
}

/// Deletes an upload, unless a build still needs it.
pub async fn delete(pool: &PgPool, id: UploadId) -> Result<DeleteOutcome, Error> {
    let deleted = sqlx::query!(
        "DELETE FROM uploads WHERE id = $1 AND NOT EXISTS (
             SELECT FROM builds
             WHERE spec -> 'source' ->> 'id' = uploads.id::text AND spec -> 'source' ->> 'type' = 'upload'
                   AND state IN ('queued', 'starting', 'running', 'cancelling'))",
        id.0,
    )
    .execute(pool)
    .await?;
    if deleted.rows_affected() > 0 {
        return Ok(DeleteOutcome::Deleted);
    }
    Ok(match get(pool, id).await? {
        Some(_) => DeleteOutcome::InUse,
        None => DeleteOutcome::Missing,
    })
}

/// Whether a new build of the project may use the upload; from now on it is kept for its full time again. A build that
/// is stored in the next moments finds it there; from then on the build itself keeps it.
pub(super) async fn hold(connection: &mut PgConnection, id: UploadId, project: &ProjectName) -> Result<bool, Error> {
    let held = sqlx::query!(
        "UPDATE uploads SET expires_at = greatest(expires_at, now() + make_interval(secs => keep_seconds))
         WHERE id = $1 AND project = $2 AND expires_at > now()",
        id.0,
        project.as_str(),
    )
    .execute(connection)
    .await?;
    Ok(held.rows_affected() == 1)
}

/// The upload that an attempt is to build from, as long as the attempt is live.
pub async fn of_attempt(pool: &PgPool, attempt: AttemptId) -> Result<Option<Upload>, Error> {
    let Ok(number) = i32::try_from(attempt.number) else {
        return Ok(None);
    };
    let row = sqlx::query_as!(
        UploadRow,
        "SELECT uploads.id, uploads.project, uploads.sha256, uploads.bytes, uploads.created_at, uploads.expires_at
         FROM builds
         JOIN attempts ON attempts.build_id = builds.id
         JOIN uploads ON uploads.project = builds.project AND uploads.id::text = builds.spec -> 'source' ->> 'id'
         WHERE builds.id = $1 AND attempts.number = $2 AND builds.attempts = $2
               AND attempts.state IN ('starting', 'running', 'cancelling')
               AND builds.spec -> 'source' ->> 'type' = 'upload'",
        attempt.build.0,
        number,
    )
    .fetch_optional(pool)
    .await?;
    row.map(Upload::try_from).transpose()
}

/// A piece of an archive; `None` behind the last one, or when the upload is gone.
pub async fn chunk(pool: &PgPool, id: UploadId, number: i32) -> Result<Option<Bytes>, Error> {
    let body = sqlx::query_scalar!(
        "SELECT body FROM upload_chunks WHERE upload_id = $1 AND number = $2",
        id.0,
        number,
    )
    .fetch_optional(pool)
    .await?;
    Ok(body.map(Bytes::from))
}

/// Deletes uploads whose time is over and that no build needs; a limited number at once. Returns how many.
pub async fn sweep(pool: &PgPool) -> Result<u64, Error> {
    let deleted = sqlx::query!(
        "DELETE FROM uploads WHERE expires_at <= now() AND id IN (
             SELECT id FROM uploads AS old
             WHERE expires_at <= now() AND NOT EXISTS (
                 SELECT FROM builds
                 WHERE spec -> 'source' ->> 'id' = old.id::text AND spec -> 'source' ->> 'type' = 'upload'
                       AND state IN ('queued', 'starting', 'running', 'cancelling'))
             ORDER BY expires_at LIMIT $1 FOR UPDATE SKIP LOCKED)",
        SWEEP_BATCH,
    )
    .execute(pool)
    .await?;
    Ok(deleted.rows_affected())
}
