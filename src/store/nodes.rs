//! Nodes that fail attempts. What counts as often is decided by the database's clock, under the lock of the node's row.

use chrono::TimeDelta;
use sqlx::{PgExecutor, PgPool, postgres::types::PgInterval};

use super::{Error, rows::Place};
use crate::domain::{
    failure::Failure,
    id::AttemptId,
    node::{AvoidPolicy, FaultyNode, NodeName},
};

/// Failures of a node that are remembered at most.
const REMEMBERED: i64 = 50;

fn interval(length: TimeDelta) -> PgInterval {
    PgInterval {
        months: 0,
        days: 0,
        microseconds: length.num_microseconds().unwrap_or(i64::MAX),
    }
}

/// Records a failure that the node is to blame for, and has it avoided when there were too many.
pub(super) async fn record(
    executor: impl PgExecutor<'_>,
    node: &str,
    attempt: AttemptId,
    failure: &Failure,
    policy: AvoidPolicy,
) -> Result<(), Error> {
    sqlx::query!(
        "INSERT INTO nodes AS node (name, failures, last_failed_at, avoided_until)
         VALUES (
             $1,
             jsonb_build_array(jsonb_build_object(
                 'build', $2::uuid, 'attempt', $3::bigint, 'code', $4::text, 'message', $5::text, 'at', now()
             )),
             now(),
             CASE WHEN $6::bigint = 1 THEN now() + $8::interval END
         )
         ON CONFLICT (name) DO UPDATE SET
             failures = (
                 SELECT coalesce(jsonb_agg(old.failure ORDER BY old.place), '[]'::jsonb)
                 FROM (
                     SELECT failure, place
                     FROM jsonb_array_elements(node.failures) WITH ORDINALITY AS kept (failure, place)
                     ORDER BY place DESC LIMIT $9
                 ) AS old
             ) || excluded.failures,
             last_failed_at = excluded.last_failed_at,
             avoided_until = CASE
                 WHEN $6::bigint > 0 AND $6::bigint <= 1 + (
                     SELECT count(*) FROM jsonb_array_elements(node.failures) AS earlier
                     WHERE (earlier ->> 'at')::timestamptz > now() - $7::interval
                 ) THEN now() + $8::interval
                 ELSE node.avoided_until
             END",
        node,
        attempt.build.0,
        i64::from(attempt.number),
        failure.code.as_str(),
        failure.message,
        i64::from(policy.failures),
        interval(policy.within),
        interval(policy.lasts),
        REMEMBERED - 1,
    )
    .execute(executor)
    .await?;
    Ok(())
}

/// Nodes that have failed attempts lately, those that are avoided first.
pub async fn list(pool: &PgPool) -> Result<Vec<FaultyNode>, Error> {
    let rows = sqlx::query!(
        r#"SELECT name, failures, CASE WHEN avoided_until > now() THEN avoided_until END AS avoided_until
           FROM nodes ORDER BY 3 DESC NULLS LAST, name"#
    )
    .fetch_all(pool)
    .await?;
    rows.into_iter()
        .map(|row| {
            let place = Place {
                table: "nodes",
                row: &row.name,
            };
            Ok(FaultyNode {
                failures: place.json("failures", row.failures)?,
                avoided_until: row.avoided_until,
                name: row.name,
            })
        })
        .collect()
}

/// Forgets what a node has done. False when nothing was known of it.
pub async fn forget(pool: &PgPool, name: &NodeName) -> Result<bool, Error> {
    let forgotten = sqlx::query!("DELETE FROM nodes WHERE name = $1", name.as_str())
        .execute(pool)
        .await?;
    Ok(forgotten.rows_affected() == 1)
}

/// Deletes what is of no interest any more, and says how many nodes that were.
pub async fn sweep(pool: &PgPool, policy: AvoidPolicy) -> Result<u64, Error> {
    let swept = sqlx::query!(
        "DELETE FROM nodes WHERE last_failed_at < now() - $1::interval AND (avoided_until IS NULL OR avoided_until < now())",
        interval(policy.memory()),
    )
    .execute(pool)
    .await?;
    Ok(swept.rows_affected())
}
