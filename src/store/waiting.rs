//! What a build waits for, and how long builds like it have waited and run.

use chrono::{DateTime, Utc};
use sqlx::PgPool;

use super::{Error, Lease, rows::Place};
use crate::domain::{
    build::{Build, Pending},
    id::{BuildId, ReplicaId},
    project::ProjectName,
    queue::ProjectLimits,
};

/// Builds that the estimates rest on: this many of the latest that succeeded.
const RECENT: i64 = 20;

/// What stands before a queued build, and what the installation is busy with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Builds of the same project that are served before it.
    pub ahead_in_project: i64,
    /// Builds of all projects that are served before it, its own included.
    pub ahead: i64,
    /// Builds in workers' hands.
    pub live: i64,
    /// Of these, those of the same project.
    pub live_in_project: i64,
    /// How many of these there may be.
    pub concurrency: Option<i64>,
    /// Attempts of the project that may begin within a minute.
    pub starts_per_minute: Option<i64>,
    /// When the next one may, where as many have begun.
    pub opens_at: Option<DateTime<Utc>>,
    /// Workers that are alive.
    pub workers: i64,
    /// Of these, those that can launch.
    pub ready_workers: i64,
    /// Why one of the others can't.
    pub not_ready: Option<String>,
    /// The build of its group that it waits for.
    pub group_blocker: Option<BuildId>,
}

/// Looks at the queue before a build.
pub async fn queue(pool: &PgPool, build: &Build, limits: ProjectLimits) -> Result<Queue, Error> {
    let row = sqlx::query!(
        r#"SELECT before.project AS "project!", before.every AS "every!", live.n AS "live!",
                  live.project AS "live_in_project!", own.concurrency AS "concurrency?", own.starts AS "starts?",
                  CASE WHEN own.starts IS NOT NULL THEN (
                      SELECT counted_at + interval '1 minute' FROM attempts
                      WHERE project = $1 AND counted_at > now() - interval '1 minute'
                      ORDER BY counted_at DESC OFFSET greatest(own.starts, 1) - 1 LIMIT 1
                  ) END AS opens_at, workers.n AS "workers!",
                  workers.ready AS "ready!", workers.reason,
                  (SELECT group_blocker(b) FROM builds b WHERE b.id = $2) AS group_blocker
           FROM (
               SELECT count(*) FILTER (WHERE project = $1) AS project, count(*) AS every FROM builds
               WHERE state = 'queued' AND available_at <= now()
                 AND (rank, id) < (SELECT rank, id FROM builds WHERE id = $2)
           ) AS before,
           (
               SELECT count(*) AS n, count(*) FILTER (WHERE project = $1) AS project FROM builds
               WHERE state IN ('starting', 'running', 'cancelling')
           ) AS live,
           (
               SELECT coalesce(concurrency_limit, $3::bigint) AS concurrency, coalesce(starts_limit, $4::bigint) AS starts
               FROM projects WHERE name = $1
           ) AS own,
           (
               SELECT count(*) AS n, count(*) FILTER (WHERE not_ready IS NULL) AS ready, min(not_ready) AS reason
               FROM replicas WHERE expires_at > now()
           ) AS workers"#,
        build.project.as_str(),
        build.id.0,
        limits.concurrency.map(i64::from),
        limits.starts_per_minute.map(i64::from),
    )
    .fetch_one(pool)
    .await?;
    Ok(Queue {
        ahead_in_project: row.project,
        ahead: row.every,
        live: row.live,
        live_in_project: row.live_in_project,
        concurrency: row.concurrency,
        starts_per_minute: row.starts,
        opens_at: row.opens_at,
        workers: row.workers,
        ready_workers: row.ready,
        not_ready: row.reason,
        group_blocker: row.group_blocker.map(BuildId),
    })
}

/// What keeps the build's latest attempt from running, where that has been stored.
pub async fn pending(pool: &PgPool, build: BuildId) -> Result<Option<Pending>, Error> {
    let row = sqlx::query!(
        "SELECT pending_kind, pending_message FROM attempts WHERE build_id = $1 ORDER BY number DESC LIMIT 1",
        build.0,
    )
    .fetch_optional(pool)
    .await?;
    let Some((Some(kind), Some(message))) = row.map(|row| (row.pending_kind, row.pending_message)) else {
        return Ok(None);
    };
    let place = Place {
        table: "attempts",
        row: &build,
    };
    Ok(Some(Pending {
        kind: place.parse("pending_kind", &kind)?,
        message,
    }))
}

