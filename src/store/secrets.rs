//! Secrets of projects. What they hold is encrypted before it comes here; see [`seal`].

pub mod seal;

use chrono::{DateTime, Utc};
use sqlx::PgPool;

use self::seal::{NONCE_BYTES, Sealed};
use super::{Error, rows::Place};
use crate::domain::{
    project::ProjectName,
    secret::{RegistryHost, SecretData, SecretForm, SecretKind, SecretName},
};

/// A secret, without what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secret {
    /// The project it belongs to.
    pub project: ProjectName,
    /// Its name.
    pub name: SecretName,
    /// What it is for.
    pub kind: SecretKind,
    /// What its data consist of.
    pub form: SecretForm,
    /// The registry that it is for.
    pub registry: Option<RegistryHost>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When its data were last given.
    pub updated_at: DateTime<Utc>,
}

/// A secret's row.
#[derive(Clone, Debug)]
pub struct Stored {
    /// What is known of it.
    pub secret: Secret,
    /// What it holds, encrypted.
    pub sealed: Sealed,
}

struct SecretRow {
    project: String,
    name: String,
    kind: String,
    form: String,
    registry: Option<String>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

impl TryFrom<SecretRow> for Secret {
    type Error = Error;

    fn try_from(row: SecretRow) -> Result<Self, Error> {
        let id = format!("{}/{}", row.project, row.name);
        let place = Place {
            table: "secrets",
            row: &id,
        };
        Ok(Self {
            project: place.parse("project", &row.project)?,
            name: place.parse("name", &row.name)?,
            kind: place.parse("kind", &row.kind)?,
            form: place.parse("form", &row.form)?,
            registry: row
                .registry
                .map(|registry| place.parse("registry", &registry))
                .transpose()?,
            created_at: row.created_at,
            updated_at: row.updated_at,
        })
    }
}

struct StoredRow {
    project: String,
    name: String,
    kind: String,
    form: String,
    registry: Option<String>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    key_id: String,
    nonce: Vec<u8>,
    sealed: Vec<u8>,
}

impl TryFrom<StoredRow> for Stored {
    type Error = Error;

