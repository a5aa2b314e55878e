//! Claiming queued builds, and taking over builds whose worker died.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgConnection, PgPool};
use uuid::Uuid;

use super::{
    Error, Lease,
    journal::{LogCursor, Standing},
    rows::Place,
};
use crate::domain::{
    build::Assignment,
    failure::FailureCode,
    id::{AttemptId, BuildId, ReplicaId},
    node::AvoidedNodes,
    queue::ProjectLimits,
    secret::Credentials,
    spec::{BuildSpec, MemoryBytes},
    state::{BuildState, StateName},
    trace_parent::TraceParent,
};

/// A build that this worker now has in hand.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// The right to write for it.
    pub lease: Lease,
    /// What to do.
    pub assignment: Assignment,
    /// The memory that its request asked for; an attempt may be given more.
    pub asked_memory: MemoryBytes,
    /// Where it stands.
    pub state: BuildState,
    /// Where its log stands.
    pub standing: Standing,
    /// When the attempt was claimed first.
    pub attempt_created_at: DateTime<Utc>,
    /// Since when it could have been claimed; absent for a build that was taken over.
    pub available_since: Option<DateTime<Utc>>,
    /// The journal's head after the claim.
    pub head: i64,
    /// The span of the request that the build came by.
    pub trace: Option<TraceParent>,
}

struct ClaimedRow {
    id: Uuid,
    project: String,
    state: String,
    spec: Value,
    resources: Value,
    failed_nodes: Vec<String>,
    bad_nodes: Vec<String>,
    attempts: i32,
    epoch: i64,
    commit: Option<String>,
    started_at: Option<DateTime<Utc>>,
    journal_head: i64,
    log_cursor: Value,
    log_bytes: i64,
    attempt_created_at: DateTime<Utc>,
    available_since: Option<DateTime<Utc>>,
    traceparent: Option<String>,
}

impl ClaimedRow {
    fn into_claimed(self, owner: ReplicaId) -> Result<Claimed, Error> {
        let place = Place {
            table: "builds",
            row: &self.id,
        };
        let attempt = place.number("attempts", self.attempts)?;
        let state = match place.parse("state", &self.state)? {
            StateName::Starting => BuildState::Starting { attempt },
            StateName::Running => BuildState::Running {
                attempt,
                started_at: place.present("started_at", self.started_at)?,
            },
            StateName::Cancelling => BuildState::Cancelling {
                attempt,
                started_at: self.started_at,
            },
            other => return Err(place.inconsistent("state", format!("{other} can't be in a worker's hands"))),
        };
        let id = AttemptId {
            build: BuildId(self.id),
            number: attempt,
        };
        let mut spec: BuildSpec = place.json("spec", self.spec)?;
        let asked_memory = spec.resources.memory;
        spec.resources = place.json("resources", self.resources)?;
        Ok(Claimed {
            asked_memory,
            lease: Lease {
                attempt: id,
                owner,
                epoch: self.epoch,
            },
            assignment: Assignment {
                attempt: id,
                project: place.parse("project", &self.project)?,
                spec,
                commit: self
                    .commit
                    .as_deref()
                    .map(|commit| place.parse("commit", commit))
                    .transpose()?,
                // Decrypted when they are needed.
                credentials: Credentials::default(),
                avoid: AvoidedNodes {
                    never: self.failed_nodes,
                    rather_not: self.bad_nodes,
                },
            },
            state,
            standing: Standing {
                cursor: place.json::<LogCursor>("log_cursor", self.log_cursor)?,
                log_bytes: self.log_bytes.unsigned_abs(),
            },
            attempt_created_at: self.attempt_created_at,
            available_since: self.available_since,
            head: self.journal_head,
            trace: self
                .traceparent
                .as_deref()
                .map(|trace| place.parse("traceparent", trace))
                .transpose()?,
        })
    }
}

/// How much may be claimed at once. All of it is counted from the rows.
#[derive(Clone, Copy, Debug)]
pub struct ClaimLimits {
    /// At most this many now.
    pub batch: u32,
    /// No more than this many live builds in the whole installation.
    pub live: u32,
    /// Limits of projects that have none of their own.
    pub project: ProjectLimits,
}

/// The failures after which a build is sent to another node.
fn infrastructure_codes() -> Vec<String> {
    let codes = FailureCode::ALL.into_iter().filter(|code| code.is_infrastructure());
    codes.map(|code| code.to_string()).collect()
}

/// Key of the advisory lock of whoever claims.
const TURN: i64 = 0x6b69_6c6e_0003;

