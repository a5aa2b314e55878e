//! Whole builds by the thousand on the real API server, with a kubelet that is played: how many get from the queue to
//! success in a minute, with how much history behind them, in how much memory, and what one costs in statements and
//! calls. Beside it the same pods, played the same way, without Kiln.
//!
//! The pods name a scheduler that isn't there. This program reports for them that they run, pushes their logs as their
//! agents would, and reports their ends.

#![expect(clippy::cast_precision_loss, reason = "counts and sizes are far below 2^52")]

#[path = "../common/client.rs"]
mod client;
#[path = "../common/cluster.rs"]
mod cluster;
#[path = "../common/configuration.rs"]
mod configuration;
#[path = "../common/database.rs"]
mod database;
#[path = "../common/kiln.rs"]
mod kiln;
#[path = "../common/setting.rs"]
mod setting;
#[path = "../common/stats.rs"]
mod stats;
#[path = "../common/table.rs"]
mod table;

mod cost;
mod history;
mod kubelet;
mod memory;
mod proxy;
mod sustained;

use std::time::Duration;

use anyhow::Context as _;
use serde_json::{Value, json};
use sqlx::{PgPool, postgres::PgPoolOptions};

use client::Caller;
use cluster::{Cluster, INSTALLATION, as_sent};
use configuration::{configuration, namespace};
use database::Database;
use kiln::Kiln;
use kubelet::{Kubelet, Role};

const KILN: &str = "bench-engine";
const RAW: &str = "bench-engine-raw";

fn main() -> anyhow::Result<()> {
    kiln::prepare();
    tokio::runtime::Runtime::new()?.block_on(measure())
}

/// Everything that the parts share.
struct Bench {
    cluster: Cluster,
    /// Kiln's configuration for one database.
    configuration: String,
    database: Database,
    pool: PgPool,
    token: String,
    namespace: String,
    /// A pod that Kiln made, as it sent it, and the specification of its build, as it is stored.
    pod: Value,
    spec: Value,
}

async fn measure() -> anyhow::Result<()> {
    let bench = Bench::prepare().await?;
    let outcome = async {
        cost::measure(&bench).await?;
        memory::measure(&bench).await?;
        sustained::measure(&bench).await?;
        history::measure(&bench).await
    };
    let outcome = outcome.await;
    bench.clear().await?;
    bench.pool.close().await;
    bench.database.drop_it().await?;
    outcome
}

impl Bench {
    async fn prepare() -> anyhow::Result<Self> {
        let database = Database::create("kiln_bench_engine").await?;
        kiln::run(&database.url, &["migrate"])?;
        let token = kiln::run(&database.url, &["token", "create"])?;
        let pool = PgPoolOptions::new()
            .max_connections(4)
            .connect(database.url.as_str())
            .await?;
        let changes = "[kubernetes.pod_template.spec]\nschedulerName = \"none\"\n\
                       [engine]\nmax_live_builds = 1000000\nunscheduled_timeout_seconds = 3600\npending_timeout_seconds = 3600\n";
        let configuration = configuration(&database.url, KILN, changes)?;
        let mut bench = Self {
            cluster: Cluster::open(namespace(&configuration)).await?,
            namespace: namespace(&configuration).to_owned(),
            configuration: configuration.to_string(),
            database,
            pool,
            token,
            pod: Value::Null,
            spec: Value::Null,
        };
        bench.clear().await?;
        (bench.pod, bench.spec) = bench.sample().await?;
        Ok(bench)
    }

    /// Has Kiln make one pod.
    async fn sample(&self) -> anyhow::Result<(Value, Value)> {
        let mut pods = self
            .cluster
            .watch::<kubelet::Pod>(&format!("{INSTALLATION}={KILN}"))
            .await?;
        let server = self.serve().await?;
        self.caller(&server).post(&build()).await?;
        let seen = pods.recv().await.context("the watch ended")?;
        let pod = self.cluster.pod(&seen.pod.metadata.name).await?;
        drop(server);
        let spec = sqlx::query_scalar("SELECT spec FROM builds LIMIT 1")
            .fetch_one(&self.pool)
            .await?;
        self.clear().await?;
        Ok((as_sent(pod), spec))
    }

    async fn serve(&self) -> anyhow::Result<Kiln> {
        self.serve_by(&self.cluster.kubeconfig).await
    }

    async fn serve_by(&self, kubeconfig: &str) -> anyhow::Result<Kiln> {
        let environment = [("KUBECONFIG", kubeconfig)];
        Kiln::start(&self.configuration, &["--roles", "api,worker"], &environment, "/readyz").await
    }

    fn caller(&self, server: &Kiln) -> Caller {
        Caller::new(&server.base, &self.token)
    }

    /// Plays the kubelet for the pods of the builds.
    async fn kubelet(&self, server: &Kiln, role: Role) -> anyhow::Result<Kubelet> {
        let selector = format!("{INSTALLATION}={KILN}");
        Kubelet::start(&self.cluster, &self.namespace, &selector, Some(&server.base), role).await
    }

    /// Builds that aren't over.
    async fn open(&self) -> anyhow::Result<usize> {
        let open: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM builds WHERE state IN ('queued', 'starting', 'running', 'cancelling')",
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(usize::try_from(open)?)
    }

    /// Waits until every build is over.
    async fn settle(&self) -> anyhow::Result<()> {
        let settled = async {
            while self.open().await? > 0 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            anyhow::Ok(())
        };
        let settled = tokio::time::timeout(Duration::from_mins(2), settled).await;
        settled.context("builds are left that don't end")?
    }

    /// No pods, no builds. No replica may run.
    async fn clear(&self) -> anyhow::Result<()> {
        self.cluster
            .remove(&format!("{INSTALLATION} in ({KILN},{RAW})"))
            .await?;
        sqlx::raw_sql("TRUNCATE builds, attempts, journal, replicas, idempotency_keys CASCADE")
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}

/// A build that pushes no image: there is none, and no registry could confirm it.
fn build() -> Value {
    json!({
        "source": {"type": "git", "url": "https://git.example.com/team/app.git", "ref": "main"},
        "build_args": {"VERSION": "1.2.3"},
        "labels": {"org.opencontainers.image.revision": "0123456789abcdef"},
        "images": ["registry.example.com/team/app:1.2.3"],
        "push": false,
    })
}
