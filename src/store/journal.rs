//! The journal: appending log entries for many builds in one statement, and reading pages.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sqlx::PgPool;

use super::{
    Error, Lease,
    entries::{Packed, unpack},
};
use crate::domain::{
    event::{Event, StepName},
    id::BuildId,
};

/// How far an attempt's steps are in the journal. Stored with every append: an append whose cursor has moved on was
/// done before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LogCursor(pub BTreeMap<StepName, StepCursor>);

/// How far one step is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepCursor {
    /// Number of the last line in the journal, or known to be missing.
    pub line: u64,
    /// When that line was printed, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Whether the step's end is in the journal; nothing of it follows.
    pub ended: bool,
}

/// Entries for one build.
#[derive(Clone, Debug)]
pub struct Append {
    /// Who writes.
    pub lease: Lease,
    /// The cursor as it is.
    pub from: LogCursor,
    /// The cursor as it will be.
    pub to: LogCursor,
    /// The entries.
    pub packed: Packed,
}

/// What became of an [`Append`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// It is in the journal, now or since an earlier call; this is a head that includes it.
    Durable(i64),
    /// The lease is lost.
    LeaseLost,
}

/// Appends for many builds at once. The answers are in the order of the input, which holds at most one element a
/// build. After an error that leaves open whether it took effect, the same call can be made again.
pub async fn append(pool: &PgPool, appends: &[Append]) -> Result<Vec<Appended>, Error> {
    let mut transaction = pool.begin().await?;
    let json = |cursor: &LogCursor| serde_json::to_value(cursor).unwrap_or_default();
    let builds: Vec<_> = appends.iter().map(|append| append.lease.attempt.build.0).collect();
    let numbers: Vec<_> = appends
        .iter()
        .map(|append| i32::try_from(append.lease.attempt.number).unwrap_or(i32::MAX))
        .collect();
    let owners: Vec<_> = appends.iter().map(|append| append.lease.owner.0).collect();
    let epochs: Vec<_> = appends.iter().map(|append| append.lease.epoch).collect();
    let from: Vec<_> = appends.iter().map(|append| json(&append.from)).collect();
    let to: Vec<_> = appends.iter().map(|append| json(&append.to)).collect();
    let counts: Vec<_> = appends.iter().map(|append| append.packed.count).collect();
    let codecs: Vec<_> = appends.iter().map(|append| append.packed.codec).collect();
    let bodies: Vec<_> = appends.iter().map(|append| append.packed.body.as_slice()).collect();

    // The rows are locked in the order of their ids, so that two workers can't wait for each other.
    let leased = sqlx::query!(
        "SELECT b.id, b.journal_head, a.log_cursor
         FROM builds b
         JOIN unnest($1::uuid[], $2::integer[], $3::uuid[], $4::bigint[]) AS i (id, number, owner, epoch)
           ON b.id = i.id AND b.owner = i.owner AND b.epoch = i.epoch AND b.attempts = i.number
         JOIN attempts a ON a.build_id = b.id AND a.number = i.number
         WHERE b.state IN ('starting', 'running', 'cancelling')
         ORDER BY b.id
         FOR NO KEY UPDATE OF b",
        &builds,
        &numbers,
        &owners,
        &epochs,
    )
    .fetch_all(&mut *transaction)
    .await?;
    let written = sqlx::query!(
        "WITH input AS (
             SELECT * FROM unnest(
                 $1::uuid[], $2::integer[], $3::jsonb[], $4::jsonb[], $5::bigint[], $6::smallint[], $7::bytea[]
             ) AS i (id, number, cursor_from, cursor_to, n, codec, body)
             WHERE id = ANY($8)
         ), attempt AS (
             UPDATE attempts a SET log_cursor = i.cursor_to FROM input i
             WHERE a.build_id = i.id AND a.number = i.number AND a.log_cursor = i.cursor_from
             RETURNING a.build_id
         ), build AS (
             UPDATE builds b SET journal_head = b.journal_head + i.n
             FROM input i JOIN attempt a ON a.build_id = i.id
             WHERE b.id = i.id
             RETURNING b.id, b.journal_head, i.n, i.codec, i.body
         )
         INSERT INTO journal (build_id, first_seq, last_seq, codec, body)
         SELECT id, journal_head - n + 1, journal_head, codec, body FROM build
         RETURNING build_id, last_seq",
        &builds,
        &numbers,
        &from,
        &to,
        &counts,
        &codecs,
        &bodies as &[&[u8]],
        &leased.iter().map(|row| row.id).collect::<Vec<_>>(),
    )
    .fetch_all(&mut *transaction)
    .await?;
    transaction.commit().await?;

    let written: BTreeMap<_, _> = written.into_iter().map(|row| (row.build_id, row.last_seq)).collect();
    let leased: BTreeMap<_, _> = leased
        .into_iter()
        .map(|row| (row.id, (row.journal_head, row.log_cursor)))
        .collect();
    Ok(appends
        .iter()
        .zip(to)
        .map(|(append, to)| {
            let id = append.lease.attempt.build.0;
            match (written.get(&id), leased.get(&id)) {
                (Some(&last_seq), _) => Appended::Durable(last_seq),
                (None, Some((last_seq, cursor))) if *cursor == to => Appended::Durable(*last_seq),
                _ => Appended::LeaseLost,
            }
        })
        .collect())
}

/// Entries with their sequence numbers, in order.
pub type Page = Vec<(i64, Event)>;

/// Rows read at once. A row holds at most what one group commit gathers for a build.
const PAGE_ROWS: i64 = 16;

/// The entries after `after`, as many as one page holds; empty when there are none yet.
pub async fn read(pool: &PgPool, build: BuildId, after: i64) -> Result<Page, Error> {
    let rows = sqlx::query!(
        "SELECT first_seq, last_seq, codec, body FROM journal
         WHERE build_id = $1 AND last_seq > $2 ORDER BY last_seq LIMIT $3",
        build.0,
        after,
        PAGE_ROWS,
    )
    .fetch_all(pool)
    .await?;
    let mut page = Vec::new();
    for row in rows {
        let inconsistent = |problem: String| Error::Inconsistent {
            table: "journal",
            column: "body",
            row: format!("{build}/{}", row.last_seq),
            problem,
        };
        let events = unpack(row.codec, &row.body).map_err(|error| inconsistent(error.to_string()))?;
        let expected = row.last_seq - row.first_seq + 1;
        if i64::try_from(events.len()) != Ok(expected) {
            return Err(inconsistent(format!("{} entries instead of {expected}", events.len())));
        }
        page.extend((row.first_seq..).zip(events).filter(|(seq, _)| *seq > after));
    }
    Ok(page)
}