/// Takes queued builds in the order of the queue ([`crate::domain::queue`]). Pods are named `pod_prefix` followed by the
/// attempt's id.
///
/// Workers take turns, because a limit that several count at the same time isn't held by any of them: what a statement
/// counts is as old as its beginning, whatever lock it then waits for. So the lock is taken before it. Nothing slow
/// happens in between, and rows that others have locked, who cancel a build perhaps, are passed over.
pub async fn claim(
    pool: &PgPool,
    owner: ReplicaId,
    limits: ClaimLimits,
    pod_prefix: &str,
    now: DateTime<Utc>,
) -> Result<Vec<Claimed>, Error> {
    let begin = AssertSqlSafe(format!("BEGIN; SELECT pg_advisory_xact_lock({TURN})"));
    let mut transaction = pool.begin_with(begin).await?;
    let claimed = claim_in(&mut transaction, owner, limits, pod_prefix, now).await;
    // Ended here and not by dropping it, because its lock would outlive this call.
    match claimed {
        Ok(_) => transaction.commit().await?,
        Err(_) => transaction.rollback().await?,
    }
    claimed
}

#[expect(clippy::too_many_lines, reason = "one statement")]
async fn claim_in(
    transaction: &mut PgConnection,
    owner: ReplicaId,
    limits: ClaimLimits,
    pod_prefix: &str,
    now: DateTime<Utc>,
) -> Result<Vec<Claimed>, Error> {
    let at = serde_json::to_value(now).map_err(|error| Error::Database(sqlx::Error::Encode(error.into())))?;
    let limit = |limit: Option<u32>| limit.map(i64::from);
    // `share` keeps the projects whose first build is among the next ones, which are all that can have any of these. So
    // what is looked at grows with the number of projects and with the batch, and not with the length of the queue.
    let rows = sqlx::query_as!(
        ClaimedRow,
        r#"
        WITH RECURSIVE live AS MATERIALIZED (
            SELECT project, count(*) AS n FROM builds
            WHERE state IN ('starting', 'running', 'cancelling') GROUP BY project
        ), room AS MATERIALIZED (
            SELECT greatest(0, least($2::bigint, $3::bigint - (SELECT coalesce(sum(n), 0)::bigint FROM live))) AS n
        ), waiting AS (
            (SELECT project FROM builds WHERE state = 'queued' ORDER BY project LIMIT 1)
            UNION ALL
            SELECT (
                SELECT b.project FROM builds b WHERE b.state = 'queued' AND b.project > waiting.project
                ORDER BY b.project LIMIT 1
            )
            FROM waiting WHERE waiting.project IS NOT NULL
        ), share AS MATERIALIZED (
            SELECT p.name, p.weight, coalesce(live.n, 0) AS live, own.starts, free.n AS room
            FROM waiting
            JOIN projects p ON p.name = waiting.project
            CROSS JOIN room
            LEFT JOIN live ON live.project = p.name
            CROSS JOIN LATERAL (
                SELECT coalesce(p.concurrency_limit, $7::bigint) AS concurrency,
                       coalesce(p.starts_limit, $8::bigint) AS starts
            ) AS own
            CROSS JOIN LATERAL (
                SELECT least(room.n, own.concurrency - coalesce(live.n, 0), CASE WHEN own.starts IS NOT NULL THEN
                    own.starts - (
                        SELECT count(*) FROM attempts
                        WHERE project = p.name AND counted_at > statement_timestamp() - interval '1 minute'
                    )
                END) AS n
                -- Evaluated once.
                OFFSET 0
            ) AS free
            CROSS JOIN LATERAL (
                SELECT rank, id FROM builds
                WHERE project = p.name AND state = 'queued' AND available_at <= statement_timestamp()
                  AND (NOT serialize OR group_blocker(builds) IS NULL)
                ORDER BY rank, id LIMIT 1
            ) AS head
            WHERE free.n > 0
            ORDER BY coalesce(live.n, 0)::float8 / p.weight, head.rank, head.id
            LIMIT (SELECT n FROM room)
        ), candidate AS (
            SELECT queued.id, queued.rank, (share.live + queued.place - 1)::float8 / share.weight AS turn, share.starts
            FROM share CROSS JOIN LATERAL (
                SELECT id, rank, row_number() OVER (ORDER BY rank, id) AS place FROM builds
                WHERE project = share.name AND state = 'queued' AND available_at <= statement_timestamp()
                  AND (NOT serialize OR group_blocker(builds) IS NULL)
                ORDER BY rank, id LIMIT share.room
            ) AS queued
            ORDER BY turn, rank, id
            LIMIT (SELECT n FROM room)
        ), next AS (
            SELECT b.id, b.available_at, c.turn, c.starts
            FROM candidate c JOIN builds b ON b.id = c.id
            WHERE b.state = 'queued'
            FOR NO KEY UPDATE OF b SKIP LOCKED
        ), build AS (
            UPDATE builds b
            SET state = 'starting', available_at = NULL, attempts = b.attempts + 1, owner = $1, epoch = b.epoch + 1,
                journal_head = b.journal_head + 1
            FROM next
            WHERE b.id = next.id AND b.state = 'queued'
            RETURNING b.*, next.available_at AS available_since, next.turn, next.starts
        ), attempt AS (
            INSERT INTO attempts (build_id, number, state, pod, resources, created_at, project, counted_at)
            SELECT id, attempts, 'starting', $4 || id::text || '-' || attempts, coalesce(next_resources, spec -> 'resources'), $5,
                   CASE WHEN starts IS NOT NULL THEN project END,
                   CASE WHEN starts IS NOT NULL THEN statement_timestamp() END
            FROM build
        ), entry AS (
            INSERT INTO journal (build_id, first_seq, last_seq, codec, body)
            SELECT id, journal_head, journal_head, 0, convert_to(jsonb_build_object('status', jsonb_build_object(
                'state', 'starting', 'at', $6::jsonb, 'attempt', attempts
            ))::text, 'UTF8')
            FROM build
        )
        SELECT id, project, state, spec, attempts, epoch, commit, started_at, journal_head, log_bytes, traceparent,
               coalesce(next_resources, spec -> 'resources') AS "resources!",
               ARRAY(
                   SELECT DISTINCT a.node FROM attempts a
                   WHERE build.attempts > 1 AND a.build_id = build.id AND a.node IS NOT NULL AND a.failure_code = ANY($9)
               ) AS "failed_nodes!",
               ARRAY(SELECT n.name FROM nodes n WHERE n.avoided_until > now()) AS "bad_nodes!",
               '{}'::jsonb AS "log_cursor!", $5 AS "attempt_created_at!",
               available_since
        FROM build
        ORDER BY turn, rank, id
        "#,
        owner.0,
        i64::from(limits.batch),
        i64::from(limits.live),
        pod_prefix,
        now,
        at,
        limit(limits.project.concurrency),
        limit(limits.project.starts_per_minute),
        &infrastructure_codes(),
    )
    .fetch_all(transaction)
    .await?;
    rows.into_iter().map(|row| row.into_claimed(owner)).collect()
}

