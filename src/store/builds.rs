//! Accepting, reading and cancelling builds.

mod insert;

use std::{collections::HashMap, sync::Arc};

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};

pub(super) use self::insert::Insert;
use self::insert::{insert, insert_with_others};
use super::{
    Error,
    coalesce::{self, Fingerprint},
    entries::pack,
    gather::Gather,
    groups::{self, Superseded},
    rows::{AttemptRow, BuildRow},
    transitions::status_entries,
    uploads,
};
use crate::domain::{
    build::{Attempt, Build},
    hook::Origin,
    id::BuildId,
    project::ProjectName,
    queue::QueueConfig,
    spec::{BuildSpec, CommitId, Group, Supersede},
    state::{BuildState, IllegalTransition, StateName},
    trace_parent::TraceParent,
};

/// A checked request, about to be stored.
#[derive(Clone, Debug)]
pub struct NewBuild {
    /// Its id, made by the caller.
    pub id: BuildId,
    /// Who owns it.
    pub project: ProjectName,
    /// What is asked for.
    pub spec: BuildSpec,
    /// What decides on its place in the queue.
    pub queue: QueueConfig,
    /// The caller's time; the order of the queue goes by the database's.
    pub created_at: DateTime<Utc>,
    /// Set when a caller wants an earlier build again.
    pub retry: Option<Retry>,
    /// Whether it may be one build with identical requests that say so, too.
    pub coalesce: bool,
    /// The span of the request, where it is traced.
    pub trace: Option<TraceParent>,
    /// The event of a hook that it is made for.
    pub origin: Option<Origin>,
}

impl NewBuild {
    /// The group, if older builds of it are to be cancelled. A build that is made again takes nobody's place: what is
    /// newer than the first is newer than the second.
    fn supersedes(&self) -> Option<&Group> {
        let group = self.spec.group.as_ref()?;
        (self.retry.is_none() && group.supersede != Supersede::No).then_some(group)
    }

    /// What identical requests have in common, if they are to share the build.
    fn fingerprint(&self) -> Option<Fingerprint> {
        // Unwrap: the types hold strings, numbers and maps with string keys only.
        let spec = || serde_json::to_value(&self.spec).expect("a specification serialises");
        self.coalesce.then(|| coalesce::fingerprint(&self.project, &spec()))
    }
}

/// The build that is to be built again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Its id.
    pub of: BuildId,
    /// What it built: the same is built again, wherever its ref points to now.
    pub commit: Option<CommitId>,
}

/// A caller's promise that requests under the same key are the same request.
#[derive(Clone, Debug)]
pub struct IdempotencyKey {
    /// The caller's key, 1 to 255 characters.
    pub key: String,
    /// SHA-256 of the checked request.
    pub body_hash: [u8; 32],
}

/// What became of a request.
#[derive(Clone, Debug)]
pub enum CreateOutcome {
    /// It was stored.
    Created {
        /// The build.
        build: Build,
        /// The builds whose place it takes.
        superseded: Vec<Superseded>,
    },
    /// An identical request is in flight: this is its build.
    Coalesced(Build),
    /// The key was used for the same request before.
    Replayed {
        /// The build that the first request got.
        build: Build,
        /// Whether the first request got it because of an identical one.
        coalesced: bool,
    },
    /// The key was used for another request.
    KeyReused,
    /// Another request under this key is being stored right now.
    InFlight,
    /// There is no such project.
    UnknownProject,
    /// The project has no such upload, or not any more.
    UnknownUpload,
}

/// Whether what the build needs from this database is there, and will be.
async fn has_upload(connection: &mut PgConnection, new: &NewBuild) -> Result<bool, Error> {
    match new.spec.source.upload() {
        Some(upload) => uploads::hold(connection, upload, &new.project).await,
        None => Ok(true),
    }
}

/// Stores a build. With a key, the primary key of `idempotency_keys` decides which of several equal requests is the
/// first, whichever replica they reach.
pub async fn create(pool: &PgPool, new: NewBuild, key: Option<IdempotencyKey>) -> Result<CreateOutcome, Error> {
    if key.is_none() && new.supersedes().is_none() {
        let mut connection = pool.acquire().await?;
        return store(&mut connection, new).await.or_else(unknown_project);
    }
    let mut transaction = pool.begin().await?;
    let outcome = match key {
        Some(key) => store_once(&mut transaction, new, &key).await,
        None => store(&mut transaction, new).await,
    };
    // Ended here and not by dropping it, because its locks would outlive this call.
    match outcome {
        Ok(CreateOutcome::Created { .. } | CreateOutcome::Coalesced(_)) => transaction.commit().await?,
        _ => transaction.rollback().await?,
    }
    outcome.or_else(unknown_project)
}

