//! Workers and what they own. A worker keeps one row alive, whatever the number of its builds; when that row is gone,
//! its builds have no owner (by the foreign key) and no write of the old owner matches any more.

use std::time::Duration;

use sqlx::{PgPool, postgres::types::PgInterval};

use super::{Error, Lease};
use crate::domain::{
    id::{AttemptId, BuildId, ReplicaId},
    state::BuildState,
};

pub(super) fn interval(duration: Duration) -> PgInterval {
    PgInterval {
        months: 0,
        days: 0,
        microseconds: i64::try_from(duration.as_micros()).unwrap_or(i64::MAX),
    }
}

/// Registers a worker for `lease` from now on.
pub async fn register(pool: &PgPool, replica: ReplicaId, name: &str, lease: Duration) -> Result<(), Error> {
    sqlx::query!(
        "INSERT INTO replicas (id, name, expires_at) VALUES ($1, $2, now() + $3)",
        replica.0,
        name,
        interval(lease),
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Renews a worker's row. False when it is gone: the worker was taken for dead and owns nothing any more.
pub async fn renew(pool: &PgPool, replica: ReplicaId, lease: Duration) -> Result<bool, Error> {
    let renewed = sqlx::query!(
        "UPDATE replicas SET expires_at = now() + $2 WHERE id = $1",
        replica.0,
        interval(lease),
    )
    .execute(pool)
    .await?;
    Ok(renewed.rows_affected() == 1)
}

/// Deletes the rows of workers that have not renewed them in time, and says how many there were.
pub async fn expire(pool: &PgPool) -> Result<u64, Error> {
    let expired = sqlx::query!(
        "DELETE FROM replicas WHERE id IN (
             SELECT id FROM replicas WHERE expires_at < now() FOR UPDATE SKIP LOCKED
         )"
    )
    .execute(pool)
    .await?;
    Ok(expired.rows_affected())
}

/// Gives up everything a worker owns, so that others take over at once.
pub async fn unregister(pool: &PgPool, replica: ReplicaId) -> Result<(), Error> {
    sqlx::query!("DELETE FROM replicas WHERE id = $1", replica.0)
        .execute(pool)
        .await?;
    Ok(())
}

/// Which of a worker's builds have been asked to stop.
pub async fn cancelling(pool: &PgPool, replica: ReplicaId) -> Result<Vec<BuildId>, Error> {
    let ids = sqlx::query_scalar!(
        "SELECT id FROM builds WHERE owner = $1 AND state = 'cancelling'",
        replica.0
    )
    .fetch_all(pool)
    .await?;
    Ok(ids.into_iter().map(BuildId).collect())
}

/// Of the given attempts, those that are not live: over, or never heard of. What is left of them may be removed.
pub async fn not_live(pool: &PgPool, attempts: &[AttemptId]) -> Result<Vec<AttemptId>, Error> {
    let builds: Vec<_> = attempts.iter().map(|attempt| attempt.build.0).collect();
    let numbers: Vec<_> = attempts
        .iter()
        .map(|attempt| i32::try_from(attempt.number).unwrap_or(i32::MAX))
        .collect();
    let rows = sqlx::query!(
        r#"SELECT given.build AS "build!", given.number AS "number!"
           FROM unnest($1::uuid[], $2::integer[]) AS given (build, number)
           WHERE NOT EXISTS (
               SELECT FROM attempts
               WHERE build_id = given.build AND attempts.number = given.number
                 AND state IN ('starting', 'running', 'cancelling')
           )"#,
        &builds,
        &numbers,
    )
    .fetch_all(pool)
    .await?;
    rows.into_iter()
        .map(|row| {
            let build = BuildId(row.build);
            let place = super::rows::Place {
                table: "attempts",
                row: &build,
            };
            Ok(AttemptId {
                build,
                number: place.number("number", row.number)?,
            })
        })
        .collect()
}

/// The state of the lease's build, if the lease is still held.
pub async fn held(pool: &PgPool, lease: &Lease) -> Result<Option<BuildState>, Error> {
    let mut connection = pool.acquire().await?;
    let held = sqlx::query_scalar!(
        r#"SELECT true AS "held!" FROM builds WHERE id = $1 AND owner = $2 AND epoch = $3"#,
        lease.attempt.build.0,
        lease.owner.0,
        lease.epoch,
    )
    .fetch_optional(&mut *connection)
    .await?;
    if held.is_none() {
        return Ok(None);
    }
    Ok(super::builds::get_in(&mut connection, lease.attempt.build)
        .await?
        .map(|build| build.state))
}

/// Gives one lease up, so that any worker takes the build over.
pub async fn give_up(pool: &PgPool, lease: &Lease) -> Result<(), Error> {
    sqlx::query!(
        "UPDATE builds SET owner = NULL WHERE id = $1 AND owner = $2 AND epoch = $3",
        lease.attempt.build.0,
        lease.owner.0,
        lease.epoch,
    )
    .execute(pool)
    .await?;
    Ok(())
}