/// Takes live builds that no worker owns: theirs died or gave them up.
pub async fn take_over(pool: &PgPool, owner: ReplicaId, batch: u32) -> Result<Vec<Claimed>, Error> {
    let rows = sqlx::query_as!(
        ClaimedRow,
        r#"
        WITH next AS (
            SELECT id FROM builds
            WHERE state IN ('starting', 'running', 'cancelling') AND owner IS NULL
            ORDER BY id
            LIMIT $2
            FOR NO KEY UPDATE SKIP LOCKED
        ), build AS (
            UPDATE builds b SET owner = $1, epoch = b.epoch + 1
            FROM next
            WHERE b.id = next.id AND b.owner IS NULL
            RETURNING b.*
        )
        SELECT b.id, b.project, b.state, b.spec, b.attempts, b.epoch, b.commit, b.started_at, b.journal_head, b.log_bytes, b.traceparent,
               a.resources, a.log_cursor, a.created_at AS attempt_created_at,
               ARRAY(
                   SELECT DISTINCT f.node FROM attempts f
                   WHERE f.build_id = b.id AND f.node IS NOT NULL AND f.failure_code = ANY($3)
               ) AS "failed_nodes!",
               ARRAY(SELECT n.name FROM nodes n WHERE n.avoided_until > now()) AS "bad_nodes!",
               NULL::timestamptz AS available_since
        FROM build b JOIN attempts a ON a.build_id = b.id AND a.number = b.attempts
        "#,
        owner.0,
        i64::from(batch),
        &infrastructure_codes(),
    )
    .fetch_all(pool)
    .await?;
    rows.into_iter().map(|row| row.into_claimed(owner)).collect()
}

/// Builds in each state that isn't final, for metrics.
pub async fn depth(pool: &PgPool) -> Result<Vec<(StateName, i64)>, Error> {
    let rows = sqlx::query!(
        r#"SELECT state, count(*) AS "count!" FROM builds
           WHERE state IN ('queued', 'starting', 'running', 'cancelling') GROUP BY state"#
    )
    .fetch_all(pool)
    .await?;
    rows.into_iter()
        .map(|row| {
            let place = Place {
                table: "builds",
                row: &"(count)",
            };
            Ok((place.parse("state", &row.state)?, row.count))
        })
        .collect()
}