/// As [`create`], for a build that only has to be stored: together with others.
pub(super) async fn create_with_others(gather: &Gather<Insert>, new: NewBuild) -> Result<CreateOutcome, Error> {
    let superseded = Vec::new();
    let stored = insert_with_others(gather, new).await;
    stored
        .map(|build| CreateOutcome::Created { build, superseded })
        .or_else(unknown_project)
}

pub(super) fn unknown_project(error: Error) -> Result<CreateOutcome, Error> {
    match error {
        Error::Database(sqlx::Error::Database(database)) if database.is_foreign_key_violation() => {
            Ok(CreateOutcome::UnknownProject)
        }
        other => Err(other),
    }
}

/// Stores a build, and has it take the place of others. What supersedes others needs a transaction.
pub(super) async fn store(connection: &mut PgConnection, new: NewBuild) -> Result<CreateOutcome, Error> {
    if !has_upload(connection, &new).await? {
        return Ok(CreateOutcome::UnknownUpload);
    }
    let new = Arc::new(new);
    let shared = new.fingerprint();
    let group = new.supersedes();
    if let Some(group) = group {
        groups::lock(connection, &new.project, &group.key).await?;
        if let Some(shared) = &shared {
            coalesce::let_go_of_outdated(connection, shared).await?;
        }
    }
    let build = loop {
        if let Some(build) = insert(connection, &new).await? {
            break build;
        }
        // The one that was in flight may be over by now.
        if let Some(shared) = &shared
            && let Some(id) = coalesce::in_flight(connection, shared).await?
        {
            let build = get_in(connection, id).await?.ok_or(Error::Conflict)?;
            return Ok(CreateOutcome::Coalesced(build));
        }
    };
    let superseded = match group {
        Some(group) => groups::supersede(connection, &new.project, group, build.id, new.created_at).await?,
        None => Vec::new(),
    };
    Ok(CreateOutcome::Created { build, superseded })
}

/// Whether a key stands for a request already.
pub async fn is_used(pool: &PgPool, project: &ProjectName, key: Option<&IdempotencyKey>) -> Result<bool, Error> {
    let Some(key) = key else { return Ok(false) };
    let used = sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM idempotency_keys WHERE project = $1 AND key = $2) AS "used!""#,
        project.as_str(),
        key.key,
    )
    .fetch_one(pool)
    .await?;
    Ok(used)
}

async fn store_once(
    transaction: &mut PgConnection,
    new: NewBuild,
    key: &IdempotencyKey,
) -> Result<CreateOutcome, Error> {
    // Taken by a request that is being stored at this moment; the lock goes with the transaction.
    let free = sqlx::query_scalar!(
        r#"SELECT pg_try_advisory_xact_lock(hashtextextended($1 || '/' || $2, 0)) AS "free!""#,
        new.project.as_str(),
        key.key,
    )
    .fetch_one(&mut *transaction)
    .await?;
    if !free {
        return Ok(CreateOutcome::InFlight);
    }
    let used = sqlx::query!(
        "SELECT body_hash, build_id, coalesced FROM idempotency_keys WHERE project = $1 AND key = $2",
        new.project.as_str(),
        key.key,
    )
    .fetch_optional(&mut *transaction)
    .await?;
    if let Some(used) = used {
        if used.body_hash != key.body_hash {
            return Ok(CreateOutcome::KeyReused);
        }
        let build = get_in(transaction, BuildId(used.build_id)).await?;
        return Ok(CreateOutcome::Replayed {
            build: build.ok_or(Error::Conflict)?,
            coalesced: used.coalesced,
        });
    }
    let project = new.project.clone();
    let outcome = store(&mut *transaction, new).await?;
    if let CreateOutcome::Created { build, .. } | CreateOutcome::Coalesced(build) = &outcome {
        sqlx::query!(
            "INSERT INTO idempotency_keys (project, key, body_hash, build_id, coalesced) VALUES ($1, $2, $3, $4, $5)",
            project.as_str(),
            key.key,
            key.body_hash.as_slice(),
            build.id.0,
            matches!(outcome, CreateOutcome::Coalesced(_)),
        )
        .execute(transaction)
        .await?;
    }
    Ok(outcome)
}

/// One build with its attempts.
pub async fn get(pool: &PgPool, id: BuildId) -> Result<Option<Build>, Error> {
    let mut connection = pool.acquire().await?;
    get_in(&mut connection, id).await
}

