//! One process of the service: API, worker or both, until it is told to stop.
//!
//! Tasks are supervised: one that ends before its time ends the process, because a service that limps is worse than
//! one that is restarted.

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use prometheus_client::registry::Registry;
use sqlx::PgPool;
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::config::Config;
use crate::{
    domain::clock::{Clock, SystemClock},
    engine::{self, Context},
    http,
    journal::{Signals, Writer},
    runner::{Readiness, Runner, verify::Verifier},
    store,
};

/// How long open requests may take to end once the process was told to stop.
const REQUEST_DRAIN: Duration = Duration::from_secs(15);
/// How long what was gathered for the journal may take to be written once everything else has ended.
const JOURNAL_DRAIN: Duration = Duration::from_secs(5);

/// Why the service ended other than by being told to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The database's address isn't one, or its schema can't be brought up to date.
    #[error("the database can't be used: {0}")]
    Database(String),
    /// The API can't listen.
    #[error("the API can't listen on {address}: {source}. Choose another address with `listen` or KILN_LISTEN.")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The client for registries can't be made.
    #[error("the client for registries can't be made")]
    Registries(#[source] reqwest::Error),
    /// A part ended before its time.
    #[error("the {0} ended unexpectedly")]
    Ended(&'static str),
}

/// Opens the database. Connections are made when they are needed, so this works without a server, too.
pub fn open_database(config: &Config) -> Result<PgPool, ServeError> {
    let timeout = Duration::from_secs(config.database.acquire_timeout_seconds.into());
    store::pool(&config.database.url, config.database.max_connections, timeout).map_err(|error| {
        use std::error::Error as _;
        let cause = error.source().map(ToString::to_string).unwrap_or_default();
        ServeError::Database(format!("{error} ({cause})"))
    })
}

/// A process about to serve.
pub struct Service {
    config: Config,
    pool: PgPool,
    clock: Arc<dyn Clock>,
    metrics: Registry,
    signals: Signals,
    writer: Writer,
    cluster: Option<watch::Receiver<Result<(), String>>>,
    tasks: JoinSet<&'static str>,
    /// Told to everybody.
    shutdown: CancellationToken,
    /// Told to what everybody else needs, once they have ended.
    last: CancellationToken,
}

impl Service {
    /// Prepares a process; nothing is served yet.
    pub fn new(config: Config, pool: PgPool, shutdown: CancellationToken) -> Self {
        let (signals, exchange) = Signals::new(pool.clone());
        let (writer, flusher) = Writer::new(pool.clone(), signals.clone());
        let last = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(named("exchange of news between replicas", exchange.run(last.clone())));
        let give_up = last.clone();
        tasks.spawn(named("journal writer", flusher.run(give_up)));
        Self {
            config,
            pool,
            clock: Arc::new(SystemClock),
            metrics: Registry::default(),
            signals,
            writer,
            cluster: None,
            tasks,
            shutdown,
            last,
        }
    }

    /// Adds a worker that carries out builds with this runner.
    pub fn with_worker<R: Runner>(mut self, runner: R, name: String) -> Result<(Self, Arc<Context<R>>), ServeError> {
        let context = Arc::new(Context {
            pool: self.pool.clone(),
            signals: self.signals.clone(),
            writer: self.writer.clone(),
            verifier: Verifier::new(self.config.registry.clone()).map_err(ServeError::Registries)?,
            clock: Arc::clone(&self.clock),
            config: self.config.engine.clone(),
            metrics: engine::metrics::Metrics::register(&mut self.metrics),
            runner,
        });
        let (sender, health) = watch::channel(Err("the cluster has not been asked yet".to_owned()));
        self.cluster = Some(health);
        let readiness = context.runner.readiness();
        let shutdown = self.shutdown.clone();
        self.tasks.spawn(named("check of the cluster", async move {
            shutdown.run_until_cancelled(relay(readiness, sender)).await;
        }));
        let worker = engine::run(Arc::clone(&context), name, self.shutdown.clone());
        self.tasks.spawn(named("worker", worker));
        Ok((self, context))
    }

    /// Adds the API. Returns the address that it listens on.
    pub async fn with_api(mut self) -> Result<(Self, SocketAddr), ServeError> {
        let address = self.config.listen;
        let failed = |source| ServeError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let metrics = http::Metrics::register(&mut self.metrics);
        let app = http::App {
            pool: self.pool.clone(),
            signals: self.signals.clone(),
            limits: Arc::new(self.config.limits.clone()),
            clock: Arc::clone(&self.clock),
            random: http::Random::system(),
            health: http::Health {
                cluster: self.cluster.clone(),
            },
            metrics,
            registry: Arc::new(std::mem::take(&mut self.metrics)),
            external_url: self.config.external_url.clone(),
            streams: http::StreamTiming::default(),
            stopping: self.shutdown.clone(),
        };
        let shutdown = self.shutdown.clone();
        self.tasks.spawn(named("API", async move {
            let server = http::serve(listener, http::router(app), shutdown.clone());
            let overdue = async {
                shutdown.cancelled().await;
                tokio::time::sleep(REQUEST_DRAIN).await;
            };
            tokio::select! {
                () = server => {}
                () = overdue => tracing::warn!("open requests were cut off"),
            }
        }));
        Ok((self, address))
    }

    /// Serves until told to stop, then drains.
    pub async fn run(self) -> Result<(), ServeError> {
        let Self {
            mut tasks,
            shutdown,
            last,
            writer,
            ..
        } = self;
        let early = tokio::select! {
            () = shutdown.cancelled() => None,
            ended = tasks.join_next() => Some(match ended {
                Some(Ok(name)) => name,
                _ => "service's main task",
            }),
        };
        if let Some(name) = early {
            tracing::error!(task = name, "a part of the service ended; stopping");
        } else {
            tracing::info!("draining");
        }
        shutdown.cancel();
        // The journal's writer ends when nobody can write any more; the exchange ends with `last`.
        drop(writer);
        let drained = async { while tasks.len() > 1 && tasks.join_next().await.is_some() {} };
        let limit = REQUEST_DRAIN + JOURNAL_DRAIN;
        if tokio::time::timeout(limit, drained).await.is_err() {
            tracing::warn!(tasks = tasks.len(), "parts of the service did not end in time");
        }
        last.cancel();
        let rest = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(JOURNAL_DRAIN, rest).await.is_err() {
            tracing::warn!(tasks = tasks.len(), "parts of the service were cut off");
        }
        early.map_or(Ok(()), |name| Err(ServeError::Ended(name)))
    }
}

async fn named(name: &'static str, task: impl Future<Output = ()>) -> &'static str {
    task.await;
    name
}

/// Passes a runner's readiness on in the words of the API.
async fn relay(mut readiness: watch::Receiver<Readiness>, health: watch::Sender<Result<(), String>>) {
    loop {
        let now = match &*readiness.borrow_and_update() {
            Readiness::Ready => Ok(()),
            Readiness::NotReady(reason) => Err(reason.clone()),
        };
        // What it was before doesn't matter.
        let _ = health.send_replace(now);
        if readiness.changed().await.is_err() {
            // The runner is gone with the worker.
            return std::future::pending().await;
        }
    }
}

/// Resolves when the process is asked to end: SIGTERM or Ctrl-C.
pub async fn asked_to_end() {
    let terminate = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = terminate => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
