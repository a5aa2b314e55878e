//! Bearer tokens. Only their hashes are known here.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::{Error, gather::Statement, rows::Place};
use crate::domain::project::{ProjectName, Scope};

/// A token, without the token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its id.
    pub id: Uuid,
    /// The project it belongs to.
    pub project: ProjectName,
    /// What its maker called it.
    pub name: String,
    /// What it allows.
    pub scopes: Vec<Scope>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it stops working.
    pub expires_at: Option<DateTime<Utc>>,
}

/// A token about to be stored.
#[derive(Clone, Debug)]
pub struct NewToken {
    /// Its id, made by the caller.
    pub id: Uuid,
    /// The project it belongs to.
    pub project: ProjectName,
    /// What its maker calls it.
    pub name: String,
    /// SHA-256 of the token.
    pub hash: [u8; 32],
    /// What it allows; at least one scope.
    pub scopes: Vec<Scope>,
    /// When it stops working.
    pub expires_at: Option<DateTime<Utc>>,
}

struct TokenRow {
    id: Uuid,
    project: String,
    name: String,
    scopes: Vec<String>,
    created_at: DateTime<Utc>,
    expires_at: Option<DateTime<Utc>>,
}

impl TryFrom<TokenRow> for Token {
    type Error = Error;

    fn try_from(row: TokenRow) -> Result<Self, Error> {
        let place = Place {
            table: "tokens",
            row: &row.id,
        };
        Ok(Self {
            id: row.id,
            project: place.parse("project", &row.project)?,
            name: row.name,
            scopes: row
                .scopes
                .iter()
                .map(|scope| place.parse("scopes", scope))
                .collect::<Result<_, _>>()?,
            created_at: row.created_at,
            expires_at: row.expires_at,
        })
    }
}

/// Stores a token; `None` when there is no such project.
pub async fn create(pool: &PgPool, new: NewToken) -> Result<Option<Token>, Error> {
    let scopes: Vec<String> = new.scopes.iter().map(ToString::to_string).collect();
    let row = sqlx::query_as!(
        TokenRow,
        "INSERT INTO tokens (id, project, name, hash, scopes, expires_at)
         SELECT $1, projects.name, $3, $4, $5, $6 FROM projects WHERE projects.name = $2
         RETURNING id, project, name, scopes, created_at, expires_at",
        new.id,
        new.project.as_str(),
        new.name,
        new.hash.as_slice(),
        &scopes,
        new.expires_at,
    )
    .fetch_optional(pool)
    .await?;
    row.map(Token::try_from).transpose()
}

/// The token with this hash, expired or not.
pub async fn by_hash(pool: &PgPool, hash: &[u8; 32]) -> Result<Option<Token>, Error> {
    let mut connection = pool.acquire().await?;
    let mut found = ByHash::ask(&mut connection, &[*hash]).await?;
    Ok(found.pop().flatten())
}

/// Tokens by their hashes, expired or not.
pub(super) struct ByHash;

impl Statement for ByHash {
    type Question = [u8; 32];
    type Answer = Option<Token>;

    async fn ask(connection: &mut PgConnection, hashes: &[[u8; 32]]) -> Result<Vec<Option<Token>>, Error> {
        // A caller with many requests asks for the same token many times.
        let mut different: Vec<&[u8]> = hashes.iter().map(<[u8; 32]>::as_slice).collect();
        different.sort_unstable();
        different.dedup();
        let rows = sqlx::query!(
            "SELECT id, project, name, scopes, created_at, expires_at, hash FROM tokens WHERE hash = ANY($1)",
            &different as &[&[u8]],
        )
        .fetch_all(connection)
        .await?;
        let mut tokens = HashMap::new();
        for row in rows {
            let token = TokenRow {
                id: row.id,
                project: row.project,
                name: row.name,
                scopes: row.scopes,
                created_at: row.created_at,
                expires_at: row.expires_at,
            };
            tokens.insert(row.hash, Token::try_from(token)?);
        }
        Ok(hashes.iter().map(|hash| tokens.get(hash.as_slice()).cloned()).collect())
    }
}

/// A project's tokens, oldest first.
pub async fn list(pool: &PgPool, project: &ProjectName) -> Result<Vec<Token>, Error> {
    let rows = sqlx::query_as!(
        TokenRow,
        "SELECT id, project, name, scopes, created_at, expires_at FROM tokens WHERE project = $1
         ORDER BY created_at, id",
        project.as_str(),
    )
    .fetch_all(pool)
    .await?;
    rows.into_iter().map(Token::try_from).collect()
}

/// Deletes a token of a project; false when there is none.
pub async fn delete(pool: &PgPool, project: &ProjectName, id: Uuid) -> Result<bool, Error> {
    let deleted = sqlx::query!(
        "DELETE FROM tokens WHERE project = $1 AND id = $2",
        project.as_str(),
        id
    )
    .execute(pool)
    .await?;
    Ok(deleted.rows_affected() == 1)
}