    fn try_from(row: StoredRow) -> Result<Self, Error> {
        let id = format!("{}/{}", row.project, row.name);
        let nonce: [u8; NONCE_BYTES] = row.nonce.try_into().map_err(|_| {
            Place {
                table: "secrets",
                row: &id,
            }
            .inconsistent("nonce", "not 12 bytes")
        })?;
        Ok(Self {
            secret: SecretRow {
                project: row.project,
                name: row.name,
                kind: row.kind,
                form: row.form,
                registry: row.registry,
                created_at: row.created_at,
                updated_at: row.updated_at,
            }
            .try_into()?,
            sealed: Sealed {
                key_id: row.key_id,
                nonce,
                bytes: row.sealed,
            },
        })
    }
}

/// Stores a secret in place of the one of that name, if any; says whether there was none. `None` when there is no such
/// project.
pub async fn put(
    pool: &PgPool,
    project: &ProjectName,
    name: &SecretName,
    data: &SecretData,
    sealed: &Sealed,
) -> Result<Option<(Secret, bool)>, Error> {
    let row = sqlx::query!(
        r#"INSERT INTO secrets (project, name, kind, form, registry, key_id, nonce, sealed)
           SELECT projects.name, $2, $3, $4, $5, $6, $7, $8 FROM projects WHERE projects.name = $1
           ON CONFLICT (project, name) DO UPDATE SET
               kind = excluded.kind, form = excluded.form, registry = excluded.registry, key_id = excluded.key_id,
               nonce = excluded.nonce, sealed = excluded.sealed, updated_at = now()
           RETURNING project, name, kind, form, registry, created_at, updated_at, xmax = 0 AS "created!""#,
        project.as_str(),
        name.as_str(),
        data.kind().as_str(),
        data.form().as_str(),
        data.registry().map(RegistryHost::as_str),
        sealed.key_id,
        sealed.nonce.as_slice(),
        sealed.bytes,
    )
    .fetch_optional(pool)
    .await?;
    row.map(|row| {
        let secret = SecretRow {
            project: row.project,
            name: row.name,
            kind: row.kind,
            form: row.form,
            registry: row.registry,
            created_at: row.created_at,
            updated_at: row.updated_at,
        };
        Ok((secret.try_into()?, row.created))
    })
    .transpose()
}

/// One secret.
pub async fn get(pool: &PgPool, project: &ProjectName, name: &SecretName) -> Result<Option<Secret>, Error> {
    let row = sqlx::query_as!(
        SecretRow,
        "SELECT project, name, kind, form, registry, created_at, updated_at FROM secrets
         WHERE project = $1 AND name = $2",
        project.as_str(),
        name.as_str(),
    )
    .fetch_optional(pool)
    .await?;
    row.map(Secret::try_from).transpose()
}

/// A project's secrets by name.
pub async fn list(pool: &PgPool, project: &ProjectName) -> Result<Vec<Secret>, Error> {
    let rows = sqlx::query_as!(
        SecretRow,
        "SELECT project, name, kind, form, registry, created_at, updated_at FROM secrets
         WHERE project = $1 ORDER BY name",
        project.as_str(),
    )
    .fetch_all(pool)
    .await?;
    rows.into_iter().map(Secret::try_from).collect()
}

/// Deletes a secret; false when there is none.
pub async fn delete(pool: &PgPool, project: &ProjectName, name: &SecretName) -> Result<bool, Error> {
    let deleted = sqlx::query!(
        "DELETE FROM secrets WHERE project = $1 AND name = $2",
        project.as_str(),
        name.as_str(),
    )
    .execute(pool)
    .await?;
    Ok(deleted.rows_affected() == 1)
}

/// Those of the named secrets that there are, with what they hold.
pub async fn named(pool: &PgPool, project: &ProjectName, names: &[&SecretName]) -> Result<Vec<Stored>, Error> {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let rows = sqlx::query_as!(
        StoredRow,
        "SELECT project, name, kind, form, registry, created_at, updated_at, key_id, nonce, sealed FROM secrets
         WHERE project = $1 AND name = ANY ($2)",
        project.as_str(),
        &names,
    )
    .fetch_all(pool)
    .await?;
    rows.into_iter().map(Stored::try_from).collect()
}

/// Secrets that another key than this one has encrypted, by project and name, after the given one.
pub async fn sealed_otherwise(
    pool: &PgPool,
    key_id: &str,
    after: Option<(&ProjectName, &SecretName)>,
    limit: u32,
) -> Result<Vec<Stored>, Error> {
    let (project, name) = after.map_or(("", ""), |(project, name)| (project.as_str(), name.as_str()));
    let rows = sqlx::query_as!(
        StoredRow,
        "SELECT project, name, kind, form, registry, created_at, updated_at, key_id, nonce, sealed FROM secrets
         WHERE key_id <> $1 AND (project, name) > ($2, $3) ORDER BY project, name LIMIT $4",
        key_id,
        project,
        name,
        i64::from(limit),
    )
    .fetch_all(pool)
    .await?;
    rows.into_iter().map(Stored::try_from).collect()
}

/// Puts the same data, encrypted anew, in place of what was read; false when somebody else changed the secret since.
pub async fn reseal(pool: &PgPool, old: &Stored, new: &Sealed) -> Result<bool, Error> {
    let updated = sqlx::query!(
        "UPDATE secrets SET key_id = $5, nonce = $6, sealed = $7
         WHERE project = $1 AND name = $2 AND key_id = $3 AND nonce = $4",
        old.secret.project.as_str(),
        old.secret.name.as_str(),
        old.sealed.key_id,
        old.sealed.nonce.as_slice(),
        new.key_id,
        new.nonce.as_slice(),
        new.bytes,
    )
    .execute(pool)
    .await?;
    Ok(updated.rows_affected() == 1)
}