pub(super) async fn get_in(connection: &mut PgConnection, id: BuildId) -> Result<Option<Build>, Error> {
    let row = sqlx::query_as!(
        BuildRow,
        "SELECT id, project, state, spec, attempts, available_at, commit, digest, failure_code, failure_message,
                created_at, started_at, finished_at, journal_head, retry_of, superseded_by, log_bytes, origin,
                (SELECT r.id FROM builds r WHERE r.retry_of = builds.id ORDER BY r.id DESC LIMIT 1) AS retried_by
         FROM builds WHERE id = $1",
        id.0,
    )
    .fetch_optional(&mut *connection)
    .await?;
    let Some(row) = row else {
        return Ok(None);
    };
    let mut attempts = attempts_of(connection, &[id.0]).await?;
    row.into_build(attempts.remove(&id).unwrap_or_default()).map(Some)
}

pub(super) async fn attempts_of(
    connection: &mut PgConnection,
    builds: &[uuid::Uuid],
) -> Result<HashMap<BuildId, Vec<Attempt>>, Error> {
    let rows = sqlx::query_as!(
        AttemptRow,
        "SELECT build_id, number, state, pod, node, failure_code, failure_message, failure_evidence, resources, created_at, started_at,
                finished_at, log_cursor
         FROM attempts WHERE build_id = ANY($1) ORDER BY build_id, number",
        builds,
    )
    .fetch_all(connection)
    .await?;
    let mut attempts: HashMap<BuildId, Vec<Attempt>> = HashMap::new();
    for row in rows {
        attempts.entry(BuildId(row.build_id)).or_default().push(row.try_into()?);
    }
    Ok(attempts)
}

/// Whether a build is over, and its journal's head; cheaper than [`get`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Where the build stands.
    pub state: StateName,
    /// Sequence number of the last entry.
    pub head: i64,
    /// Whether the journal is in the archive.
    pub archived: bool,
}

/// How far a build is.
pub async fn progress(pool: &PgPool, id: BuildId) -> Result<Option<Progress>, Error> {
    let row = sqlx::query!("SELECT state, journal_head, archived FROM builds WHERE id = $1", id.0)
        .fetch_optional(pool)
        .await?;
    row.map(|row| {
        let place = super::rows::Place {
            table: "builds",
            row: &id,
        };
        Ok(Progress {
            state: place.parse("state", &row.state)?,
            head: row.journal_head,
            archived: row.archived,
        })
    })
    .transpose()
}

/// What became of a wish to cancel.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "one per request, and matched at once")]
pub enum CancelOutcome {
    /// The build is cancelled, or its worker will stop it. `changed` is false when that was so before.
    Accepted {
        /// The build as it is now.
        build: Build,
        /// Whether this call changed it.
        changed: bool,
    },
    /// The build is over.
    Refused(IllegalTransition),
    /// There is no such build.
    NotFound,
}

/// Cancels a queued build at once; asks the worker of a live one to stop it.
pub async fn cancel(pool: &PgPool, id: BuildId, now: DateTime<Utc>) -> Result<CancelOutcome, Error> {
    let mut transaction = pool.begin().await?;
    let locked = sqlx::query_scalar!("SELECT id FROM builds WHERE id = $1 FOR UPDATE", id.0)
        .fetch_optional(&mut *transaction)
        .await?;
    if locked.is_none() {
        return Ok(CancelOutcome::NotFound);
    }
    let build = get_in(&mut transaction, id).await?.ok_or(Error::Conflict)?;
    let from = build.state.name();
    let to = match build.state.clone().cancel(now) {
        Ok(to) => to,
        Err(refused) => return Ok(CancelOutcome::Refused(refused)),
    };
    if to.name() == from {
        return Ok(CancelOutcome::Accepted { build, changed: false });
    }
    let attempt = match &to {
        BuildState::Cancelling { attempt, .. } => Some(*attempt),
        _ => build.attempts.last().map(|attempt| attempt.number),
    };
    let entries = pack(&status_entries(&to, attempt, None, None, now));
    let finished_at = to.name().is_terminal().then_some(now);
    let changed = sqlx::query!(
        "WITH build AS (
             UPDATE builds SET state = $3, available_at = NULL, finished_at = $4, journal_head = journal_head + $5
             WHERE id = $1 AND state = $2
             RETURNING id, attempts, journal_head
         ), attempt AS (
             UPDATE attempts SET state = $3 FROM build
             WHERE build_id = build.id AND number = build.attempts AND $4::timestamptz IS NULL
         )
         INSERT INTO journal (build_id, first_seq, last_seq, codec, body)
         SELECT id, journal_head - $5 + 1, journal_head, $6, $7 FROM build",
        id.0,
        from.as_str(),
        to.name().as_str(),
        finished_at,
        entries.count,
        entries.codec,
        entries.body,
    )
    .execute(&mut *transaction)
    .await?;
    if changed.rows_affected() != 1 {
        return Err(Error::Conflict);
    }
    let build = get_in(&mut transaction, id).await?.ok_or(Error::Conflict)?;
    transaction.commit().await?;
    Ok(CancelOutcome::Accepted { build, changed: true })
}
