//! `kiln dev`: the whole service on one machine with nothing set up, on a private Postgres and with builds as host
//! processes. All else is as in `kiln serve`: the same API, engine, journal and agent.

mod guide;
mod sample;
mod token;

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::unistd::geteuid;
use tokio::signal::unix::SignalKind;
use tokio_util::sync::CancellationToken;
use url::Url;

use self::{guide::Guide, sample::Sample};
use super::{
    cli::Dev,
    commands::worker_name,
    config::{Config, RunnerKind},
    postgres::{DevPostgres, DevPostgresError},
    secrets::{KeyError, ensure_key},
    serve::{ServeError, Service, asked_to_end, caught, open_database},
};
use crate::{
    domain::spec::Builder,
    http::Random,
    runner::{
        Runner as _, RunnerError,
        local::{LocalConfig, LocalRunner},
    },
    store,
};

/// Where data go for root: Postgres' own user must be able to enter.
const ROOT_DATA: &str = "/var/lib/kiln-dev";
/// Where data go for everybody else, in the current folder.
const USER_DATA: &str = ".kiln";

/// How long the ends of builds that were stopped may take to be written down.
const RECORD_LIMIT: Duration = Duration::from_secs(5);
const RECORD_POLL: Duration = Duration::from_millis(50);

/// Why `kiln dev` could not run, or ended.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    /// There is no database.
    #[error(transparent)]
    Postgres(#[from] DevPostgresError),
    /// The database ended.
    #[error("the private Postgres ended unexpectedly; its log is {}", .0.display())]
    PostgresEnded(PathBuf),
    /// The schema can't be brought up to date.
    #[error("the schema can't be brought up to date: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// Builds can't be run.
    #[error("{0}: {cause}", cause = .0.source)]
    Runner(#[from] RunnerError),
    /// The service could not run.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// Secrets can't be kept.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// There is no token.
    #[error("the token for the API can't be made: {0}")]
    Token(#[from] token::TokenError),
    /// The sample isn't one.
    #[error("the sample {} can't be read: {source}", .folder.display())]
    Sample {
        /// Its folder.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// `kiln dev`: serves until it is told to stop. Leaves no process behind, whenever that is.
pub async fn dev(config: Config, flags: &Dev) -> Result<(), DevError> {
    let stop = CancellationToken::new();
    let on_signal = stop.clone();
    let told = told_to_stop();
    tokio::spawn(async move {
        told.await;
        on_signal.cancel();
    });
    let data = flags.data.clone().unwrap_or_else(default_data);
    let sample = match &flags.sample {
        Some(folder) => Some(Sample::read(folder).map_err(|source| DevError::Sample {
            folder: folder.clone(),
            source,
        })?),
        None => None,
    };
    let mut postgres = DevPostgres::start(&data).await?;
    let mut config = config;
    config.database.url = postgres.url().to_owned();
    let log = data.join("postgres/log");
    let outcome = {
        let service = serve(config, &data, sample, &stop);
        tokio::pin!(service);
        tokio::select! {
            outcome = &mut service => outcome,
            _ = postgres.ended() => {
                tracing::error!(log = %log.display(), "the private Postgres has ended: stopping all builds");
                stop.cancel();
                // Without a database it can only end.
                drop(service.await);
                Err(DevError::PostgresEnded(log))
            }
        }
    };
    postgres.stop().await;
    outcome
}

/// The folder that finished journals go to.
fn archive_url(data: &Path) -> Option<Url> {
    let folder = std::path::absolute(data.join("archive")).ok()?;
    Url::from_directory_path(folder).ok()
}

fn default_data() -> PathBuf {
    if geteuid().is_root() { ROOT_DATA } else { USER_DATA }.into()
}

/// Ctrl-C, SIGTERM, or the end of the terminal, from the call on.
fn told_to_stop() -> impl Future<Output = ()> + Send {
    let asked = asked_to_end();
    let hangup = caught(SignalKind::hangup());
    async {
        tokio::select! {
            () = asked => {}
            () = hangup => {}
        }
    }
}

async fn serve(
    mut config: Config,
    data: &Path,
    sample: Option<Sample>,
    stop: &CancellationToken,
) -> Result<(), DevError> {
    // One machine carries all builds; more at once would only be slower.
    let processors = std::thread::available_parallelism().map_or(2, |count| u32::try_from(count.get()).unwrap_or(2));
    config.limits.builders = vec![Builder::Buildah];
    config.runner = RunnerKind::Local;
    config.engine.max_live_builds = config.engine.max_live_builds.min(processors.max(2));

    if config.archive.url.is_none() {
        config.archive.url = archive_url(data);
    }
    let pool = open_database(&config)?;
    store::migrate(&pool).await?;
    let token = token::ensure(&pool, data).await?;
    if config.secrets.is_unset() {
        let file = data.join("secrets.key");
        ensure_key(&file, &Random::system())?;
        config.secrets.key_file = Some(file);
    }
    let keyring = config.secrets.keyring()?;
    let local = LocalConfig {
        data_dir: data.to_owned(),
        ..config.local.clone()
    };
    let registries = config.registry.clone();
    let shutdown = CancellationToken::new();
    let service = Service::new(config, pool.clone(), keyring, shutdown.clone())?;
    let service = service.listening().await?;
    let runner = LocalRunner::start(&local, registries)?;
    let (service, context) = service.with_worker(runner.clone(), worker_name())?;
    // It can write to the journal, which is closed once nobody can.
    drop(context);
    let outcome = match service.with_api().await {
        Ok((service, address)) => {
            let guide = Guide::new(address, data, token.expose());
            let running = service.run();
            let attended = async {
                stop.run_until_cancelled(guide.show(sample.as_ref())).await;
                stop.cancelled().await;
                runner.wind_down().await;
                until_recorded(&runner).await;
                shutdown.cancel();
            };
            tokio::pin!(running);
            tokio::select! {
                outcome = &mut running => outcome,
                () = attended => running.await,
            }
        }
        Err(error) => Err(error),
    };
    runner.wind_down().await;
    runner.shut_down().await;
    pool.close().await;
    Ok(outcome?)
}

/// Waits, but not for long, until the engine has written down the ends of all attempts, after which it removes them.
/// The rest is written down after the next start.
async fn until_recorded(runner: &LocalRunner) {
    let none_left = async {
        while runner.list().await.is_ok_and(|attempts| !attempts.is_empty()) {
            tokio::time::sleep(RECORD_POLL).await;
        }
    };
    drop(tokio::time::timeout(RECORD_LIMIT, none_left).await);
}
