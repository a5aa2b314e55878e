//! From builds to pods, by one replica and by three, beside raw creation of the same pods on the same API server.
//!
//! - *Burst*: a full queue, from the first claim to the moment when a watch has told of the last pod; the ceiling is a
//!   client that creates the same pods with as many requests in flight and does nothing else.
//! - *Latency*: POST to the news of the pod, at a steady rate; the ceiling is the same for a pod that is posted
//!   straight to the API server. The two take turns within each interval.
//!
//! The pods name a scheduler that isn't there, so that they only ever exist.

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
#[path = "../common/spread.rs"]
mod spread;
#[path = "../common/stats.rs"]
mod stats;
#[path = "../common/table.rs"]
mod table;

mod burst;
mod latency;

use anyhow::Context as _;
use client::Caller;
use cluster::{Cluster, INSTALLATION, as_sent};
use configuration::{configuration, namespace};
use database::Database;
use kiln::Kiln;
use serde::Deserialize;
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};

const KILN: &str = "bench";
const RAW: &str = "bench-raw";
/// Requests in flight, for Kiln and for the ceiling.
const IN_FLIGHT: usize = 64;

/// As much of a pod as is needed here.
#[derive(Clone, Deserialize)]
struct Pod {
    metadata: Metadata,
}

#[derive(Clone, Deserialize)]
struct Metadata {
    name: String,
}

/// Everything that the parts share.
struct Bench {
    cluster: Cluster,
    /// Kiln's configuration for one database.
    configuration: String,
    database: Database,
    token: String,
    /// A pod that Kiln made, as it sent it.
    pod: Value,
}

fn main() -> anyhow::Result<()> {
    kiln::prepare();
    tokio::runtime::Runtime::new()?.block_on(measure())
}

async fn measure() -> anyhow::Result<()> {
    let bench = Bench::prepare().await?;
    let outcome = async {
        burst::measure(&bench).await?;
        latency::measure(&bench).await
    };
    let outcome = outcome.await;
    bench.clear().await?;
    bench.database.drop_it().await?;
    outcome
}

impl Bench {
    async fn prepare() -> anyhow::Result<Self> {
        let database = Database::create("kiln_bench_launch").await?;
        kiln::run(&database.url, &["migrate"])?;
        let token = kiln::run(&database.url, &["token", "create"])?;
        let changes = format!(
            "[kubernetes]\nlaunch_concurrency = {IN_FLIGHT}\n[kubernetes.pod_template.spec]\nschedulerName = \"none\"\n\
             [engine]\nmax_live_builds = 1000000\nunscheduled_timeout_seconds = 3600\npending_timeout_seconds = 3600\n"
        );
        let configuration = configuration(&database.url, KILN, &changes)?;
        let mut bench = Self {
            cluster: Cluster::open(namespace(&configuration)).await?,
            configuration: configuration.to_string(),
            database,
            token,
            pod: Value::Null,
        };
        bench.clear().await?;
        bench.pod = bench.sample().await?;
        Ok(bench)
    }

    /// Has Kiln make one pod.
    async fn sample(&self) -> anyhow::Result<Value> {
        let mut pods = self.cluster.watch::<Pod>(&format!("{INSTALLATION}={KILN}")).await?;
        let server = self.serve(&["--roles", "api,worker"], "/readyz").await?;
        Caller::new(&server.base, &self.token).post(&build()).await?;
        let seen = pods.recv().await.context("the watch ended")?;
        let pod = self.cluster.pod(&seen.pod.metadata.name).await?;
        drop(server);
        self.clear().await?;
        Ok(as_sent(pod))
    }

    async fn serve(&self, arguments: &[&str], ready: &str) -> anyhow::Result<Kiln> {
        let environment = [("KUBECONFIG", self.cluster.kubeconfig.as_str())];
        Kiln::start(&self.configuration, arguments, &environment, ready).await
    }

    /// No pods, no builds. No replica may run.
    async fn clear(&self) -> anyhow::Result<()> {
        self.cluster
            .remove(&format!("{INSTALLATION} in ({KILN},{RAW})"))
            .await?;
        let mut connection = PgConnection::connect(self.database.url.as_str()).await?;
        sqlx::raw_sql("TRUNCATE builds, attempts, journal, replicas, idempotency_keys CASCADE")
            .execute(&mut connection)
            .await?;
        Ok(())
    }
}

/// A build as CI would ask for it.
fn build() -> Value {
    json!({
        "source": {"type": "git", "url": "https://git.example.com/team/app.git", "ref": "main"},
        "build_args": {"VERSION": "1.2.3"},
        "labels": {"org.opencontainers.image.revision": "0123456789abcdef"},
        "images": ["registry.example.com/team/app:1.2.3"],
    })
}
