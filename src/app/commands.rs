//! What the commands do.

use std::time::Duration;

use chrono::Utc;
use sqlx::migrate::MigrateError;
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use super::{
    cli::{Migrate, Role, Serve, TokenCreate},
    config::{Config, RunnerKind},
    secrets::{self, KeyError, RotateError, Rotated},
    serve::{RUNNER_DRAIN, ServeError, Service, asked_to_end, open_database},
};
use crate::{
    http::{Random, token::BearerToken},
    runner::{kubernetes::KubernetesRunner, local::LocalRunner},
    store::{self, tokens::NewToken},
};

/// Between two tries to reach the database.
const MIGRATE_PAUSE: Duration = Duration::from_secs(1);

/// Why a command failed, in words for the person who gave it.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The service could not run.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The database said no.
    #[error("{doing}: {error}{}. The database is set by KILN_DATABASE_URL.", cause(.error))]
    Store {
        /// What was tried.
        doing: &'static str,
        /// What came back.
        error: store::Error,
    },
    /// No database takes connections.
    #[error("{}", no_database(*.set, .error, *.or_api))]
    NoDatabase {
        /// Whether somebody has said which to use.
        set: bool,
        /// What came back.
        error: store::Error,
        /// Whether a running service could do the same.
        or_api: bool,
    },
    /// The schema can't be brought up to date.
    #[error("the schema can't be brought up to date: {0}. The database is set by KILN_DATABASE_URL.")]
    Migrate(#[from] MigrateError),
    /// The project can't be.
    #[error("the project's name: {0}")]
    Project(String),
    /// The keys for secrets can't be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Secrets can't be encrypted anew.
    #[error(transparent)]
    Rotate(#[from] RotateError),
    /// Some secrets stay as they are.
    #[error(
        "{} secrets encrypted anew, but none of the keys opens these: {}. Add the key that they were encrypted with to `secrets.previous_key_files`, or store them again.",
        .0.done, .0.stuck.join(", ")
    )]
    Stuck(Rotated),
    /// The local runner can't start.
    #[error("{doing}: {error}{}", cause(.error))]
    Runner {
        /// What was tried.
        doing: &'static str,
        /// What came back.
        error: crate::runner::RunnerError,
    },
}

impl CommandError {
    /// The process's exit code: 2 for what the one who called it has to set, as for flags; 1 otherwise.
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::NoDatabase { .. } | Self::Project(_) | Self::Key(_) | Self::Serve(ServeError::Database(_)) => 2,
            Self::Serve(_)
            | Self::Store { .. }
            | Self::Migrate(_)
            | Self::Rotate(_)
            | Self::Stuck(_)
            | Self::Runner { .. } => 1,
        }
    }
}

fn no_database(set: bool, error: &store::Error, or_api: bool) -> String {
    const KEYS: &str = "KILN_DATABASE_URL, --database-url or `database.url` in the configuration";
    let cause = cause(error);
    let mut text = if set {
        format!("the database can't be used{cause}. Is it running? It is set by {KEYS}.")
    } else {
        format!(
            "no database is set, and there is none at the usual place{cause}. Set {KEYS}, such as \
             `postgres://kiln:secret@db/kiln`; `kiln dev` brings one of its own."
        )
    };
    if or_api {
        text.push_str(
            " A running service can make the token, too: `kiln token create --api`, with its address in KILN_URL and \
             a token of the scope project:admin in KILN_TOKEN.",
        );
    }
    text
}

fn cause(error: &dyn std::error::Error) -> String {
    error.source().map(|cause| format!(": {cause}")).unwrap_or_default()
}

