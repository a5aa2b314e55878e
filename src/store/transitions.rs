//! Writing what the state machine decided, together with the journal entries that tell of it.

use chrono::{DateTime, Utc};
use sqlx::{PgExecutor, PgPool, postgres::types::PgInterval};

use super::{Error, Lease, entries::pack, leases::interval, nodes};
use crate::domain::{
    event::{End, Event, Status},
    failure::Failure,
    id::BuildId,
    node::AvoidPolicy,
    spec::{CommitId, Digest, Resources},
    state::{BuildState, StateName},
};

/// What a worker learned of its attempt, to be stored with a change of state.
#[derive(Clone, Debug, Default)]
pub struct AttemptFacts {
    /// The node, once known.
    pub node: Option<String>,
    /// The commit, once known.
    pub commit: Option<CommitId>,
    /// Why the attempt failed, if it did. A build that goes back to the queue keeps it only here.
    pub failure: Option<Failure>,
    /// What further attempts are given, where it differs from what was asked for.
    pub next_resources: Option<Resources>,
    /// The node is to blame for the failure; when it is avoided for that.
    pub node_failed: Option<AvoidPolicy>,
}

/// The journal entries that a change of state makes.
pub(super) fn status_entries(
    to: &BuildState,
    attempt: Option<u32>,
    failure: Option<&Failure>,
    superseded_by: Option<BuildId>,
    at: DateTime<Utc>,
) -> Vec<Event> {
    let failure = match to {
        BuildState::Failed { failure, .. } => Some(failure),
        // The attempt failed, and another is to follow.
        BuildState::Queued { .. } => failure,
        _ => None,
    };
    let mut entries = vec![Event::Status(Status {
        state: to.name(),
        at,
        attempt,
        failure: failure.cloned(),
        superseded_by,
    })];
    if to.name().is_terminal() {
        entries.push(Event::End(End {
            state: to.name(),
            digest: match to {
                BuildState::Succeeded { digest, .. } => digest.clone(),
                _ => None,
            },
            failure: failure.cloned(),
        }));
    }
    entries
}

/// Columns of `builds` that follow from the state.
struct Columns<'a> {
    available_at: Option<DateTime<Utc>>,
    started_at: Option<DateTime<Utc>>,
    finished_at: Option<DateTime<Utc>>,
    digest: Option<&'a str>,
    failure: Option<&'a Failure>,
    owned: bool,
}

impl<'a> From<&'a BuildState> for Columns<'a> {
    fn from(state: &'a BuildState) -> Self {
        let none = Self {
            available_at: None,
            started_at: None,
            finished_at: None,
            digest: None,
            failure: None,
            owned: false,
        };
        match state {
            BuildState::Queued { available_at, .. } => Self {
                available_at: Some(*available_at),
                ..none
            },
            BuildState::Starting { .. } => Self { owned: true, ..none },
            BuildState::Running { started_at, .. } => Self {
                started_at: Some(*started_at),
                owned: true,
                ..none
            },
            BuildState::Cancelling { started_at, .. } => Self {
                started_at: *started_at,
                owned: true,
                ..none
            },
            BuildState::Succeeded {
                started_at,
                finished_at,
                digest,
            } => Self {
                started_at: Some(*started_at),
                finished_at: Some(*finished_at),
                digest: digest.as_ref().map(Digest::as_str),
                ..none
            },
            BuildState::Failed {
                started_at,
                finished_at,
                failure,
            } => Self {
                started_at: *started_at,
                finished_at: Some(*finished_at),
                failure: Some(failure),
                ..none
            },
            BuildState::Cancelled {
                started_at,
                finished_at,
            } => Self {
                started_at: *started_at,
                finished_at: Some(*finished_at),
                ..none
            },
        }
    }
}

/// The state that the attempt is left in when its build enters `to`.
fn attempt_state(to: &BuildState) -> StateName {
    match to {
        // The attempt failed; only its build goes on.
        BuildState::Queued { .. } => StateName::Failed,
        other => other.name(),
    }
}

/// How long a build isn't to be claimed. From when that counts is for the database to say, whose clock decides about it.
fn pause(now: DateTime<Utc>, available_at: DateTime<Utc>) -> PgInterval {
    interval((available_at - now).to_std().unwrap_or_default())
}

/// Moves the build from `from` to `to` on behalf of its worker, and returns the journal's new head. [`Error::Conflict`]
/// means that nothing was written: the lease is lost, or the build was in another state.
///
/// When the connection breaks, the write may have happened. Trying again is safe: it then ends in a conflict, and the
/// caller reads the build to see which.
pub async fn apply(
    pool: &PgPool,
    lease: &Lease,
    from: StateName,
    to: &BuildState,
    facts: &AttemptFacts,
    now: DateTime<Utc>,
) -> Result<i64, Error> {
    let (Some(policy), Some(node), Some(failure)) = (facts.node_failed, &facts.node, &facts.failure) else {
        return write(pool, lease, from, to, facts, now).await;
    };
    let mut transaction = pool.begin().await?;
    let head = write(&mut *transaction, lease, from, to, facts, now).await?;
    if attempt_state(to) == StateName::Failed {
        nodes::record(&mut *transaction, node, lease.attempt, failure, policy).await?;
    }
    transaction.commit().await?;
    Ok(head)
}

