//! What makes builds happen: claims them from the queue, carries each through its attempt, and clears up.
//!
//! Any number of workers share the work. None keeps a fact that matters in memory only: a worker killed at any
//! instruction leaves rows and pods from which another goes on.

mod config;
mod dispatcher;
mod driver;
pub mod keeper;
mod log_pump;
pub mod metrics;
mod sweeper;
mod trace;
mod worker;

use std::sync::{Arc, OnceLock};

use sqlx::PgPool;
use url::Url;

pub use self::{config::Config, worker::run};
use crate::{
    domain::queue::ProjectLimits,
    journal::{Logs, Signals},
    runner::verify::Verifier,
    store::{attempt_keys::AttemptKeys, clock::DatabaseClock, secrets::seal::Keyring},
};

/// What every part of the engine works with.
pub struct Context<R> {
    /// The database.
    pub pool: PgPool,
    /// Where attempts run.
    pub runner: R,
    /// News within this replica and between replicas.
    pub signals: Signals,
    /// The way into the logs of attempts.
    pub logs: Logs,
    /// Decrypts the secrets of projects.
    pub keyring: Keyring,
    /// Asks registries whether they hold what was pushed.
    pub verifier: Verifier,
    /// The database's time, by which every worker goes.
    pub clock: Arc<DatabaseClock>,
    /// Limits and timers.
    pub config: Config,
    /// Limits of projects that have none of their own.
    pub project_limits: ProjectLimits,
    /// Counters.
    pub metrics: metrics::Metrics,
    /// What attempts need to get something from this service.
    pub service: ServiceAccess,
}

/// What attempts need to get something from this service.
#[derive(Clone, Debug)]
pub struct ServiceAccess {
    /// The address at which they reach it; empty until it is known.
    pub url: Arc<OnceLock<Url>>,
    /// What their tokens are made with.
    pub keys: AttemptKeys,
}