/// Stores what keeps an attempt from running, on behalf of its worker.
pub async fn set_pending(pool: &PgPool, lease: &Lease, pending: Option<&Pending>) -> Result<(), Error> {
    let stored = sqlx::query!(
        "UPDATE attempts SET pending_kind = $5, pending_message = $6
         FROM builds
         WHERE build_id = $1 AND number = $4 AND builds.id = $1 AND builds.owner = $2 AND builds.epoch = $3",
        lease.attempt.build.0,
        lease.owner.0,
        lease.epoch,
        i32::try_from(lease.attempt.number).map_err(|_| Error::Conflict)?,
        pending.map(|pending| pending.kind.as_str()),
        pending.map(|pending| pending.message.as_str()),
    )
    .execute(pool)
    .await?;
    if stored.rows_affected() == 1 {
        Ok(())
    } else {
        Err(Error::Conflict)
    }
}

/// Stores whether a worker can launch anything, and if not, why.
pub async fn set_readiness(pool: &PgPool, worker: ReplicaId, not_ready: Option<&str>) -> Result<(), Error> {
    sqlx::query!("UPDATE replicas SET not_ready = $2 WHERE id = $1", worker.0, not_ready)
        .execute(pool)
        .await?;
    Ok(())
}

/// How long recent builds of a project took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct History {
    /// How many there are.
    pub builds: i64,
    /// Median of the seconds from acceptance until they ran.
    pub wait: f64,
    /// Median of the seconds that they ran.
    pub run: f64,
}

/// The latest builds of a project that succeeded; `None` when there are none.
pub async fn history(pool: &PgPool, project: &ProjectName) -> Result<Option<History>, Error> {
    let row = sqlx::query!(
        r#"SELECT count(*) AS "builds!",
                  percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM started_at - created_at)::float8) AS wait,
                  percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM finished_at - started_at)::float8) AS run
           FROM (
               SELECT created_at, started_at, finished_at FROM builds
               WHERE project = $1 AND state = 'succeeded' ORDER BY uuid_send(id) DESC LIMIT $2
           ) AS recent"#,
        project.as_str(),
        RECENT,
    )
    .fetch_one(pool)
    .await?;
    Ok(match (row.wait, row.run) {
        (Some(wait), Some(run)) => Some(History {
            builds: row.builds,
            wait: wait.max(0.0),
            run: run.max(0.0),
        }),
        _ => None,
    })
}

/// What metrics tell of the whole installation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Builds that are waiting for room or for the pause after a failed attempt.
    pub queued: i64,
    /// Builds whose attempt was claimed and doesn't run yet.
    pub starting: i64,
    /// Builds that run.
    pub running: i64,
    /// Builds that were told to stop.
    pub cancelling: i64,
    /// Live builds that no worker has in hand.
    pub orphaned: i64,
    /// Since when the oldest queued build could be claimed.
    pub oldest_available: Option<DateTime<Utc>>,
    /// The database's time.
    pub now: DateTime<Utc>,
    /// Workers that are alive and can launch.
    pub ready_workers: i64,
    /// Workers that are alive and can't.
    pub blocked_workers: i64,
    /// Nodes that builds are kept away from.
    pub avoided_nodes: i64,
}

/// Counts what is not over, from the rows.
pub async fn totals(pool: &PgPool) -> Result<Totals, Error> {
    let totals = sqlx::query_as!(
        Totals,
        r#"SELECT b.queued AS "queued!", b.starting AS "starting!", b.running AS "running!",
                  b.cancelling AS "cancelling!", b.orphaned AS "orphaned!", b.oldest AS oldest_available,
                  now() AS "now!", w.ready AS "ready_workers!", w.blocked AS "blocked_workers!",
                  (SELECT count(*) FROM nodes WHERE avoided_until > now()) AS "avoided_nodes!"
           FROM (
               SELECT coalesce(sum(n) FILTER (WHERE state = 'queued'), 0)::bigint AS queued,
                      coalesce(sum(n) FILTER (WHERE state = 'starting'), 0)::bigint AS starting,
                      coalesce(sum(n) FILTER (WHERE state = 'running'), 0)::bigint AS running,
                      coalesce(sum(n) FILTER (WHERE state = 'cancelling'), 0)::bigint AS cancelling,
                      coalesce(sum(orphans), 0)::bigint AS orphaned, min(oldest) AS oldest
               FROM (
                   SELECT 'queued' AS state, count(*) AS n, 0::bigint AS orphans,
                          min(available_at) FILTER (WHERE available_at <= now()) AS oldest
                   FROM builds WHERE state = 'queued'
                   UNION ALL
                   SELECT state, count(*), count(*) FILTER (WHERE owner IS NULL), NULL
                   FROM builds WHERE state IN ('starting', 'running', 'cancelling') GROUP BY state
               ) AS counted
           ) AS b,
           (
               SELECT count(*) FILTER (WHERE not_ready IS NULL) AS ready,
                      count(*) FILTER (WHERE not_ready IS NOT NULL) AS blocked
               FROM replicas WHERE expires_at > now()
           ) AS w"#
    )
    .fetch_one(pool)
    .await?;
    Ok(totals)
}