async fn write(
    executor: impl PgExecutor<'_>,
    lease: &Lease,
    from: StateName,
    to: &BuildState,
    facts: &AttemptFacts,
    now: DateTime<Utc>,
) -> Result<i64, Error> {
    let columns = Columns::from(to);
    let attempt_state = attempt_state(to);
    let attempt_failure = if attempt_state == StateName::Failed {
        columns.failure.or(facts.failure.as_ref())
    } else {
        None
    };
    let attempt_finished = attempt_state.is_terminal().then_some(now);
    let next_resources = facts.next_resources.map(serde_json::to_value).transpose();
    let next_resources = next_resources.map_err(|error| Error::Database(sqlx::Error::Encode(error.into())))?;
    let evidence = attempt_failure.and_then(|failure| failure.evidence.as_ref());
    let evidence = evidence.map(serde_json::to_value).transpose();
    let evidence = evidence.map_err(|error| Error::Database(sqlx::Error::Encode(error.into())))?;
    let entries = pack(&status_entries(
        to,
        Some(lease.attempt.number),
        facts.failure.as_ref(),
        None,
        now,
    ));
    let head = sqlx::query_scalar!(
        r#"
        WITH build AS (
            UPDATE builds
            SET state = $5, available_at = now() + $6::interval, started_at = $7, finished_at = $8, digest = $9, failure_code = $10,
                failure_message = $11, commit = coalesce($12, commit), owner = CASE WHEN $13 THEN owner END,
                journal_head = journal_head + $14, next_resources = coalesce($23, next_resources)
            WHERE id = $1 AND owner = $2 AND epoch = $3 AND state = $4
            RETURNING id, journal_head
        ), attempt AS (
            UPDATE attempts
            SET state = $17, node = coalesce($18, node), failure_code = $19, failure_message = $20, failure_evidence = $24,
                started_at = coalesce($7, started_at), finished_at = $21
            FROM build
            WHERE build_id = build.id AND number = $22
        )
        INSERT INTO journal (build_id, first_seq, last_seq, codec, body)
        SELECT id, journal_head - $14 + 1, journal_head, $15, $16 FROM build
        RETURNING last_seq
        "#,
        lease.attempt.build.0,
        lease.owner.0,
        lease.epoch,
        from.as_str(),
        to.name().as_str(),
        columns.available_at.map(|at| pause(now, at)),
        columns.started_at,
        columns.finished_at,
        columns.digest,
        columns.failure.map(|failure| failure.code.as_str()),
        columns.failure.map(|failure| failure.message.as_str()),
        facts.commit.as_ref().map(CommitId::as_str),
        columns.owned,
        entries.count,
        entries.codec,
        entries.body,
        attempt_state.as_str(),
        facts.node.as_deref(),
        attempt_failure.map(|failure| failure.code.as_str()),
        attempt_failure.map(|failure| failure.message.as_str()),
        attempt_finished,
        i32::try_from(lease.attempt.number).map_err(|_| Error::Conflict)?,
        next_resources,
        evidence,
    )
    .fetch_optional(executor)
    .await?;
    head.ok_or(Error::Conflict)
}

/// Undoes a claim whose pod was certainly never created: the build is queued again and the attempt forgotten.
pub async fn release(
    pool: &PgPool,
    lease: &Lease,
    available_at: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<i64, Error> {
    let entries = pack(&[Event::Status(Status {
        state: StateName::Queued,
        at: now,
        attempt: None,
        failure: None,
        superseded_by: None,
    })]);
    let head = sqlx::query_scalar!(
        "WITH build AS (
             UPDATE builds
             SET state = 'queued', available_at = now() + $4::interval, attempts = attempts - 1, owner = NULL,
                 journal_head = journal_head + $5
             WHERE id = $1 AND owner = $2 AND epoch = $3 AND state = 'starting'
             RETURNING id, attempts, journal_head
         ), attempt AS (
             DELETE FROM attempts USING build WHERE build_id = build.id AND number = build.attempts + 1
         )
         INSERT INTO journal (build_id, first_seq, last_seq, codec, body)
         SELECT id, journal_head - $5 + 1, journal_head, $6, $7 FROM build
         RETURNING last_seq",
        lease.attempt.build.0,
        lease.owner.0,
        lease.epoch,
        pause(now, available_at),
        entries.count,
        entries.codec,
        entries.body,
    )
    .fetch_optional(pool)
    .await?;
    head.ok_or(Error::Conflict)
}
