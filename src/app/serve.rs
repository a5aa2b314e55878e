//! One process of the service: API, worker or both, until it is told to stop.
//!
//! Tasks are supervised: one that ends before its time ends the process, because a service that limps is worse than
//! one that is restarted.

use std::{
    future::Future,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, OnceLock},
    time::Duration,
};

use prometheus_client::registry::Registry;
use sqlx::PgPool;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::config::{Config, RunnerKind};
use crate::{
    domain::clock::SystemClock,
    engine::{
        self, Context, ServiceAccess,
        keeper::{self, Keeper},
    },
    http,
    journal::{
        History, Logs, Signals, Writer,
        archive::{Archive, ArchiveError},
    },
    runner::{Readiness, Runner, verify::Verifier},
    store::{self, attempt_keys::AttemptKeys, clock::DatabaseClock, intake::Intake, secrets::seal::Keyring},
};

/// How long open requests may take to end once the process was told to stop.
const REQUEST_DRAIN: Duration = Duration::from_secs(15);
/// How long what was gathered for the journal may take to be written once everything else has ended.
const JOURNAL_DRAIN: Duration = Duration::from_secs(5);
/// How long a runner's own tasks may take to end after that.
pub(super) const RUNNER_DRAIN: Duration = Duration::from_secs(5);
/// The longest that a process takes to end once it was told to.
pub const LONGEST_DRAIN: Duration = REQUEST_DRAIN
    .saturating_add(JOURNAL_DRAIN.saturating_mul(2))
    .saturating_add(RUNNER_DRAIN);

/// Why the service ended other than by being told to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The database's address isn't one.
    #[error("{0}")]
    Database(String),
    /// The API can't listen.
    #[error("the API can't listen on {address}: {source}. Choose another address with `listen` or KILN_LISTEN.")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The archive can't be used.
    #[error("{0}")]
    Archive(#[from] ArchiveError),
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
        ServeError::Database(format!(
            "`database.url` (KILN_DATABASE_URL) is not the URL of a Postgres database such as \
             `postgres://kiln:secret@db/kiln`: {cause}"
        ))
    })
}

/// A process about to serve.
pub struct Service {
    config: Config,
    pool: PgPool,
    keyring: Keyring,
    clock: Arc<DatabaseClock>,
    metrics: Registry,
    signals: Signals,
    logs: Logs,
    archive: Option<Archive>,
    access: ServiceAccess,
    cluster: Option<watch::Receiver<Result<(), String>>>,
    listener: Option<(TcpListener, SocketAddr)>,
    /// What does the work; ends when told to shut down.
    front: JoinSet<&'static str>,
    shutdown: CancellationToken,
    /// What the front needs; ends after it.
    back: JoinSet<&'static str>,
    last: CancellationToken,
}

impl Service {
    /// Prepares a process; nothing is served yet.
    pub fn new(
        config: Config,
        pool: PgPool,
        keyring: Keyring,
        shutdown: CancellationToken,
    ) -> Result<Self, ServeError> {
        let archive = config.archive.url.as_ref().map(Archive::open).transpose()?;
        let (signals, exchange) = Signals::with_tails(pool.clone(), config.streams.tails());
        let mut metrics = Registry::default();
        let journal = crate::journal::metrics::Metrics::register(&mut metrics);
        let (writer, flusher) = Writer::with_metrics(pool.clone(), signals.clone(), journal);
        let last = CancellationToken::new();
        let clock = Arc::new(DatabaseClock::new(Arc::new(SystemClock)));
        let logs = Logs::new(pool.clone(), writer, clock.clone(), config.logs.clone());
        let access = ServiceAccess {
            url: Arc::new(config.agent_url.clone().map(OnceLock::from).unwrap_or_default()),
            keys: AttemptKeys::new(http::Random::system().bytes()),
        };
        let mut back = JoinSet::new();
        back.spawn(named("exchange of news between replicas", exchange.run(last.clone())));
        back.spawn(named("journal writer", flusher.run(last.clone())));
        let (followed, its_pool, stop) = (Arc::clone(&clock), pool.clone(), last.clone());
        back.spawn(named("clock", async move { followed.follow(&its_pool, &stop).await }));
        Ok(Self {
            config,
            pool,
            keyring,
            archive,
            clock,
            metrics,
            signals,
            logs,
            access,
            cluster: None,
            listener: None,
            front: JoinSet::new(),
            shutdown,
            back,
            last,
        })
    }

    /// Adds a worker that carries out builds with this runner.
    pub fn with_worker<R: Runner>(mut self, runner: R, name: String) -> Result<(Self, Arc<Context<R>>), ServeError> {
        let context = Arc::new(Context {
            pool: self.pool.clone(),
            signals: self.signals.clone(),
            logs: self.logs.clone(),
            keyring: self.keyring.clone(),
            verifier: Verifier::new(self.config.registry.clone()).map_err(ServeError::Registries)?,
            clock: Arc::clone(&self.clock),
            config: engine::Config {
                max_memory: self.config.limits.max_resources.memory,
                ..self.config.engine.clone()
            },
            project_limits: self.config.queue.project_limits,
            metrics: engine::metrics::Metrics::register(&mut self.metrics),
            service: self.access.clone(),
            runner,
        });
        let (sender, health) = watch::channel(Err("the cluster has not been asked yet".to_owned()));
        self.cluster = Some(health);
        let readiness = context.runner.readiness();
        let shutdown = self.shutdown.clone();
        self.front.spawn(named("check of the cluster", async move {
            shutdown.run_until_cancelled(relay(readiness, sender)).await;
        }));
        let worker = engine::run(Arc::clone(&context), name, self.shutdown.clone());
        self.front.spawn(named("worker", worker));
        let keeper = Keeper {
            pool: self.pool.clone(),
            archive: self.archive.clone(),
            archive_after_seconds: self.config.archive.after_seconds,
            retention: self.config.retention.clone(),
            interval_seconds: self.config.engine.sweep_interval_seconds,
            metrics: keeper::Metrics::register(&mut self.metrics),
        };
        self.front
            .spawn(named("keeper of history", keeper.run(self.shutdown.clone())));
        Ok((self, context))
    }