/// `kiln serve`.
pub async fn serve(config: Config, flags: &Serve) -> Result<(), CommandError> {
    let pool = open_database(&config)?;
    // A replica outlives its database, and waits for one that was named; one that nobody named won't come.
    if flags.migrate || !config.database.is_set() {
        probe(&config, false).await?;
    }
    if flags.migrate {
        store::migrate(&pool).await?;
    }
    let shutdown = CancellationToken::new();
    let on_signal = shutdown.clone();
    let asked = asked_to_end();
    tokio::spawn(async move {
        asked.await;
        on_signal.cancel();
    });
    let mut service = Service::new(config.clone(), pool, config.secrets.keyring()?, shutdown.clone())?;
    if flags.roles.contains(&Role::Api) {
        service = service.listening().await?;
    }
    if !flags.roles.contains(&Role::Worker) {
        return finish(service, flags).await;
    }
    let name = worker_name();
    match config.runner {
        RunnerKind::Kubernetes => {
            let tasks = TaskTracker::new();
            let ended = CancellationToken::new();
            let runner = KubernetesRunner::start(config.kubernetes, config.registry, ended.clone(), tasks.clone())
                .map_err(|error| CommandError::Runner {
                    doing: "the Kubernetes runner can't start",
                    error,
                })?;
            let (service, context) = service.with_worker(runner, name)?;
            let outcome = finish(service, flags).await;
            drop(context);
            ended.cancel();
            tasks.close();
            // What does not end in time ends with the process.
            let _ = tokio::time::timeout(RUNNER_DRAIN, tasks.wait()).await;
            outcome
        }
        RunnerKind::Local => {
            let doing = "the local runner can't start";
            let runner = LocalRunner::start(&config.local, config.registry)
                .map_err(|error| CommandError::Runner { doing, error })?;
            let (service, context) = service.with_worker(runner, name)?;
            let outcome = finish(service, flags).await;
            context.runner.shut_down().await;
            outcome
        }
    }
}

async fn finish(service: Service, flags: &Serve) -> Result<(), CommandError> {
    let service = if flags.roles.contains(&Role::Api) {
        let (service, address) = service.with_api().await?;
        tracing::info!(address = %address, "serving");
        service
    } else {
        service
    };
    Ok(service.run().await?)
}

/// Host and process, for people who look at the table of workers.
pub fn worker_name() -> String {
    let host = nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_default();
    format!("{host}/{}", std::process::id())
}

/// `kiln migrate`.
pub async fn migrate(config: &Config, flags: &Migrate) -> Result<(), CommandError> {
    let pool = open_database(config)?;
    let deadline = Instant::now() + Duration::from_secs(flags.wait.into());
    loop {
        match try_migrate(config, &pool).await {
            // The connection, not a migration: a database that isn't there yet, or whose name isn't.
            Err(error @ (CommandError::NoDatabase { .. } | CommandError::Migrate(MigrateError::Execute(_))))
                if Instant::now() + MIGRATE_PAUSE <= deadline =>
            {
                tracing::info!(error = %error, "waiting for the database");
                tokio::time::sleep(MIGRATE_PAUSE).await;
            }
            outcome => return outcome,
        }
    }
}

async fn try_migrate(config: &Config, pool: &sqlx::PgPool) -> Result<(), CommandError> {
    probe(config, false).await?;
    Ok(store::migrate(pool).await?)
}

/// Refuses to go on without a database. `or_api` says whether a running service could do the same.
async fn probe(config: &Config, or_api: bool) -> Result<(), CommandError> {
    let patience = Duration::from_secs(config.database.acquire_timeout_seconds.into());
    store::probe(&config.database.url, patience)
        .await
        .map_err(|error| CommandError::NoDatabase {
            set: config.database.is_set(),
            error,
            or_api,
        })
}

/// `kiln secrets rotate`: what it came to, in words; an error when something is left that no key opens.
pub async fn rotate_secrets(config: &Config) -> Result<String, CommandError> {
    let keyring = config.secrets.keyring()?;
    let pool = open_database(config)?;
    probe(config, false).await?;
    let rotated = secrets::rotate(&pool, &keyring, &Random::system()).await?;
    if rotated.stuck.is_empty() {
        let done = rotated.done;
        return Ok(format!(
            "{done} secrets encrypted anew; previous keys are no longer needed."
        ));
    }
    Err(CommandError::Stuck(rotated))
}

/// `kiln token create`: prints the token and nothing else, so that scripts can take it.
pub async fn create_token(config: &Config, flags: &TokenCreate) -> Result<String, CommandError> {
    let failed = |error| CommandError::Store {
        doing: "the token can't be made",
        error,
    };
    let project = flags
        .project()
        .map_err(|problem| CommandError::Project(problem.to_string()))?;
    let pool = open_database(config)?;
    probe(config, true).await?;
    store::projects::create(&pool, &project).await.map_err(failed)?;
    let token = BearerToken::from_random(Random::system().bytes());
    let expires_at = flags
        .expires_in_days
        .map(|days| Utc::now() + chrono::TimeDelta::days(days.into()));
    let new = NewToken {
        id: Uuid::now_v7(),
        project,
        name: flags.name.clone(),
        hash: token.hash(),
        scopes: flags.scopes.clone(),
        expires_at,
    };
    store::tokens::create(&pool, new).await.map_err(failed)?;
    Ok(token.expose().to_owned())
}
