//! The journal: appending log entries for many builds in one statement, and reading pages.

mod cursor;

use std::collections::BTreeMap;

use sqlx::{PgConnection, PgPool};

pub use self::cursor::{LogCursor, Sealed, StepCursor};
use super::{
    Error, Lease,
    entries::{Packed, plain, unpack},
    rows::Place,
};
use crate::domain::{
    event::Event,
    id::{AttemptId, BuildId},
    project::ProjectName,
    state::StateName,
};

/// The right to write into an attempt's log. Both kinds end with the attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fence {
    /// A worker's, for as long as it holds the lease.
    Lease(Lease),
    /// The attempt's own: it is its build's current one and live. Whoever comes with it has shown the attempt's token.
    Attempt(AttemptId),
}

impl Fence {
    /// The attempt.
    pub const fn attempt(&self) -> AttemptId {
        match self {
            Self::Lease(lease) => lease.attempt,
            Self::Attempt(attempt) => *attempt,
        }
    }

    const fn lease(&self) -> Option<&Lease> {
        match self {
            Self::Lease(lease) => Some(lease),
            Self::Attempt(_) => None,
        }
    }
}

impl From<Lease> for Fence {
    fn from(lease: Lease) -> Self {
        Self::Lease(lease)
    }
}

/// Entries for one build.
#[derive(Clone, Debug)]
pub struct Append {
    /// Who writes.
    pub fence: Fence,
    /// The cursor as it is.
    pub from: LogCursor,
    /// The cursor as it will be.
    pub to: LogCursor,
    /// The entries; none when only the cursor moves.
    pub packed: Packed,
    /// Bytes of log text in the entries.
    pub text: u64,
}

/// What became of an [`Append`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Appended {
    /// It is in the journal, now or since an earlier call; this is a head that includes it.
    Durable(i64),
    /// Somebody else has written since: nothing was, and this is where the log stands.
    Moved(Standing),
    /// The lease is lost, or the attempt is over.
    Fenced,
}

/// Where an attempt's log stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// How far it is in the journal.
    pub cursor: LogCursor,
    /// Bytes of log text that the build has, earlier attempts included.
    pub log_bytes: u64,
}

impl Standing {
    fn of_row(cursor: serde_json::Value, log_bytes: i64, attempt: &dyn std::fmt::Display) -> Result<Self, Error> {
        let place = Place {
            table: "attempts",
            row: attempt,
        };
        Ok(Self {
            cursor: place.json("log_cursor", cursor)?,
            log_bytes: log_bytes.unsigned_abs(),
        })
    }
}

