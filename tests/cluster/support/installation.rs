//! An installation of Kiln for one test: a database, a configuration, a token, and as many replicas as the test
//! starts. However the test ends, nothing of it stays; when it ends well, nothing may have been left behind.

use std::{
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, Once},
    time::Duration,
};

use futures::FutureExt;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tempfile::TempDir;
use tokio::sync::Semaphore;
use toml::{Table, Value};
use url::Url;
use uuid::Uuid;

use super::{
    Replica,
    entrance::Entrance,
    environment::{configuration, variable},
    pods::Pods,
    replica::program,
};

/// Room for about this many builds at once: two cores carry no more in a reasonable time.
const ROOM: u32 = 4;
static SLOTS: Semaphore = Semaphore::const_new(ROOM as usize);
/// Deleting a pod gives its containers a few seconds.
const CLEARED: Duration = Duration::from_secs(40);

/// One installation of Kiln.
pub(in crate::cluster) struct Installation {
    /// Tells its pods, images and database from those of others.
    pub(in crate::cluster) name: String,
    pub(in crate::cluster) pods: Pods,
    /// Where its pods reach it.
    pub(in crate::cluster) entrance: Entrance,
    config: PathBuf,
    token: String,
    /// Where databases are made.
    admin: Url,
    database: Url,
    replicas: Mutex<Vec<Arc<Replica>>>,
    folder: TempDir,
}

/// Runs a test with an installation whose configuration `adjust` has changed. `builds` is how many builds it runs at
/// once; tests wait for each other accordingly.
pub(in crate::cluster) async fn run(
    builds: u32,
    adjust: impl FnOnce(&mut Table),
    test: impl AsyncFnOnce(&Installation),
) {
    let admin = variable("DATABASE_URL").parse().expect("a URL");
    run_on(&admin, builds, adjust, test).await;
}

