//! What every test here starts from.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use kiln::{
    domain::{
        event::{Event, Log, LogStream, StepName},
        id::BuildId,
        queue::QueueConfig,
        spec::BuildSpec,
    },
    journal::{
        History, ReadError,
        archive::{Archive, metrics::Metrics, mover},
    },
    store::{
        builds::{self, CancelOutcome, CreateOutcome, NewBuild},
        entries::pack,
    },
};
use object_store::{ObjectStore, path::Path};
use serde_json::json;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub(super) fn spec() -> BuildSpec {
    serde_json::from_value(json!({
        "source": {"type": "inline", "files": {"Dockerfile": "FROM scratch"}},
        "dockerfile": "Dockerfile", "build_args": {}, "target": null, "platforms": ["linux/amd64"], "labels": {"a": "b"},
        "images": ["registry.test/app:1"], "push": true, "builder": "buildkit",
        "resources": {"cpu": "1", "memory": "1Gi", "disk": "1Gi"},
        "timeout_seconds": 600, "priority": 0, "annotations": {},
    }))
    .expect("a specification")
}

/// An id as a clock makes it that shows this time.
pub(super) fn id_at(at: DateTime<Utc>) -> BuildId {
    let milliseconds = u64::try_from(at.timestamp_millis()).expect("after 1970");
    let random = Uuid::new_v4().into_bytes();
    let tail: [u8; 10] = random[..10].try_into().expect("ten");
    BuildId(uuid::Builder::from_unix_timestamp_millis(milliseconds, &tail).into_uuid())
}

/// A queued build under this id.
pub(super) async fn create_as(pool: &PgPool, id: BuildId) {
    let new = NewBuild {
        id,
        project: "default".parse().expect("a name"),
        spec: spec(),
        queue: QueueConfig::default(),
        created_at: Utc::now(),
        retry: None,
        coalesce: false,
        trace: None,
        origin: None,
    };
    let outcome = builds::create(pool, new, None).await.expect("stores");
    assert!(matches!(outcome, CreateOutcome::Created { .. }), "{outcome:?}");
}

pub(super) fn log(text: impl Into<String>) -> Event {
    Event::Log(Log {
        step: StepName::Build,
        stream: LogStream::Stdout,
        at: DateTime::UNIX_EPOCH,
        text: text.into(),
        partial: false,
        replaced: 0,
    })
}

/// Adds rows to a journal.
pub(super) async fn append(pool: &PgPool, build: BuildId, rows: &[Vec<Event>]) {
    for row in rows {
        let mut packed = pack(row);
        // As the entry that a claim writes.
        if packed.codec == 0 && packed.count == 1 {
            assert_eq!(packed.body.pop(), Some(b'\n'));
        }
        sqlx::query(
            "WITH build AS (UPDATE builds SET journal_head = journal_head + $2 WHERE id = $1 RETURNING journal_head)
             INSERT INTO journal (build_id, first_seq, last_seq, codec, body)
             SELECT $1, journal_head - $2 + 1, journal_head, $3, $4 FROM build",
        )
        .bind(build.0)
        .bind(packed.count)
        .bind(packed.codec)
        .bind(packed.body)
        .execute(pool)
        .await
        .expect("appends");
    }
}

/// Ends a build, as long ago as said.
pub(super) async fn finish(pool: &PgPool, build: BuildId, ago: TimeDelta) {
    let outcome = builds::cancel(pool, build, Utc::now() - ago).await.expect("cancels");
    assert!(matches!(outcome, CancelOutcome::Accepted { .. }), "{outcome:?}");
}

/// A build that ended a day ago, with these rows between its first entry and its end.
pub(super) async fn finished(pool: &PgPool, rows: &[Vec<Event>]) -> BuildId {
    let build = BuildId::new();
    create_as(pool, build).await;
    append(pool, build, rows).await;
    finish(pool, build, TimeDelta::days(1)).await;
    build
}

/// Rows of output; every fifth is a long one, so that archived journals have several frames.
pub(super) fn output(rows: usize) -> Vec<Vec<Event>> {
    (0..rows)
        .map(|row| match row % 5 {
            4 => vec![log(format!("{row}:{}\n", "x".repeat(400_000)))],
            _ => (0..7).map(|line| log(format!("row {row}, line {line}\n"))).collect(),
        })
        .collect()
}

pub(super) fn archive(store: &Arc<impl ObjectStore>) -> Archive {
    let store: Arc<_> = Arc::clone(store);
    Archive::new(store, Path::from("logs"))
}

/// Moves everything that is due.
pub(super) async fn move_due(pool: &PgPool, archive: &Archive) -> Result<(), mover::MoveError> {
    mover::move_due(pool, archive, 3600, &Metrics::default(), &CancellationToken::new()).await
}

pub(super) type Entries = Vec<(i64, Event)>;

/// A journal from after a number to its end.
pub(super) async fn read(history: &History, build: BuildId, after: i64) -> Result<Entries, ReadError> {
    let mut entries = Entries::new();
    loop {
        let position = entries.last().map_or(after, |(seq, _): &(i64, Event)| *seq);
        let page = history.read(build, position).await?;
        if page.is_empty() {
            return Ok(entries);
        }
        entries.extend(page);
    }
}

/// Rows of a journal that are in the database.
pub(super) async fn rows(pool: &PgPool, build: BuildId) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM journal WHERE build_id = $1")
        .bind(build.0)
        .fetch_one(pool)
        .await
        .expect("reads")
}