/// Appends for many builds at once. The answers are in the order of the input, which holds at most one element a
/// build. After an error that leaves open whether it took effect, the same call can be made again.
pub async fn append(pool: &PgPool, appends: &[Append]) -> Result<Vec<Appended>, Error> {
    let mut transaction = pool.begin().await?;
    let json = |cursor: &LogCursor| serde_json::to_value(cursor).unwrap_or_default();
    let attempts = || appends.iter().map(|append| append.fence.attempt());
    let builds: Vec<_> = attempts().map(|attempt| attempt.build.0).collect();
    let numbers: Vec<_> = attempts()
        .map(|attempt| i32::try_from(attempt.number).unwrap_or(i32::MAX))
        .collect();
    let leases = || appends.iter().map(|append| append.fence.lease());
    let owners: Vec<_> = leases().map(|lease| lease.map(|lease| lease.owner.0)).collect();
    let epochs: Vec<_> = leases().map(|lease| lease.map(|lease| lease.epoch)).collect();
    let from: Vec<_> = appends.iter().map(|append| json(&append.from)).collect();
    let to: Vec<_> = appends.iter().map(|append| json(&append.to)).collect();
    let counts: Vec<_> = appends.iter().map(|append| append.packed.count).collect();
    let codecs: Vec<_> = appends.iter().map(|append| append.packed.codec).collect();
    let bodies: Vec<_> = appends.iter().map(|append| append.packed.body.as_slice()).collect();
    let texts: Vec<_> = appends
        .iter()
        .map(|append| i64::try_from(append.text).unwrap_or(i64::MAX))
        .collect();

    // The rows are locked in the order of their ids, so that two writers can't wait for each other.
    let allowed = sqlx::query_scalar!(
        "SELECT b.id
         FROM builds b
         JOIN unnest($1::uuid[], $2::integer[], $3::uuid[], $4::bigint[]) AS i (id, number, owner, epoch)
           ON b.id = i.id AND b.attempts = i.number
          AND (i.owner IS NULL OR (b.owner = i.owner AND b.epoch = i.epoch))
         WHERE b.state IN ('starting', 'running', 'cancelling')
         ORDER BY b.id
         FOR NO KEY UPDATE OF b",
        &builds,
        &numbers,
        &owners as &[Option<uuid::Uuid>],
        &epochs as &[Option<i64>],
    )
    .fetch_all(&mut *transaction)
    .await?;
    let written = sqlx::query!(
        "WITH input AS (
             SELECT * FROM unnest(
                 $1::uuid[], $2::integer[], $3::jsonb[], $4::jsonb[], $5::bigint[], $6::smallint[], $7::bytea[],
                 $8::bigint[]
             ) AS i (id, number, cursor_from, cursor_to, n, codec, body, text)
             WHERE id = ANY($9)
         ), attempt AS (
             UPDATE attempts a SET log_cursor = i.cursor_to FROM input i
             WHERE a.build_id = i.id AND a.number = i.number AND a.log_cursor = i.cursor_from
             RETURNING a.build_id
         ), build AS (
             UPDATE builds b SET journal_head = b.journal_head + i.n, log_bytes = b.log_bytes + i.text
             FROM input i JOIN attempt a ON a.build_id = i.id
             WHERE b.id = i.id
             RETURNING b.id, b.journal_head, i.n, i.codec, i.body
         ), entry AS (
             INSERT INTO journal (build_id, first_seq, last_seq, codec, body)
             SELECT id, journal_head - n + 1, journal_head, codec, body FROM build WHERE n > 0
         )
         SELECT id, journal_head FROM build",
        &builds,
        &numbers,
        &from,
        &to,
        &counts,
        &codecs,
        &bodies as &[&[u8]],
        &texts,
        &allowed,
    )
    .fetch_all(&mut *transaction)
    .await?;
    let written: BTreeMap<_, _> = written.into_iter().map(|row| (row.id, row.journal_head)).collect();
    let moved: Vec<_> = allowed.iter().copied().filter(|id| !written.contains_key(id)).collect();
    let mut standing = standings(&mut transaction, &moved).await?;
    transaction.commit().await?;

    Ok(appends
        .iter()
        .map(|append| {
            let id = append.fence.attempt().build.0;
            match (written.get(&id), standing.remove(&id)) {
                (Some(&head), _) => Appended::Durable(head),
                // The very same was done by an earlier call whose answer was lost, or by another who had the same lines.
                (None, Some((head, found))) if found.cursor == append.to => Appended::Durable(head),
                (None, Some((_, found))) => Appended::Moved(found),
                (None, None) => Appended::Fenced,
            }
        })
        .collect())
}

/// Where the logs of builds' current attempts stand, with their journals' heads. Asked for under the builds' locks, by
/// a statement of its own: the one that waited for the locks has seen the attempts as they were before.
async fn standings(
    connection: &mut PgConnection,
    builds: &[uuid::Uuid],
) -> Result<BTreeMap<uuid::Uuid, (i64, Standing)>, Error> {
    if builds.is_empty() {
        return Ok(BTreeMap::new());
    }
    let rows = sqlx::query!(
        "SELECT b.id, b.journal_head, b.log_bytes, a.log_cursor
         FROM builds b JOIN attempts a ON a.build_id = b.id AND a.number = b.attempts
         WHERE b.id = ANY($1)",
        builds,
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            let standing = Standing::of_row(row.log_cursor, row.log_bytes, &row.id)?;
            Ok((row.id, (row.journal_head, standing)))
        })
        .collect()
}

/// An attempt, as far as its log is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Live {
    /// Who owns the build.
    pub project: ProjectName,
    /// Whether the build is to be cancelled.
    pub cancelling: bool,
    /// Where the log stands.
    pub standing: Standing,
}

/// An attempt that whoever has its token asks about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It is its build's current one, and runs or is about to.
    Live(Live),
    /// It is over.
    Over,
    /// There was never such an attempt, or its build is deleted.
    Never,
}

