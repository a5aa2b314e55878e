//! What every test here starts from.

use std::{sync::Arc, time::Duration};

use kiln::{
    domain::{
        clock::{Clock, SystemClock},
        id::BuildId,
        queue::{ProjectLimits, QueueConfig},
        spec::BuildSpec,
        state::StateName,
    },
    engine::{self, Context, ServiceAccess, metrics::Metrics},
    journal::{History, LogLimits, Logs, Reader, Signals, Writer},
    runner::{registry::Registry, verify::Verifier},
    store::{
        self,
        attempt_keys::AttemptKeys,
        builds::{CreateOutcome, NewBuild},
        clock::DatabaseClock,
        secrets::seal::Keyring,
    },
};
use serde_json::json;
use sqlx::PgPool;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::sim::SimRunner;

/// Nothing here takes longer unless it hangs.
pub(super) const DEADLINE: Duration = Duration::from_secs(30);

/// Waits for a condition, looking again every few milliseconds, until the deadline.
pub(super) async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut condition: impl FnMut() -> F) -> T {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(tokio::time::Instant::now() < deadline, "never came true: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(super) fn spec(priority: i16) -> BuildSpec {
    serde_json::from_value(json!({
        "source": {"type": "inline", "files": {"Dockerfile": "FROM scratch"}},
        "dockerfile": "Dockerfile", "build_args": {}, "target": null, "platforms": ["linux/amd64"], "labels": {},
        "images": ["registry.test/app:1"], "push": true, "builder": "buildkit",
        "resources": {"cpu": "1", "memory": "1Gi", "disk": "1Gi"},
        "timeout_seconds": 600, "priority": priority, "annotations": {},
    }))
    .expect("a specification")
}

pub(super) fn new_build(priority: i16) -> NewBuild {
    NewBuild {
        id: BuildId::new(),
        project: "default".parse().expect("a name"),
        spec: spec(priority),
        queue: QueueConfig::default(),
        created_at: chrono::DateTime::from_timestamp(1_760_000_000, 0).expect("a time"),
        retry: None,
        coalesce: false,
        trace: None,
        origin: None,
    }
}

pub(super) async fn create(pool: &PgPool) -> BuildId {
    create_with(pool, 0).await
}

pub(super) async fn create_with(pool: &PgPool, priority: i16) -> BuildId {
    match store::builds::create(pool, new_build(priority), None)
        .await
        .expect("stores")
    {
        CreateOutcome::Created { build, .. } => build.id,
        other => panic!("not created: {other:?}"),
    }
}

pub(super) async fn state(pool: &PgPool, build: BuildId) -> StateName {
    store::builds::get(pool, build)
        .await
        .expect("reads")
        .expect("exists")
        .state
        .name()
}

pub(super) async fn wait_for_state(pool: &PgPool, build: BuildId, wanted: StateName) {
    eventually(&format!("{build} is {wanted}"), || async {
        (state(pool, build).await == wanted).then_some(())
    })
    .await;
}

/// The whole journal of a finished build.
pub(super) async fn journal(pool: &PgPool, build: BuildId) -> Vec<(i64, kiln::domain::event::Event)> {
    let (signals, _exchange) = Signals::new(pool.clone());
    let mut opened = Reader::open(&History::new(pool.clone()), &signals, build, 0)
        .await
        .expect("reads")
        .expect("exists");
    let mut entries = Vec::new();
    while let Some(page) = opened.reader.next().await.expect("reads") {
        entries.extend(page.iter().cloned());
    }
    entries
}

/// A worker process in miniature.
pub(super) struct Worker {
    shutdown: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl Worker {
    pub(super) fn start(pool: &PgPool, runner: &SimRunner) -> Self {
        Self::start_with(pool, runner, |_| {})
    }

    pub(super) fn start_with(pool: &PgPool, runner: &SimRunner, adjust: impl FnOnce(&mut engine::Config)) -> Self {
        Self::start_at(pool, runner, Arc::new(SystemClock), adjust)
    }

    /// On a machine with this clock.
    pub(super) fn start_at(
        pool: &PgPool,
        runner: &SimRunner,
        clock: Arc<dyn Clock>,
        adjust: impl FnOnce(&mut engine::Config),
    ) -> Self {
        let mut config = engine::Config {
            lease_seconds: 3,
            retry_backoff_seconds: 0,
            sweep_interval_seconds: 1,
            ..engine::Config::default()
        };
        adjust(&mut config);
        let (signals, exchange) = Signals::new(pool.clone());
        let (writer, flusher) = Writer::new(pool.clone(), signals.clone());
        let clock = Arc::new(DatabaseClock::new(clock));
        let logs = Logs::new(pool.clone(), writer, clock.clone(), LogLimits::default());
        let context = Arc::new(Context {
            pool: pool.clone(),
            runner: runner.clone(),
            signals,
            logs,
            keyring: Keyring::default(),
            verifier: Verifier::new(vec![Registry {
                ca: None,
                ca_file: None,
                host: "registry.test".to_owned(),
                mirrors: Vec::new(),
                insecure: false,
                verify: false,
            }])
            .expect("a client"),
            clock,
            config,
            project_limits: ProjectLimits::NONE,
            metrics: Metrics::register(&mut prometheus_client::registry::Registry::default()),
            service: ServiceAccess {
                url: Arc::default(),
                keys: AttemptKeys::new([7; 32]),
            },
        });
        let shutdown = CancellationToken::new();
        let tasks = vec![
            tokio::spawn(exchange.run(shutdown.clone())),
            tokio::spawn(flusher.run(shutdown.clone())),
            tokio::spawn(engine::run(context, "test".to_owned(), shutdown.clone())),
        ];
        Self { shutdown, tasks }
    }

    /// SIGTERM: everything ends by itself.
    pub(super) async fn drain(self) {
        self.shutdown.cancel();
        for task in self.tasks {
            tokio::time::timeout(DEADLINE, task)
                .await
                .expect("ends")
                .expect("no panic");
        }
    }
}

/// A worker in a process of its own, as far as killing goes: a runtime that can be dropped at any moment.
pub(super) struct Killable {
    runtime: tokio::runtime::Runtime,
}

impl Killable {
    pub(super) fn start(pool: &PgPool, runner: &SimRunner) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let options = pool.connect_options();
        let runner = runner.clone();
        runtime.spawn(async move {
            // Connections belong to the runtime that made them.
            let pool = sqlx::postgres::PgPoolOptions::new()
                .max_connections(5)
                .connect_lazy_with((*options).clone());
            let _worker = Worker::start(&pool, &runner);
            std::future::pending::<()>().await;
        });
        Self { runtime }
    }

    /// SIGKILL: nothing of it runs on, and nothing is given up in order.
    pub(super) fn kill(self) {
        self.runtime.shutdown_background();
    }
}

/// Nothing is left that somebody would have to clear up.
pub(super) async fn assert_idle(pool: &PgPool, runner: &SimRunner) {
    assert_eq!(store::queue::depth(pool).await.expect("reads"), []);
    eventually("no remains", || async { runner.attempts().is_empty().then_some(()) }).await;
}
