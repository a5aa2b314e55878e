//! Which journals are in the archive, and who is moving which.
//!
//! A move is claimed, written under a name that nobody else uses, and recorded by one statement that also deletes the
//! rows. Killed before that statement it is done again under another name; after it, it is done.

use chrono::{DateTime, Utc};
use sqlx::PgPool;

use super::{Error, rows::Place};
use crate::domain::id::BuildId;

/// A name for an object: nobody else writes under it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ObjectId {
    /// The build whose journal it holds.
    pub build: BuildId,
    /// Counts how often somebody set out to write it.
    pub tries: i32,
}

/// A journal in the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Archived {
    /// Its object.
    pub object: ObjectId,
    /// Sequence number of the last entry.
    pub head: i64,
    /// Size of the object.
    pub bytes: u64,
    /// Size of the index at its end.
    pub index_bytes: u64,
}

/// Where a build's journal is, when it is in the archive.
pub async fn get(pool: &PgPool, build: BuildId) -> Result<Option<Archived>, Error> {
    let row = sqlx::query!(
        r#"SELECT a.tries, b.journal_head, a.bytes AS "bytes!", a.index_bytes AS "index_bytes!"
           FROM archives a JOIN builds b ON b.id = a.build_id
           WHERE a.build_id = $1 AND a.archived_at IS NOT NULL"#,
        build.0,
    )
    .fetch_optional(pool)
    .await?;
    row.map(|row| {
        let place = Place {
            table: "archives",
            row: &build,
        };
        let size =
            |column, value: i64| u64::try_from(value).map_err(|error| place.inconsistent(column, error.to_string()));
        Ok(Archived {
            object: ObjectId {
                build,
                tries: row.tries,
            },
            head: row.journal_head,
            bytes: size("bytes", row.bytes)?,
            index_bytes: size("index_bytes", row.index_bytes)?,
        })
    })
    .transpose()
}

/// A move that this process has to itself for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The name to write under.
    pub object: ObjectId,
    /// Sequence number of the last entry. It won't change: the build is over.
    pub head: i64,
}

/// Claims builds that have been over for `rest_seconds` and whose journals are still here, oldest first.
pub async fn claim(pool: &PgPool, rest_seconds: u32, lease_seconds: u32, limit: i64) -> Result<Vec<Claim>, Error> {
    let rows = sqlx::query!(
        "WITH due AS (
             SELECT b.id, b.journal_head
             FROM builds b LEFT JOIN archives a ON a.build_id = b.id
             WHERE b.finished_at IS NOT NULL AND NOT b.archived
                   AND b.finished_at <= now() - make_interval(secs => $1)
                   AND (a.claimed_until IS NULL OR a.claimed_until <= now())
             ORDER BY b.finished_at LIMIT $3
             FOR NO KEY UPDATE OF b SKIP LOCKED
         ), claimed AS (
             INSERT INTO archives AS a (build_id, tries, claimed_until)
             SELECT id, 1, now() + make_interval(secs => $2) FROM due
             ON CONFLICT (build_id) DO UPDATE SET tries = a.tries + 1, claimed_until = excluded.claimed_until
                 WHERE a.claimed_until <= now()
             RETURNING a.build_id, a.tries
         )
         SELECT claimed.build_id, claimed.tries, due.journal_head FROM claimed JOIN due ON due.id = claimed.build_id",
        f64::from(rest_seconds),
        f64::from(lease_seconds),
        limit,
    )
    .fetch_all(pool)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| Claim {
            object: ObjectId {
                build: BuildId(row.build_id),
                tries: row.tries,
            },
            head: row.journal_head,
        })
        .collect())
}

/// An object as it was written and read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Its size.
    pub bytes: u64,
    /// Size of the index at its end.
    pub index_bytes: u64,
    /// Of all its bytes.
    pub sha256: [u8; 32],
}

/// Records that a journal is in the archive, and deletes its rows. False when the claim is lost or the build is gone:
/// then nothing will ever read the object.
pub async fn record(pool: &PgPool, claim: Claim, written: &Written) -> Result<bool, Error> {
    let done = sqlx::query_scalar!(
        r#"WITH build AS (
             UPDATE builds SET archived = true
             WHERE id = $1 AND finished_at IS NOT NULL AND NOT archived AND journal_head = $3 AND EXISTS (
                 SELECT FROM archives WHERE build_id = $1 AND tries = $2 AND archived_at IS NULL
             )
             RETURNING id
         ), archive AS (
             UPDATE archives SET archived_at = now(), claimed_until = NULL, bytes = $4, index_bytes = $5, sha256 = $6
             FROM build WHERE archives.build_id = build.id
         ), entries AS (
             DELETE FROM journal WHERE build_id = $1 AND EXISTS (SELECT FROM build)
         )
         SELECT EXISTS (SELECT FROM build) AS "done!""#,
        claim.object.build.0,
        claim.object.tries,
        claim.head,
        i64::try_from(written.bytes).unwrap_or(i64::MAX),
        i64::try_from(written.index_bytes).unwrap_or(i64::MAX),
        &written.sha256[..],
    )
    .fetch_one(pool)
    .await?;
    Ok(done)
}

/// Gives a claim up; the move may be claimed again after `pause_seconds`.
pub async fn give_up(pool: &PgPool, claim: Claim, pause_seconds: f64) -> Result<(), Error> {
    sqlx::query!(
        "UPDATE archives SET claimed_until = now() + make_interval(secs => $3)
         WHERE build_id = $1 AND tries = $2 AND archived_at IS NULL",
        claim.object.build.0,
        claim.object.tries,
        pause_seconds,
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Finished builds whose journals have been here for longer than `rest_seconds`, and since when the oldest could have
/// been moved.
pub async fn backlog(pool: &PgPool, rest_seconds: u32) -> Result<(i64, Option<DateTime<Utc>>), Error> {
    let row = sqlx::query!(
        r#"SELECT count(*) AS "count!", min(finished_at) AS oldest FROM (
             SELECT finished_at FROM builds
             WHERE finished_at IS NOT NULL AND NOT archived AND finished_at <= now() - make_interval(secs => $1)
             ORDER BY finished_at LIMIT 10000
         ) AS waiting"#,
        f64::from(rest_seconds),
    )
    .fetch_one(pool)
    .await?;
    Ok((row.count, row.oldest))
}