/// Where an attempt stands.
pub async fn find(pool: &PgPool, attempt: AttemptId) -> Result<Found, Error> {
    let Ok(number) = i32::try_from(attempt.number) else {
        return Ok(Found::Never);
    };
    let row = sqlx::query!(
        r#"SELECT b.project, b.state, b.attempts = a.number AS "current!", b.log_bytes, a.log_cursor
           FROM builds b JOIN attempts a ON a.build_id = b.id AND a.number = $2
           WHERE b.id = $1"#,
        attempt.build.0,
        number,
    )
    .fetch_optional(pool)
    .await?;
    let Some(row) = row else {
        return Ok(Found::Never);
    };
    let place = Place {
        table: "builds",
        row: &attempt,
    };
    let state: StateName = place.parse("state", &row.state)?;
    let live = matches!(state, StateName::Starting | StateName::Running | StateName::Cancelling);
    if !live || !row.current {
        return Ok(Found::Over);
    }
    Ok(Found::Live(Live {
        project: place.parse("project", &row.project)?,
        cancelling: state == StateName::Cancelling,
        standing: Standing::of_row(row.log_cursor, row.log_bytes, &attempt)?,
    }))
}

/// Bytes of log text that the builds of a project have which were made since a moment, given as the smallest id of
/// that moment.
pub async fn project_bytes(pool: &PgPool, project: &ProjectName, since: BuildId) -> Result<u64, Error> {
    let bytes = sqlx::query_scalar!(
        r#"SELECT coalesce(sum(log_bytes), 0)::bigint AS "bytes!" FROM builds
           WHERE project = $1 AND uuid_send(id) >= uuid_send($2)"#,
        project.as_str(),
        since.0,
    )
    .fetch_one(pool)
    .await?;
    Ok(bytes.unsigned_abs())
}

/// Entries with their sequence numbers, in order.
pub type Page = Vec<(i64, Event)>;

/// Rows read at once. A row holds at most what one group commit gathers for a build.
const PAGE_ROWS: i64 = 16;
/// No further row is read behind so many bytes, so that a page isn't much larger than the largest row.
const PAGE_BYTES: i64 = 64 << 10;

/// The entries after `after`, as many as one page holds; empty when there are none yet.
pub async fn read(pool: &PgPool, build: BuildId, after: i64) -> Result<Page, Error> {
    let rows = sqlx::query!(
        r#"SELECT first_seq AS "first_seq!", last_seq AS "last_seq!", codec AS "codec!", body AS "body!"
           FROM (
               SELECT *, sum(octet_length(body)) OVER (ORDER BY last_seq) - octet_length(body) AS before
               FROM (
                   SELECT first_seq, last_seq, codec, body FROM journal
                   WHERE build_id = $1 AND last_seq > $2 ORDER BY last_seq LIMIT $3
               ) AS page
           ) AS page
           WHERE before < $4 ORDER BY last_seq"#,
        build.0,
        after,
        PAGE_ROWS,
        PAGE_BYTES,
    )
    .fetch_all(pool)
    .await?;
    let mut page = Vec::new();
    for row in rows {
        let events =
            unpack(row.codec, &row.body).map_err(|error| inconsistent(build, row.last_seq, error.to_string()))?;
        let expected = row.last_seq - row.first_seq + 1;
        if i64::try_from(events.len()) != Ok(expected) {
            let problem = format!("{} entries instead of {expected}", events.len());
            return Err(inconsistent(build, row.last_seq, problem));
        }
        page.extend((row.first_seq..).zip(events).filter(|(seq, _)| *seq > after));
    }
    Ok(page)
}

fn inconsistent(build: BuildId, last_seq: i64, problem: String) -> Error {
    Error::Inconsistent {
        table: "journal",
        column: "body",
        row: format!("{build}/{last_seq}"),
        problem,
    }
}

/// Entries as they are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Sequence number of the first entry.
    pub first_seq: i64,
    /// Sequence number of the last entry.
    pub last_seq: i64,
    /// One JSON object a line.
    pub lines: Vec<u8>,
}

/// The rows with entries after `after`, as many as one page holds; empty when there are none.
pub async fn rows(pool: &PgPool, build: BuildId, after: i64) -> Result<Vec<Row>, Error> {
    let rows = sqlx::query!(
        "SELECT first_seq, last_seq, codec, body FROM journal
         WHERE build_id = $1 AND last_seq > $2 ORDER BY last_seq LIMIT $3",
        build.0,
        after,
        PAGE_ROWS,
    )
    .fetch_all(pool)
    .await?;
    rows.into_iter()
        .map(|row| {
            let lines =
                plain(row.codec, &row.body).map_err(|error| inconsistent(build, row.last_seq, error.to_string()))?;
            Ok(Row {
                first_seq: row.first_seq,
                last_seq: row.last_seq,
                lines: lines.into_owned(),
            })
        })
        .collect()
}
