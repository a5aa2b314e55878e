//! The rows of new builds.

use std::{collections::HashMap, sync::Arc};

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, types::Json};
use uuid::Uuid;

use super::NewBuild;
use crate::{
    domain::{
        build::Build,
        event::{Event, Status},
        hook::Origin,
        spec::{BuildSpec, CommitId},
        state::{BuildState, StateName},
        term::Term,
        trace_parent::TraceParent,
    },
    store::{
        Error,
        entries::pack,
        gather::{Gather, Statement},
    },
};

/// Stores builds, each with its first journal entry, in one statement; all or none, apart from those that are shared
/// and of which one is in flight.
pub(in crate::store) struct Insert;

impl Statement for Insert {
    type Question = Arc<NewBuild>;
    /// When it may be claimed; `None` when an identical one is in flight.
    type Answer = Option<DateTime<Utc>>;

    async fn ask(connection: &mut PgConnection, new: &[Arc<NewBuild>]) -> Result<Vec<Self::Answer>, Error> {
        let mut columns = Columns::default();
        for new in new {
            columns.push(new);
        }
        let rows = sqlx::query!(
            r#"
            WITH new AS (
                SELECT * FROM unnest(
                    $1::uuid[], $2::text[], $3::jsonb[], $4::smallint[], $5::timestamptz[], $6::uuid[], $7::text[],
                    $8::text[], $9::smallint[], $10::bytea[], $11::text[], $15::bytea[],
                    $16::jsonb[], $17::float8[], $18::boolean[]
                ) AS new (id, project, spec, priority, created_at, retry_of, commit, traceparent, codec, body, group_key,
                          coalesce_hash, origin, head_start, serialize)
            ), build AS (
                INSERT INTO builds (id, project, state, spec, priority, available_at, created_at, journal_head, retry_of,
                                    commit, traceparent, group_key, group_seq, coalesce_hash, origin, rank, serialize)
                SELECT id, project, 'queued', spec, priority, now(), created_at, 1, retry_of, commit, traceparent, group_key,
                       CASE WHEN group_key IS NOT NULL THEN nextval('build_group_seq') END, coalesce_hash, origin,
                       now() - make_interval(secs => head_start), serialize
                FROM new
                ON CONFLICT (coalesce_hash)
                    WHERE coalesce_hash IS NOT NULL AND state IN ('queued', 'starting', 'running') DO NOTHING
                RETURNING id, available_at
            ), term AS (
                INSERT INTO build_terms (project, term, build_id)
                SELECT project, term, id FROM unnest($12::text[], $13::text[], $14::uuid[]) AS term (project, term, id)
                WHERE id IN (SELECT id FROM build)
            ), entry AS (
                INSERT INTO journal (build_id, first_seq, last_seq, codec, body) SELECT id, 1, 1, codec, body FROM new WHERE id IN (SELECT id FROM build)
            )
            SELECT id, available_at AS "available_at!" FROM build
            "#,
            &columns.id,
            &columns.project as &[&str],
            &columns.spec as &[Json<&BuildSpec>],
            &columns.priority,
            &columns.created_at,
            &columns.retry_of as &[Option<Uuid>],
            &columns.commit as &[Option<&str>],
            &columns.traceparent as &[Option<&str>],
            &columns.codec,
            &columns.body,
            &columns.group_key as &[Option<&str>],
            &columns.term_project as &[&str],
            &columns.term,
            &columns.term_build,
            &columns.coalesce_hash as &[Option<Vec<u8>>],
            &columns.origin as &[Option<Json<&Origin>>],
            &columns.head_start,
            &columns.serialize,
        )
        .fetch_all(connection)
        .await?;
        let available: HashMap<_, _> = rows.into_iter().map(|row| (row.id, row.available_at)).collect();
        Ok(new.iter().map(|new| available.get(&new.id.0).copied()).collect())
    }
}

