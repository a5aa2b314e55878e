//! Tickets for streams. Only their hashes are known here.

use chrono::{DateTime, Utc};
use sqlx::PgPool;
use uuid::Uuid;

use super::{Error, rows::Place};
use crate::domain::{
    id::BuildId,
    project::{ProjectName, Scope},
};

/// Expired tickets removed with every one that is made; more than one, so that none pile up.
const REMOVED_AT_ONCE: i64 = 20;

/// Which streams a ticket opens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Streams {
    /// Events and output of one build.
    Build(BuildId),
    /// Changes of all builds of a project.
    Project(ProjectName),
    /// Changes of all builds of all projects.
    Everything,
}

/// A ticket that is good now, with what its maker's token allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// What it opens.
    pub streams: Streams,
    /// The project of the token.
    pub project: ProjectName,
    /// The scopes of the token.
    pub scopes: Vec<Scope>,
    /// The token.
    pub token: Uuid,
}

/// Stores a ticket, and removes some of those that have expired. False when token, build or project are gone.
pub async fn create(
    pool: &PgPool,
    hash: &[u8; 32],
    token: Uuid,
    streams: &Streams,
    now: DateTime<Utc>,
    expires_at: DateTime<Utc>,
) -> Result<bool, Error> {
    let (build, project) = match streams {
        Streams::Build(build) => (Some(build.0), None),
        Streams::Project(project) => (None, Some(project.as_str())),
        Streams::Everything => (None, None),
    };
    let inserted = sqlx::query!(
        "WITH expired AS (
             DELETE FROM stream_tickets WHERE hash IN (
                 SELECT hash FROM stream_tickets WHERE expires_at <= $5 LIMIT $7 FOR UPDATE SKIP LOCKED
             )
         )
         INSERT INTO stream_tickets (hash, token_id, build_id, project, expires_at) VALUES ($1, $2, $3, $4, $6)",
        hash.as_slice(),
        token,
        build,
        project,
        now,
        expires_at,
        REMOVED_AT_ONCE,
    )
    .execute(pool)
    .await
    .map_err(Error::from);
    match inserted {
        Ok(_) => Ok(true),
        Err(Error::Database(sqlx::Error::Database(error))) if error.is_foreign_key_violation() => Ok(false),
        Err(error) => Err(error),
    }
}

/// The ticket with this hash, if it and its token are good now.
pub async fn by_hash(pool: &PgPool, hash: &[u8; 32], now: DateTime<Utc>) -> Result<Option<Ticket>, Error> {
    let row = sqlx::query!(
        "SELECT ticket.build_id, ticket.project AS ticket_project, token.id, token.project, token.scopes
         FROM stream_tickets ticket JOIN tokens token ON token.id = ticket.token_id
         WHERE ticket.hash = $1 AND ticket.expires_at > $2 AND (token.expires_at IS NULL OR token.expires_at > $2)",
        hash.as_slice(),
        now,
    )
    .fetch_optional(pool)
    .await?;
    row.map(|row| {
        let place = Place {
            table: "stream_tickets",
            row: &row.id,
        };
        let streams = match (row.build_id, row.ticket_project.as_deref()) {
            (Some(build), _) => Streams::Build(BuildId(build)),
            (None, Some(project)) => Streams::Project(place.parse("project", project)?),
            (None, None) => Streams::Everything,
        };
        Ok(Ticket {
            streams,
            project: place.parse("project", &row.project)?,
            scopes: row
                .scopes
                .iter()
                .map(|scope| place.parse("scopes", scope))
                .collect::<Result<_, _>>()?,
            token: row.id,
        })
    })
    .transpose()
}
