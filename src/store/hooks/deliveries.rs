//! What came to hooks, and what was made of it. One primary key decides between deliveries of the same.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    str::FromStr,
};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use sqlx::{PgConnection, PgPool, types::Json};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    domain::{
        build::Build,
        hook::{Event, HookId},
        id::BuildId,
    },
    store::{
        Error,
        builds::{self, CreateOutcome, NewBuild},
        groups::Superseded,
        rows::Place,
    },
};

/// Most refused deliveries of a hook that are kept of an hour: anybody can send what is refused.
const REFUSED_PER_HOUR: i64 = 60;
/// Deliveries deleted by one statement.
const ROWS: i64 = 5000;

/// What became of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryOutcome {
    /// Its signature or token wasn't the hook's.
    Refused,
    /// It wasn't what its sender sends.
    Malformed,
    /// No rule wanted it.
    Ignored,
    /// What was wanted can't be built.
    Invalid,
    /// Builds were made.
    Built,
    /// Builds had been made of the same before.
    Repeated,
    /// Only tried: nothing was to be built.
    Tried,
}

impl DeliveryOutcome {
    /// Every outcome.
    pub const ALL: [Self; 7] = [
        Self::Refused,
        Self::Malformed,
        Self::Ignored,
        Self::Invalid,
        Self::Built,
        Self::Repeated,
        Self::Tried,
    ];

    /// The name as in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Malformed => "malformed",
            Self::Ignored => "ignored",
            Self::Invalid => "invalid",
            Self::Built => "built",
            Self::Repeated => "repeated",
            Self::Tried => "tried",
        }
    }
}

impl fmt::Display for DeliveryOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for DeliveryOutcome {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut all = Self::ALL.into_iter();
        all.find(|outcome| outcome.as_str() == text).ok_or("no outcome")
    }
}

/// A delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// Its id.
    pub id: Uuid,
    /// The hook.
    pub hook: HookId,
    /// What the sender calls it.
    pub sent_id: Option<String>,
    /// What became of it.
    pub outcome: DeliveryOutcome,
    /// Why.
    pub reason: Option<String>,
    /// What it said.
    pub events: Vec<Event>,
    /// The builds that it was answered with.
    pub builds: Vec<BuildId>,
    /// The delivery that was wanted again by this one.
    pub redelivery_of: Option<Uuid>,
    /// When it came.
    pub received_at: DateTime<Utc>,
}

struct DeliveryRow {
    id: Uuid,
    hook_id: Uuid,
    sent_id: Option<String>,
    outcome: String,
    reason: Option<String>,
    events: Value,
    builds: Vec<Uuid>,
    redelivery_of: Option<Uuid>,
    received_at: DateTime<Utc>,
}

impl TryFrom<DeliveryRow> for Delivery {
    type Error = Error;

    fn try_from(row: DeliveryRow) -> Result<Self, Error> {
        let place = Place {
            table: "hook_deliveries",
            row: &row.id,
        };
        Ok(Self {
            id: row.id,
            hook: HookId(row.hook_id),
            sent_id: row.sent_id,
            outcome: place.parse("outcome", &row.outcome)?,
            reason: row.reason,
            events: place.json("events", row.events)?,
            builds: row.builds.into_iter().map(BuildId).collect(),
            redelivery_of: row.redelivery_of,
            received_at: row.received_at,
        })
    }
}

/// A delivery about to be stored.
#[derive(Clone, Debug)]
pub struct NewDelivery {
    /// Its id, made by the caller.
    pub id: Uuid,
    /// The hook.
    pub hook: HookId,
    /// What the sender calls it.
    pub sent_id: Option<String>,
    /// What it said.
    pub events: Vec<Event>,
    /// The delivery that is wanted again by this one.
    pub redelivery_of: Option<Uuid>,
    /// When it came.
    pub received_at: DateTime<Utc>,
}

impl NewDelivery {
    fn with(self, outcome: DeliveryOutcome, reason: Option<String>, builds: Vec<BuildId>) -> Delivery {
        Delivery {
            id: self.id,
            hook: self.hook,
            sent_id: self.sent_id,
            outcome,
            reason,
            events: self.events,
            builds,
            redelivery_of: self.redelivery_of,
            received_at: self.received_at,
        }
    }
}