/// The same with a database on this server.
pub(in crate::cluster) async fn run_on(
    admin: &Url,
    builds: u32,
    adjust: impl FnOnce(&mut Table),
    test: impl AsyncFnOnce(&Installation),
) {
    let _slots = SLOTS.acquire_many(builds.min(ROOM)).await.expect("never closed");
    let installation = Installation::create(admin, adjust).await;
    let outcome = AssertUnwindSafe(async {
        test(&installation).await;
        installation.expect_nothing_left().await;
    })
    .catch_unwind()
    .await;
    if outcome.is_err() {
        installation.tell().await;
    }
    installation.remove().await;
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

/// Sets a value of the configuration, named by its path.
pub(in crate::cluster) fn set(config: &mut Table, path: &str, value: impl Into<Value>) {
    let (table, key) = match path.rsplit_once('.') {
        None => (config, path),
        Some((parents, key)) => {
            let table = parents.split('.').fold(config, |table, name| {
                let entry = table.entry(name).or_insert_with(|| Table::new().into());
                entry.as_table_mut().expect("a table")
            });
            (table, key)
        }
    };
    table.insert(key.to_owned(), value.into());
}

impl Installation {
    async fn create(admin: &Url, adjust: impl FnOnce(&mut Table)) -> Self {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            let provider = rustls::crypto::ring::default_provider();
            provider.install_default().expect("the first one");
        });
        let name = format!("test-{}", Uuid::new_v4().simple());
        let folder = tempfile::tempdir().expect("a folder");
        let mut database = admin.clone();
        execute(&database, format!("CREATE DATABASE \"{name}\"")).await;
        database.set_path(&name);

        let mut config = configuration();
        let entrance = Entrance::open().await;
        set(&mut config, "listen", "127.0.0.1:0");
        set(&mut config, "agent_url", entrance.url());
        set(&mut config, "database.url", database.as_str());
        set(&mut config, "database.max_connections", 10);
        set(&mut config, "log.filter", "info,kiln=debug,kiln::http=info");
        set(&mut config, "kubernetes.installation", name.as_str());
        // Takes over soon after a kill.
        set(&mut config, "engine.lease_seconds", 3);
        set(&mut config, "engine.sweep_interval_seconds", 2);
        set(&mut config, "engine.retry_backoff_seconds", 1);
        adjust(&mut config);
        let namespace = config["kubernetes"]["namespace"]
            .as_str()
            .expect("a namespace")
            .to_owned();
        let path = folder.path().join("kiln.toml");
        std::fs::write(&path, config.to_string()).expect("the configuration");

        let client = kube::Client::try_default().await.expect("KUBECONFIG");
        let pods = Pods::record(client, &namespace, &name).await;
        let token = Self::create_token(&path).await;
        Self {
            name,
            pods,
            entrance,
            config: path,
            token,
            admin: admin.clone(),
            database,
            replicas: Mutex::default(),
            folder,
        }
    }

    async fn create_token(config: &Path) -> String {
        let migrated = program(config).arg("migrate").status().await.expect("kiln runs");
        assert!(migrated.success(), "kiln migrate: {migrated}");
        let output = program(config)
            .args(["token", "create", "--scope", "project:admin"])
            .output()
            .await;
        let output = output.expect("kiln runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kiln token create: {said}");
        String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
    }

    /// Starts a replica and waits until it is ready.
    pub(in crate::cluster) async fn start(&self) -> Arc<Replica> {
        let replica = self.start_on(Path::new(&variable("KILN_TEST_KUBECONFIG"))).await;
        replica.wait_until_ready().await;
        replica
    }

    /// Starts a replica with these variables in its environment and waits until it is ready.
    pub(in crate::cluster) async fn start_with(&self, environment: Vec<(String, String)>) -> Arc<Replica> {
        let kubeconfig = variable("KILN_TEST_KUBECONFIG");
        let replica = self.start_as("api,worker", Path::new(&kubeconfig), environment).await;
        replica.wait_until_ready().await;
        replica
    }

    /// Starts a replica with this kubeconfig; it needn't become ready.
    pub(in crate::cluster) async fn start_on(&self, kubeconfig: &Path) -> Arc<Replica> {
        self.start_as("api,worker", kubeconfig, Vec::new()).await
    }

    /// Starts a replica that does only this.
    pub(in crate::cluster) async fn start_roles(&self, roles: &str) -> Arc<Replica> {
        let kubeconfig = variable("KILN_TEST_KUBECONFIG");
        self.start_as(roles, Path::new(&kubeconfig), Vec::new()).await
    }

    async fn start_as(&self, roles: &str, kubeconfig: &Path, environment: Vec<(String, String)>) -> Arc<Replica> {
        let number = self.replicas().len();
        let log = self.folder.path().join(format!("replica-{number}.log"));
        let replica = Replica::start(&self.config, roles, kubeconfig, log, &self.token, environment).await;
        self.entrance.add(&replica.address);
        let replica = Arc::new(replica);
        self.replicas
            .lock()
            .expect("no panic meanwhile")
            .push(Arc::clone(&replica));
        replica
    }

    /// A name for an image in the cluster's registry that nobody else uses.
    pub(in crate::cluster) fn image(&self, name: &str) -> String {
        format!("{}/{}/{name}:1", variable("KILN_TEST_REGISTRY"), self.name)
    }

    /// A folder that goes with the installation.
    pub(in crate::cluster) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// How far the build step of a build's first attempt is in the journal, as it is stored.
    pub(in crate::cluster) async fn log_cursor(&self, build: &str) -> serde_json::Value {
        let mut connection = PgConnection::connect(self.database.as_str()).await.expect("connects");
        // There is no attempt before the build was claimed, and nothing of a step before it began.
        let cursor: Option<Option<serde_json::Value>> =
            sqlx::query_scalar("SELECT log_cursor->'build' FROM attempts WHERE build_id = $1 AND number = 1")
                .bind(build.parse::<Uuid>().expect("an id"))
                .fetch_optional(&mut connection)
                .await
                .expect("reads");
        cursor.flatten().unwrap_or_default()
    }

    fn replicas(&self) -> Vec<Arc<Replica>> {
        self.replicas.lock().expect("no panic meanwhile").clone()
    }

    /// No live build, no pod, and replicas that end when they are told to.
    async fn expect_nothing_left(&self) {
        let mut connection = PgConnection::connect(self.database.as_str()).await.expect("connects");
        let live: Vec<(Uuid, String)> = sqlx::query_as(
            "SELECT id, state::text FROM builds WHERE state::text NOT IN ('succeeded', 'failed', 'cancelled')",
        )
        .fetch_all(&mut connection)
        .await
        .expect("reads");
        assert!(live.is_empty(), "live builds are left: {live:?}");
        self.pods.wait_until_none(None, CLEARED).await;
        for replica in self.replicas() {
            if replica.is_up() {
                let status = replica.terminate().await;
                assert!(status.success(), "SIGTERM: {status}");
            }
        }
    }

    /// Prints what helps to understand a failure.
    async fn tell(&self) {
        for (number, replica) in self.replicas().iter().enumerate() {
            eprintln!("---- {}, replica {number}:\n{}", self.name, replica.log_tail());
        }
        eprintln!("---- {}, pods left:\n{}", self.name, self.pods.clear().await);
    }

    async fn remove(&self) {
        for replica in self.replicas() {
            if replica.is_up() {
                replica.kill().await;
            }
        }
        self.pods.clear().await;
        execute(&self.admin, format!("DROP DATABASE \"{}\" WITH (FORCE)", self.name)).await;
    }
}

async fn execute(database: &Url, statement: String) {
    let mut connection = PgConnection::connect(database.as_str()).await.expect("connects");
    let done = sqlx::query(AssertSqlSafe(statement)).execute(&mut connection).await;
    done.expect("the database takes the statement");
}
