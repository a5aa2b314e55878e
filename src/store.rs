//! Postgres, the only truth. One module a table or a task; every statement is checked against the schema when Kiln is
//! compiled.
//!
//! Two rules hold everywhere. A write on behalf of a worker repeats that worker's [`Lease`] and the state it expects
//! in its WHERE and touches one row or fails. And whatever a build's journal gains is numbered under the lock of the
//! build's row, in the same statement that made it happen.

pub mod archives;
pub mod attempt_keys;
pub mod builds;
pub mod changes;
pub mod clock;
mod coalesce;
pub mod entries;
mod gather;
pub mod groups;
pub mod hooks;
pub mod intake;
pub mod journal;
pub mod leases;
pub mod listing;
pub mod nodes;
pub mod notify;
pub mod partitions;
pub mod projects;
pub mod queue;
pub mod retention;
mod rows;
pub mod secrets;
pub mod tickets;
pub mod tokens;
pub mod transitions;
pub mod uploads;
pub mod waiting;

use sqlx::{
    Connection as _, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use crate::domain::id::{AttemptId, ReplicaId};

static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!();

/// Why the database didn't do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection, or it broke; trying again may help. Whether the statement took effect is unknown.
    #[error("the database can't be reached")]
    Unavailable(#[source] sqlx::Error),
    /// The database refused the statement.
    #[error("the database refused a statement")]
    Database(#[source] sqlx::Error),
    /// A row holds what it must not.
    #[error("table {table}, column {column}, row {row}: {problem}")]
    Inconsistent {
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
        /// The row's key.
        row: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The lease is not held any more, or the build is in another state than expected: another worker or the API was
    /// quicker.
    #[error("the build is no longer in the state, or with the worker, that the write expected")]
    Conflict,
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        let unavailable = match &error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::Protocol(_) => true,
            // Classes of SQLSTATE: 08 connection, 53 resources, 57 operator intervention (shutdown), 40 rollback
            // (deadlock), and 25006 while a primary is being replaced.
            sqlx::Error::Database(database) => {
                database.code().is_some_and(|code| {
                ["08", "53", "57", "40"].iter().any(|class| code.starts_with(class)) || code == "25006"
            })
            // A partition was made for the row while it was on its way to the default one.
            || database.table() == Some("journal_default")
            }
            _ => false,
        };
        if unavailable {
            Self::Unavailable(error)
        } else {
            Self::Database(error)
        }
    }
}

/// The right to write for an attempt: held by one worker, until it gives it up or its row in `replicas` expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The attempt.
    pub attempt: AttemptId,
    /// The worker.
    pub owner: ReplicaId,
    /// Grows with every change of hands.
    pub epoch: i64,
}

/// How long a transaction may wait for its next statement. No transaction spans anything slow, so one that waits
/// belongs to a process that is paused or gone; the locks it holds would keep others from taking over its builds, for
/// as long as TCP keeps the connection: hours.
const IDLE_IN_TRANSACTION: &str = "SET idle_in_transaction_session_timeout = '5s'";

/// How long an idle connection is trusted to be whole.
const TRUSTED: std::time::Duration = std::time::Duration::from_secs(1);

/// Connects to the database. Returns at once; connections are made when they are needed.
pub fn pool(url: &str, max_connections: u32, acquire_timeout: std::time::Duration) -> Result<PgPool, Error> {
    let options: PgConnectOptions = url.parse()?;
    let options = options.application_name("kiln");
    Ok(PgPoolOptions::new()
        .max_connections(max_connections)
        .acquire_timeout(acquire_timeout)
        .after_connect(|connection, _| {
            Box::pin(async move {
                sqlx::query(IDLE_IN_TRANSACTION).execute(connection).await?;
                Ok(())
            })
        })
        // A connection is tested when it is given back. Testing it again at every use would double the round trips of
        // a short request, so only one that lay idle since is asked whether it still works.
        .test_before_acquire(false)
        .before_acquire(|connection, meta| {
            Box::pin(async move {
                if meta.idle_for > TRUSTED {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
        .connect_lazy_with(options))
}

/// Whether the database takes a connection, found out at once: a pool would try again until its time is over, and
/// forget why it had to.
pub async fn probe(url: &str, patience: std::time::Duration) -> Result<(), Error> {
    let options: PgConnectOptions = url.parse()?;
    let connected = tokio::time::timeout(patience, PgConnection::connect_with(&options)).await;
    let connection = connected.unwrap_or(Err(sqlx::Error::PoolTimedOut))?;
    Ok(connection.close().await?)
}

/// Brings the schema up to date; safe to call from several replicas at once.
pub async fn migrate(pool: &PgPool) -> Result<(), sqlx::migrate::MigrateError> {
    MIGRATOR.run(pool).await
}

/// Whether the database answers and has the schema that this version needs.
pub async fn check(pool: &PgPool) -> Result<SchemaState, Error> {
    let needed = MIGRATOR.iter().map(|migration| migration.version).max().unwrap_or(0);
    let known = sqlx::query_scalar!("SELECT to_regclass('_sqlx_migrations') IS NOT NULL AS \"known!\"")
        .fetch_one(pool)
        .await?;
    if !known {
        return Ok(SchemaState::Outdated);
    }
    let current =
        sqlx::query_scalar!("SELECT coalesce(max(version), 0) AS \"version!\" FROM _sqlx_migrations WHERE success")
            .fetch_one(pool)
            .await?;
    Ok(if current >= needed {
        SchemaState::Current
    } else {
        SchemaState::Outdated
    })
}

/// Whether the schema is what this version needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchemaState {
    /// It is, or it is newer.
    Current,
    /// `kiln migrate` has to run first.
    Outdated,
}