async fn insert(connection: &mut PgConnection, delivery: &Delivery) -> Result<(), Error> {
    let builds: Vec<Uuid> = delivery.builds.iter().map(|build| build.0).collect();
    sqlx::query!(
        "INSERT INTO hook_deliveries (id, hook_id, sent_id, outcome, reason, events, builds, redelivery_of, received_at)
         SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9
         WHERE $4 <> 'refused' OR (
             SELECT count(*) FROM (
                 SELECT FROM hook_deliveries
                 WHERE hook_id = $2 AND outcome = 'refused' AND received_at > now() - interval '1 hour' LIMIT $10
             ) AS recent
         ) < $10",
        delivery.id,
        delivery.hook.0,
        delivery.sent_id,
        delivery.outcome.as_str(),
        delivery.reason,
        Json(&delivery.events) as _,
        &builds,
        delivery.redelivery_of,
        delivery.received_at,
        REFUSED_PER_HOUR,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Stores a delivery of which nothing was built. Of those that were refused, the first of each hour.
pub async fn record(
    pool: &PgPool,
    new: NewDelivery,
    outcome: DeliveryOutcome,
    reason: Option<String>,
) -> Result<Delivery, Error> {
    let delivery = new.with(outcome, reason, Vec::new());
    let mut connection = pool.acquire().await?;
    insert(&mut connection, &delivery).await?;
    Ok(delivery)
}

/// An event that is wanted, and the builds to be made of it.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The same for every delivery of the same event, where the event says enough.
    pub key: Option<[u8; 32]>,
    /// At least one.
    pub builds: Vec<NewBuild>,
}

/// What became of a delivery with wanted events.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one per request, and matched at once")]
pub enum AcceptOutcome {
    /// It is stored, with its builds: new ones, or those that had been made of the same before.
    Accepted {
        /// The delivery.
        delivery: Delivery,
        /// The new builds, each with those whose place it takes.
        made: Vec<(Build, Vec<Superseded>)>,
    },
    /// Nothing is stored, because this became of one of the builds.
    NotCreated(CreateOutcome),
}

/// What a delivery is known by.
fn delivery_key(sent_id: &str) -> [u8; 32] {
    let mut hash = Sha256::new_with_prefix(b"delivery\0");
    hash.update(sent_id);
    hash.finalize().into()
}

/// Stores a delivery and makes its builds, unless that was done before. Several at once wait for each other where they
/// are of the same.
pub async fn accept(pool: &PgPool, new: NewDelivery, wanted: Vec<Wanted>) -> Result<AcceptOutcome, Error> {
    let mut transaction = pool.begin().await?;
    let outcome = accept_in(&mut transaction, new, wanted).await;
    match outcome {
        Ok(AcceptOutcome::Accepted { .. }) => transaction.commit().await?,
        // Ended here and not by dropping it, because its locks would outlive this call.
        _ => transaction.rollback().await?,
    }
    outcome
}

async fn accept_in(
    transaction: &mut PgConnection,
    new: NewDelivery,
    mut wanted: Vec<Wanted>,
) -> Result<AcceptOutcome, Error> {
    // Groups are locked in one order, so that nobody waits in a circle.
    let group = |wanted: &Wanted| Some(wanted.builds.first()?.spec.group.as_ref()?.key.to_string());
    wanted.sort_by_cached_key(group);
    let hook = new.hook;
    // The row that the keys point to; what became of it is written at the end.
    let mut delivery = new.with(DeliveryOutcome::Repeated, None, Vec::new());
    insert(transaction, &delivery).await?;
    let whole = delivery.sent_id.as_deref().map(delivery_key);
    if let Some(key) = whole {
        let known = claim(transaction, hook, delivery.id, &[key]).await?;
        if let Some(builds) = known.get(key.as_slice()) {
            delivery.builds.clone_from(builds);
            conclude(transaction, &delivery).await?;
            return Ok(AcceptOutcome::Accepted {
                delivery,
                made: Vec::new(),
            });
        }
    }
    let keys: Vec<[u8; 32]> = wanted.iter().filter_map(|event| event.key).collect();
    let known = claim(transaction, hook, delivery.id, &keys).await?;
    let (mut made, mut seen) = (Vec::new(), HashSet::new());
    for Wanted { key, builds: new } in wanted {
        // Some senders tell of the same twice in one delivery.
        if key.is_some_and(|key| !seen.insert(key)) {
            continue;
        }
        if let Some(builds) = key.and_then(|key| known.get(key.as_slice())) {
            delivery.builds.extend(builds);
            continue;
        }
        let mut own = Vec::new();
        for new in new {
            match builds::store(transaction, new).await.or_else(builds::unknown_project)? {
                CreateOutcome::Created { build, superseded } => {
                    own.push(build.id);
                    made.push((build, superseded));
                }
                CreateOutcome::Coalesced(build) => own.push(build.id),
                other => return Ok(AcceptOutcome::NotCreated(other)),
            }
        }
        if let Some(key) = key {
            remember(transaction, hook, key, &own).await?;
        }
        delivery.builds.extend(own);
    }
    if let Some(key) = whole {
        remember(transaction, hook, key, &delivery.builds).await?;
    }
    if !made.is_empty() {
        delivery.outcome = DeliveryOutcome::Built;
    }
    conclude(transaction, &delivery).await?;
    Ok(AcceptOutcome::Accepted { delivery, made })
}

/// Claims keys for a delivery; returns those that another has claimed before, with its builds. Waits for others that
/// claim the same.
async fn claim(
    transaction: &mut PgConnection,
    hook: HookId,
    delivery: Uuid,
    keys: &[[u8; 32]],
) -> Result<HashMap<Vec<u8>, Vec<BuildId>>, Error> {
    let mut keys: Vec<Vec<u8>> = keys.iter().map(|key| key.to_vec()).collect();
    // In one order, so that nobody waits in a circle.
    keys.sort_unstable();
    keys.dedup();
    sqlx::query!(
        "INSERT INTO hook_keys (hook_id, key, delivery_id) SELECT $1, key, $2 FROM unnest($3::bytea[]) AS new (key)
         ON CONFLICT (hook_id, key) DO NOTHING",
        hook.0,
        delivery,
        &keys,
    )
    .execute(&mut *transaction)
    .await?;
    let rows = sqlx::query!(
        "SELECT key, builds FROM hook_keys WHERE hook_id = $1 AND key = ANY ($2) AND delivery_id <> $3",
        hook.0,
        &keys,
        delivery,
    )
    .fetch_all(transaction)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| (row.key, row.builds.into_iter().map(BuildId).collect()))
        .collect())
}

