//! Builds of one group: a new one takes the place of older ones, in the transaction that stores it.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{Error, entries::pack, rows::Place, transitions::status_entries};
use crate::domain::{
    id::BuildId,
    project::ProjectName,
    spec::{Group, GroupKey, Supersede},
    state::{BuildState, StateName},
};

/// A build that was cancelled, or told to stop, because a newer one of its group takes its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superseded {
    /// The build.
    pub build: BuildId,
    /// What it is now: `cancelled` or `cancelling`.
    pub state: StateName,
    /// Its journal's new head.
    pub head: i64,
}

/// Waits until nobody else stores a build that may supersede others of the group, and keeps others waiting until the
/// transaction's end. Statements that begin afterwards see what those before have stored: of two builds that are
/// accepted at the same time, on whatever replicas, one is the newer.
pub(super) async fn lock(connection: &mut PgConnection, project: &ProjectName, key: &GroupKey) -> Result<(), Error> {
    // A name has no `/`. The seed keeps these locks apart from those of idempotency keys.
    sqlx::query!(
        "SELECT pg_advisory_xact_lock(hashtextextended($1 || '/' || $2, 1))",
        project.as_str(),
        key.as_str(),
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Cancels what is older than `newer` in its group, as far as it asks for that. Needs the group's lock.
pub(super) async fn supersede(
    connection: &mut PgConnection,
    project: &ProjectName,
    group: &Group,
    newer: BuildId,
    now: DateTime<Utc>,
) -> Result<Vec<Superseded>, Error> {
    let states: &[StateName] = match group.supersede {
        Supersede::No => return Ok(Vec::new()),
        Supersede::Queued => &[StateName::Queued],
        Supersede::Running => &[StateName::Queued, StateName::Starting, StateName::Running],
    };
    let states: Vec<_> = states.iter().map(ToString::to_string).collect();
    // In the order in which others lock several builds, so that nobody waits in a circle.
    let older = sqlx::query!(
        "SELECT id, state, attempts, available_at, started_at FROM builds
         WHERE project = $1 AND group_key = $2 AND id <> $3 AND state = ANY($4)
           AND state IN ('queued', 'starting', 'running', 'cancelling')
         ORDER BY id
         FOR NO KEY UPDATE",
        project.as_str(),
        group.key.as_str(),
        newer.0,
        &states,
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut changes = Changes::default();
    for row in older {
        let place = Place {
            table: "builds",
            row: &row.id,
        };
        let attempts = place.number("attempts", row.attempts)?;
        let from = place.parse("state", &row.state)?;
        let state = match from {
            StateName::Queued => BuildState::Queued {
                attempts,
                available_at: place.present("available_at", row.available_at)?,
            },
            StateName::Starting => BuildState::Starting { attempt: attempts },
            StateName::Running => BuildState::Running {
                attempt: attempts,
                started_at: place.present("started_at", row.started_at)?,
            },
            other => return Err(place.inconsistent("state", format!("{other} can't be superseded"))),
        };
        let to = state.cancel(now).map_err(|error| place.inconsistent("state", error))?;
        changes.add(row.id, from, &to, attempts, newer, now);
    }
    changes.store(connection, newer, now).await
}

/// Changes of several builds, a column each, as one statement takes them.
#[derive(Default)]
struct Changes {
    ids: Vec<Uuid>,
    from: Vec<String>,
    to: Vec<String>,
    counts: Vec<i64>,
    codecs: Vec<i16>,
    bodies: Vec<Vec<u8>>,
}

impl Changes {
    fn add(&mut self, id: Uuid, from: StateName, to: &BuildState, attempts: u32, newer: BuildId, now: DateTime<Utc>) {
        let entries = pack(&status_entries(
            to,
            (attempts > 0).then_some(attempts),
            None,
            Some(newer),
            now,
        ));
        self.ids.push(id);
        self.from.push(from.to_string());
        self.to.push(to.name().to_string());
        self.counts.push(entries.count);
        self.codecs.push(entries.codec);
        self.bodies.push(entries.body);
    }

    async fn store(
        self,
        connection: &mut PgConnection,
        newer: BuildId,
        now: DateTime<Utc>,
    ) -> Result<Vec<Superseded>, Error> {
        if self.ids.is_empty() {
            return Ok(Vec::new());
        }
        let rows = sqlx::query!(
            r#"
            WITH input AS (
                SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::bigint[], $5::smallint[], $6::bytea[])
                    AS input (id, was, becomes, n, codec, body)
            ), build AS (
                UPDATE builds b
                SET state = input.becomes, available_at = NULL, superseded_by = $7,
                    finished_at = CASE WHEN input.becomes = 'cancelled' THEN $8::timestamptz END,
                    journal_head = b.journal_head + input.n
                FROM input
                WHERE b.id = input.id AND b.state = input.was
                RETURNING b.id, b.state, b.attempts, b.journal_head
            ), attempt AS (
                UPDATE attempts a SET state = 'cancelling' FROM build
                WHERE a.build_id = build.id AND a.number = build.attempts AND build.state = 'cancelling'
            ), entry AS (
                INSERT INTO journal (build_id, first_seq, last_seq, codec, body)
                SELECT id, journal_head - n + 1, journal_head, codec, body FROM build JOIN input USING (id)
            )
            SELECT id, state, journal_head FROM build
            "#,
            &self.ids,
            &self.from,
            &self.to,
            &self.counts,
            &self.codecs,
            &self.bodies,
            newer.0,
            now,
        )
        .fetch_all(connection)
        .await?;
        rows.into_iter()
            .map(|row| {
                let place = Place {
                    table: "builds",
                    row: &row.id,
                };
                Ok(Superseded {
                    build: BuildId(row.id),
                    state: place.parse("state", &row.state)?,
                    head: row.journal_head,
                })
            })
            .collect()
    }
}