/// Builds by columns, as a statement takes them.
#[derive(Default)]
struct Columns<'a> {
    id: Vec<Uuid>,
    project: Vec<&'a str>,
    spec: Vec<Json<&'a BuildSpec>>,
    priority: Vec<i16>,
    /// What the priority is worth, in seconds.
    head_start: Vec<f64>,
    serialize: Vec<bool>,
    created_at: Vec<DateTime<Utc>>,
    retry_of: Vec<Option<Uuid>>,
    commit: Vec<Option<&'a str>>,
    traceparent: Vec<Option<&'a str>>,
    codec: Vec<i16>,
    body: Vec<Vec<u8>>,
    group_key: Vec<Option<&'a str>>,
    coalesce_hash: Vec<Option<Vec<u8>>>,
    origin: Vec<Option<Json<&'a Origin>>>,
    term_project: Vec<&'a str>,
    term: Vec<String>,
    term_build: Vec<Uuid>,
}

impl<'a> Columns<'a> {
    fn push(&mut self, new: &'a NewBuild) {
        let first = pack(&[Event::Status(Status {
            state: StateName::Queued,
            at: new.created_at,
            attempt: None,
            failure: None,
            superseded_by: None,
        })]);
        let retry = new.retry.as_ref();
        self.id.push(new.id.0);
        self.project.push(new.project.as_str());
        self.spec.push(Json(&new.spec));
        self.priority.push(new.spec.priority);
        self.head_start
            .push(f64::from(new.spec.priority) * f64::from(new.queue.priority_ageing_seconds));
        self.created_at.push(new.created_at);
        self.retry_of.push(retry.map(|retry| retry.of.0));
        self.commit
            .push(retry.and_then(|retry| retry.commit.as_ref()).map(CommitId::as_str));
        self.traceparent.push(new.trace.as_ref().map(TraceParent::as_str));
        self.codec.push(first.codec);
        self.body.push(first.body);
        self.group_key
            .push(new.spec.group.as_ref().map(|group| group.key.as_str()));
        let serialize = new.spec.group.as_ref().is_some_and(|group| group.serialize);
        self.serialize.push(serialize);
        self.coalesce_hash.push(new.fingerprint().map(Vec::from));
        self.origin.push(new.origin.as_ref().map(Json));
        for term in Term::of(&new.spec) {
            self.term_project.push(new.project.as_str());
            self.term.push(term.as_str().to_owned());
            self.term_build.push(new.id.0);
        }
    }
}

/// A build that was stored just now.
fn stored(new: Arc<NewBuild>, available_at: DateTime<Utc>) -> Build {
    let new = Arc::unwrap_or_clone(new);
    let (retry_of, commit) = new.retry.map_or((None, None), |retry| (Some(retry.of), retry.commit));
    Build {
        id: new.id,
        project: new.project,
        spec: new.spec,
        state: BuildState::Queued {
            attempts: 0,
            available_at,
        },
        commit,
        created_at: new.created_at,
        journal_head: 1,
        retry_of,
        retried_by: None,
        superseded_by: None,
        origin: new.origin,
        attempts: Vec::new(),
        log_bytes: 0,
    }
}

/// Stores one build. `None` when it is to be shared with identical requests, and one of those has a build in flight.
pub(super) async fn insert(connection: &mut PgConnection, new: &Arc<NewBuild>) -> Result<Option<Build>, Error> {
    let available = Insert::ask(connection, std::slice::from_ref(new)).await?;
    let available = available.into_iter().next().flatten();
    Ok(available.map(|available_at| stored(Arc::clone(new), available_at)))
}

/// Stores one build that isn't to be shared, in one statement with others that are asked for at the same time.
pub(in crate::store) async fn insert_with_others(gather: &Gather<Insert>, new: NewBuild) -> Result<Build, Error> {
    let new = Arc::new(new);
    let available_at = gather.ask(Arc::clone(&new)).await?.ok_or(Error::Conflict)?;
    Ok(stored(new, available_at))
}
