//! Claiming queued builds, and taking over builds whose worker died.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::PgPool;
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

/// How much may be claimed at once.
#[derive(Clone, Copy, Debug)]
pub struct ClaimLimits {
    /// At most this many now.
    pub batch: u32,
    /// No more than this many live builds in the whole installation, counted from the rows.
    pub live: u32,
}

/// The failures after which a build is sent to another node.
fn infrastructure_codes() -> Vec<String> {
    let codes = FailureCode::ALL.into_iter().filter(|code| code.is_infrastructure());
    codes.map(|code| code.to_string()).collect()
}

/// Takes queued builds in the order of the queue. Workers don't wait for each other (SKIP LOCKED) and never get the
/// same build. Pods are named `pod_prefix` followed by the attempt's id.
pub async fn claim(
    pool: &PgPool,
    owner: ReplicaId,
    limits: ClaimLimits,
    pod_prefix: &str,
    now: DateTime<Utc>,
) -> Result<Vec<Claimed>, Error> {
    let at = serde_json::to_value(now).map_err(|error| Error::Database(sqlx::Error::Encode(error.into())))?;
    let rows = sqlx::query_as!(
        ClaimedRow,
        r#"
        WITH room AS (
            SELECT least($2, greatest(0, $3 - (
                SELECT count(*) FROM builds WHERE state IN ('starting', 'running', 'cancelling')
            ))) AS n
        ), next AS (
            SELECT id, available_at FROM builds
            WHERE state = 'queued' AND available_at <= now()
            ORDER BY priority DESC, id
            LIMIT (SELECT n FROM room)
            FOR NO KEY UPDATE SKIP LOCKED
        ), build AS (
            UPDATE builds b
            SET state = 'starting', available_at = NULL, attempts = b.attempts + 1, owner = $1, epoch = b.epoch + 1,
                journal_head = b.journal_head + 1
            FROM next
            WHERE b.id = next.id AND b.state = 'queued'
            RETURNING b.*
        ), attempt AS (
            INSERT INTO attempts (build_id, number, state, pod, resources, created_at)
            SELECT id, attempts, 'starting', $4 || id::text || '-' || attempts, coalesce(next_resources, spec -> 'resources'), $5 FROM build
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
                   WHERE build.attempts > 1 AND a.build_id = build.id AND a.node IS NOT NULL AND a.failure_code = ANY($7)
               ) AS "failed_nodes!",
               ARRAY(SELECT n.name FROM nodes n WHERE n.avoided_until > now()) AS "bad_nodes!",
               '{}'::jsonb AS "log_cursor!", $5 AS "attempt_created_at!",
               (SELECT next.available_at FROM next WHERE next.id = build.id) AS available_since
        FROM build
        ORDER BY priority DESC, id
        "#,
        owner.0,
        i64::from(limits.batch),
        i64::from(limits.live),
        pod_prefix,
        now,
        at,
        &infrastructure_codes(),
    )
    .fetch_all(pool)
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
