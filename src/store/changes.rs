//! The states that builds have entered, in one order that readers of many builds can follow.
//!
//! Rows are inserted by a trigger in the transaction that changes the state. The order of insertion is not the order
//! of commits, so a reader that went by it could pass over a row that commits late. Instead rows are numbered once
//! they can be seen, by whoever reads next, under a lock: what a later numbering finds gets higher numbers, and it
//! begins only after the earlier one has committed. So whoever reads the numbers in order misses nothing, and nobody
//! who changes a state waits for anybody.

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use uuid::Uuid;

use super::{Error, rows::Place};
use crate::domain::{event::Change, failure::Failure, project::ProjectName, state::StateName};

/// Key of the advisory lock of those who number.
const LOCK: i64 = 0x6b69_6c6e_0001;
/// Rows numbered in one transaction.
const BATCH: i64 = 5000;
/// Rows read at once.
const PAGE: i64 = 500;

/// Numbers what has been committed. When this returns, everything that was committed before the call has its number.
pub async fn number(pool: &PgPool) -> Result<(), Error> {
    loop {
        let waiting =
            sqlx::query_scalar!(r#"SELECT EXISTS (SELECT FROM build_changes WHERE seq IS NULL) AS "waiting!""#)
                .fetch_one(pool)
                .await?;
        if !waiting {
            return Ok(());
        }
        let mut transaction = pool.begin().await?;
        // A statement of its own: the next one is to see what the last holder of the lock has committed.
        sqlx::query!("SELECT pg_advisory_xact_lock($1)", LOCK)
            .fetch_one(&mut *transaction)
            .await?;
        let numbered = sqlx::query!(
            "UPDATE build_changes c SET seq = n.seq
             FROM (
                 SELECT id, nextval('build_changes_seq') AS seq
                 FROM (SELECT id FROM build_changes WHERE seq IS NULL ORDER BY id LIMIT $1) AS waiting
             ) AS n
             WHERE c.id = n.id AND c.seq IS NULL",
            BATCH,
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        if numbered.rows_affected() < BATCH.unsigned_abs() {
            return Ok(());
        }
    }
}

/// The highest number; 0 before the first.
pub async fn head(pool: &PgPool) -> Result<i64, Error> {
    let head = sqlx::query_scalar!(r#"SELECT coalesce(max(seq), 0) AS "head!" FROM build_changes"#)
        .fetch_one(pool)
        .await?;
    Ok(head)
}

struct ChangeRow {
    seq: i64,
    build_id: Uuid,
    project: String,
    state: String,
    attempt: Option<i32>,
    at: DateTime<Utc>,
    failure_code: Option<String>,
    failure_message: Option<String>,
    digest: Option<String>,
}

impl ChangeRow {
    fn into_change(self) -> Result<Change, Error> {
        let place = Place {
            table: "build_changes",
            row: &self.seq,
        };
        let state: StateName = place.parse("state", &self.state)?;
        // A state that is final is the one that the build still has; of others the build's row says nothing.
        let failure = match (self.failure_code, self.failure_message) {
            (Some(code), Some(message)) if state == StateName::Failed => Some(Failure {
                code: place.parse("failure_code", &code)?,
                message,
                evidence: None,
            }),
            _ => None,
        };
        let digest = self.digest.filter(|_| state == StateName::Succeeded);
        Ok(Change {
            seq: self.seq,
            build: self.build_id,
            project: place.parse("project", &self.project)?,
            state,
            at: self.at,
            attempt: self
                .attempt
                .map(|attempt| place.number("attempt", attempt))
                .transpose()?,
            failure,
            digest: digest.map(|digest| place.parse("digest", &digest)).transpose()?,
        })
    }
}

/// The numbered changes after `after`, of one project or of all, as many as one page holds.
pub async fn read(pool: &PgPool, project: Option<&ProjectName>, after: i64) -> Result<Vec<Change>, Error> {
    let rows = match project {
        Some(project) => {
            sqlx::query_as!(
                ChangeRow,
                r#"SELECT c.seq AS "seq!", c.build_id, c.project, c.state, c.attempt, c.at, b.failure_code,
                          b.failure_message, b.digest
                   FROM build_changes c JOIN builds b ON b.id = c.build_id
                   WHERE c.project = $1 AND c.seq > $2 AND c.seq IS NOT NULL ORDER BY c.seq LIMIT $3"#,
                project.as_str(),
                after,
                PAGE,
            )
            .fetch_all(pool)
            .await?
        }
        None => {
            sqlx::query_as!(
                ChangeRow,
                r#"SELECT c.seq AS "seq!", c.build_id, c.project, c.state, c.attempt, c.at, b.failure_code,
                          b.failure_message, b.digest
                   FROM build_changes c JOIN builds b ON b.id = c.build_id
                   WHERE c.seq > $1 ORDER BY c.seq LIMIT $2"#,
                after,
                PAGE,
            )
            .fetch_all(pool)
            .await?
        }
    };
    rows.into_iter().map(ChangeRow::into_change).collect()
}
