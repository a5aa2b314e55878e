//! What hooks share with their senders. Two are good while the sender changes from one to the other.

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::{
    domain::hook::HookId,
    store::{
        Error,
        rows::Place,
        secrets::seal::{HookPlace, NONCE_BYTES, Sealed},
    },
};

/// The number of a hook's first secret.
pub const FIRST: i32 = 1;

/// A secret of a hook, encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shared {
    /// Whose it is.
    pub place: HookPlace,
    /// What it is, encrypted.
    pub sealed: Sealed,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it stops being good; null for the newest.
    pub expires_at: Option<DateTime<Utc>>,
}

pub(super) struct SecretRow {
    pub(super) hook_id: Uuid,
    number: i32,
    key_id: String,
    nonce: Vec<u8>,
    sealed: Vec<u8>,
    created_at: DateTime<Utc>,
    expires_at: Option<DateTime<Utc>>,
}

impl TryFrom<SecretRow> for Shared {
    type Error = Error;

    fn try_from(row: SecretRow) -> Result<Self, Error> {
        let nonce: [u8; NONCE_BYTES] = row.nonce.try_into().map_err(|_| {
            Place {
                table: "hook_secrets",
                row: &row.hook_id,
            }
            .inconsistent("nonce", "not 12 bytes")
        })?;
        Ok(Self {
            place: HookPlace {
                hook: HookId(row.hook_id),
                number: row.number,
            },
            sealed: Sealed {
                key_id: row.key_id,
                nonce,
                bytes: row.sealed,
            },
            created_at: row.created_at,
            expires_at: row.expires_at,
        })
    }
}

/// The secrets of these hooks, newest first.
pub(super) async fn of(connection: &mut PgConnection, hooks: &[Uuid]) -> Result<Vec<SecretRow>, Error> {
    let rows = sqlx::query_as!(
        SecretRow,
        "SELECT hook_id, number, key_id, nonce, sealed, created_at, expires_at FROM hook_secrets
         WHERE hook_id = ANY ($1) AND (expires_at IS NULL OR expires_at > now()) ORDER BY hook_id, number DESC",
        hooks,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// The secrets of one hook, which has at least one.
pub(super) fn take(rows: Vec<SecretRow>, hook: HookId) -> Result<Vec<Shared>, Error> {
    if rows.is_empty() {
        let place = Place {
            table: "hook_secrets",
            row: &hook,
        };
        return Err(place.inconsistent("number", "the hook has no secret"));
    }
    rows.into_iter().map(Shared::try_from).collect()
}

pub(super) async fn insert(
    connection: &mut PgConnection,
    hook: HookId,
    number: i32,
    sealed: &Sealed,
) -> Result<(), Error> {
    sqlx::query!(
        "INSERT INTO hook_secrets (hook_id, number, key_id, nonce, sealed) VALUES ($1, $2, $3, $4, $5)",
        hook.0,
        number,
        sealed.key_id,
        sealed.nonce.as_slice(),
        sealed.bytes,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Adds a secret after the one of this number, which stays good for a while; older ones end. False when there is a newer
/// one already.
pub async fn rotate(
    pool: &PgPool,
    hook: HookId,
    after: i32,
    sealed: &Sealed,
    keep_seconds: u32,
) -> Result<bool, Error> {
    let mut transaction = pool.begin().await?;
    // Who comes second finds none that doesn't expire.
    let replaced = sqlx::query!(
        "UPDATE hook_secrets SET expires_at = now() + make_interval(secs => $3)
         WHERE hook_id = $1 AND number = $2 AND expires_at IS NULL",
        hook.0,
        after,
        f64::from(keep_seconds),
    )
    .execute(&mut *transaction)
    .await?;
    if replaced.rows_affected() != 1 {
        return Ok(false);
    }
    sqlx::query!(
        "DELETE FROM hook_secrets WHERE hook_id = $1 AND number < $2",
        hook.0,
        after
    )
    .execute(&mut *transaction)
    .await?;
    insert(&mut transaction, hook, after + 1, sealed).await?;
    transaction.commit().await?;
    Ok(true)
}

/// Secrets that another key than this one has encrypted, by hook and number, after the given one.
pub async fn sealed_otherwise(
    pool: &PgPool,
    key_id: &str,
    after: Option<HookPlace>,
    limit: u32,
) -> Result<Vec<Shared>, Error> {
    let (hook, number) = after.map_or((Uuid::nil(), 0), |place| (place.hook.0, place.number));
    let rows = sqlx::query_as!(
        SecretRow,
        "SELECT hook_id, number, key_id, nonce, sealed, created_at, expires_at FROM hook_secrets
         WHERE key_id <> $1 AND (hook_id, number) > ($2, $3) ORDER BY hook_id, number LIMIT $4",
        key_id,
        hook,
        number,
        i64::from(limit),
    )
    .fetch_all(pool)
    .await?;
    rows.into_iter().map(Shared::try_from).collect()
}

/// Puts the same secret, encrypted anew, in place of what was read; false when it is gone.
pub async fn reseal(pool: &PgPool, old: &Shared, new: &Sealed) -> Result<bool, Error> {
    let updated = sqlx::query!(
        "UPDATE hook_secrets SET key_id = $4, nonce = $5, sealed = $6 WHERE hook_id = $1 AND number = $2 AND nonce = $3",
        old.place.hook.0,
        old.place.number,
        old.sealed.nonce.as_slice(),
        new.key_id,
        new.nonce.as_slice(),
        new.bytes,
    )
    .execute(pool)
    .await?;
    Ok(updated.rows_affected() == 1)
}