    /// Takes the API's address before anything is added, so that a worker can tell attempts on its host of it.
    pub async fn listening(mut self) -> Result<Self, ServeError> {
        self.listener = Some(self.listen().await?);
        Ok(self)
    }

    async fn listen(&self) -> Result<(TcpListener, SocketAddr), ServeError> {
        let address = self.config.listen;
        let failed = |source| ServeError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        if self.config.runner == RunnerKind::Local
            && let Ok(url) = local_url(address).parse()
        {
            // What the operator has set wins.
            let _ = self.access.url.set(url);
        }
        Ok((listener, address))
    }

    /// Adds the API. Returns the address that it listens on.
    pub async fn with_api(mut self) -> Result<(Self, SocketAddr), ServeError> {
        let (listener, address) = match self.listener.take() {
            Some(listening) => listening,
            None => self.listen().await?,
        };
        let reachable = self.access.url.get().is_some();
        let metrics = http::Metrics::register(&mut self.metrics);
        let pushes = http::Pushes::new(self.logs.clone(), http::PushMetrics::register(&mut self.metrics));
        let app = http::App {
            pool: self.pool.clone(),
            intake: Intake::new(self.pool.clone()),
            history: History::new(self.pool.clone()).with_archive(self.archive.clone()),
            signals: self.signals.clone(),
            limits: Arc::new(self.config.limits.clone()),
            queue: self.config.queue,
            uploads: Arc::new(http::Uploads::new(self.config.uploads.clone(), reachable)),
            attempt_keys: self.access.keys.clone(),
            pushes,
            clock: self.clock.clone(),
            random: http::Random::system(),
            keyring: self.keyring.clone(),
            health: http::Health {
                cluster: self.cluster.clone(),
            },
            metrics,
            registry: Arc::new(std::mem::take(&mut self.metrics)),
            max_live_builds: self.config.engine.max_live_builds,
            cors: self.config.cors.clone(),
            external_url: self.config.external_url.clone(),
            streams: http::StreamTiming::default(),
            stopping: self.shutdown.clone(),
        };
        let shutdown = self.shutdown.clone();
        self.front.spawn(named("API", async move {
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
            mut front,
            mut back,
            shutdown,
            last,
            ..
        } = self;
        let ended = tokio::select! {
            // Tasks that end because they were told to are no surprise.
            biased;
            () = shutdown.cancelled() => None,
            ended = front.join_next(), if !front.is_empty() => ended,
            ended = back.join_next() => ended,
        };
        let early = ended.map(|ended| ended.unwrap_or("a task that broke"));
        if let Some(name) = early {
            tracing::error!(task = name, "a part of the service ended; stopping");
        } else {
            tracing::info!("draining");
        }
        shutdown.cancel();
        end_within(REQUEST_DRAIN + JOURNAL_DRAIN, &mut front).await;
        last.cancel();
        end_within(JOURNAL_DRAIN, &mut back).await;
        early.map_or(Ok(()), |name| Err(ServeError::Ended(name)))
    }
}

/// Where processes of this host reach what listens on an address.
fn local_url(mut address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    format!("http://{address}")
}

/// Waits for tasks, and cuts off those that take too long.
async fn end_within(limit: Duration, tasks: &mut JoinSet<&'static str>) {
    let all = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(limit, all).await.is_err() {
        tracing::warn!(
            tasks = tasks.len(),
            "parts of the service did not end in time and were cut off"
        );
        tasks.shutdown().await;
    }
}

async fn named(name: &'static str, task: impl Future<Output = ()>) -> &'static str {
    task.await;
    name
}

/// Passes a runner's readiness on in the words of the API.
async fn relay(mut readiness: watch::Receiver<Readiness>, health: watch::Sender<Result<(), String>>) {
    loop {
        let state = match &*readiness.borrow_and_update() {
            Readiness::Ready => Ok(()),
            Readiness::NotReady(reason) => Err(reason.clone()),
        };
        // What it was before does not matter.
        let _ = health.send_replace(state);
        if readiness.changed().await.is_err() {
            // The runner is gone with the worker.
            return std::future::pending().await;
        }
    }
}

/// Resolves when the process is asked to end: SIGTERM or Ctrl-C. Both are caught from the call on, not only once the
/// future is waited for.
pub fn asked_to_end() -> impl Future<Output = ()> + Send {
    let terminate = caught(SignalKind::terminate());
    let interrupt = caught(SignalKind::interrupt());
    async {
        tokio::select! {
            () = terminate => {}
            () = interrupt => {}
        }
    }
}

/// Resolves with the first such signal from the call on. Must be called within a runtime.
pub(super) fn caught(kind: SignalKind) -> impl Future<Output = ()> + Send {
    let stream = signal(kind);
    async {
        match stream {
            Ok(mut stream) => {
                stream.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    }
}