/// Writes down what was built under a key.
async fn remember(
    transaction: &mut PgConnection,
    hook: HookId,
    key: [u8; 32],
    builds: &[BuildId],
) -> Result<(), Error> {
    let builds: Vec<Uuid> = builds.iter().map(|build| build.0).collect();
    sqlx::query!(
        "UPDATE hook_keys SET builds = $3 WHERE hook_id = $1 AND key = $2",
        hook.0,
        key.as_slice(),
        &builds,
    )
    .execute(transaction)
    .await?;
    Ok(())
}

async fn conclude(transaction: &mut PgConnection, delivery: &Delivery) -> Result<(), Error> {
    let builds: Vec<Uuid> = delivery.builds.iter().map(|build| build.0).collect();
    sqlx::query!(
        "UPDATE hook_deliveries SET outcome = $2, builds = $3 WHERE id = $1",
        delivery.id,
        delivery.outcome.as_str(),
        &builds,
    )
    .execute(transaction)
    .await?;
    Ok(())
}

/// A delivery of a hook.
pub async fn get(pool: &PgPool, hook: HookId, id: Uuid) -> Result<Option<Delivery>, Error> {
    let row = sqlx::query_as!(
        DeliveryRow,
        "SELECT id, hook_id, sent_id, outcome, reason, events, builds, redelivery_of, received_at FROM hook_deliveries
         WHERE hook_id = $1 AND id = $2",
        hook.0,
        id,
    )
    .fetch_optional(pool)
    .await?;
    row.map(Delivery::try_from).transpose()
}

/// Up to `limit` deliveries of a hook, newest first, that are older than `before`.
pub async fn list(pool: &PgPool, hook: HookId, before: Option<Uuid>, limit: u32) -> Result<Vec<Delivery>, Error> {
    let rows = sqlx::query_as!(
        DeliveryRow,
        "SELECT id, hook_id, sent_id, outcome, reason, events, builds, redelivery_of, received_at FROM hook_deliveries
         WHERE hook_id = $1 AND id < $2 ORDER BY id DESC LIMIT $3",
        hook.0,
        before.unwrap_or(Uuid::max()),
        i64::from(limit),
    )
    .fetch_all(pool)
    .await?;
    rows.into_iter().map(Delivery::try_from).collect()
}

/// Deletes deliveries that came more than `days` ago, and what they are known by. A limited number at once; returns how
/// many.
pub async fn delete_old(pool: &PgPool, days: u32) -> Result<u64, Error> {
    let deleted = sqlx::query!(
        "DELETE FROM hook_deliveries WHERE id IN (
             SELECT id FROM hook_deliveries WHERE received_at < now() - make_interval(days => $1)
             ORDER BY received_at LIMIT $2 FOR UPDATE SKIP LOCKED)",
        i32::try_from(days).unwrap_or(i32::MAX),
        ROWS,
    )
    .execute(pool)
    .await?;
    Ok(deleted.rows_affected())
}
