//! Real builds on the real cluster: from POST to the pod, to the first log line at a subscriber and to success, beside
//! the very same pod created straight at the API server. The difference is what Kiln adds.

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

mod subscriber;

use std::time::Duration;

use anyhow::{Context as _, ensure};
use chrono::{DateTime, Utc};
use client::Caller;
use cluster::{Cluster, INSTALLATION, Seen, as_sent, renamed};
use configuration::{configuration, namespace};
use database::Database;
use kiln::{Kiln, resident};
use serde::Deserialize;
use serde_json::{Value, json};
use setting::{required, setting};
use stats::quantile;
use table::Table;
use tokio::{sync::mpsc::UnboundedReceiver, time::timeout};

const KILN: &str = "bench-life";
const BARE: &str = "bench-bare";
const LIMIT: Duration = Duration::from_mins(3);

#[derive(Clone, Deserialize)]
struct Pod {
    metadata: Metadata,
    status: Status,
}

#[derive(Clone, Deserialize)]
struct Metadata {
    name: String,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    phase: String,
    #[serde(default)]
    container_statuses: Vec<ContainerStatus>,
}

#[derive(Clone, Deserialize)]
struct ContainerStatus {
    state: Value,
}

impl Pod {
    /// Whether the build container has ended. The kubelet sets the pod's phase about a second later; Kiln doesn't wait
    /// for that, so neither may what it is compared with.
    fn has_ended(&self) -> bool {
        let containers = &self.status.container_statuses;
        let ended = |container: &ContainerStatus| !container.state["terminated"].is_null();
        !containers.is_empty() && containers.iter().all(ended)
    }
}

/// One bare pod. Times in seconds since its creation was asked for.
struct Bare {
    /// Its build container has ended.
    ended: f64,
    /// Its phase says so.
    finished: f64,
}

/// One build by Kiln. Times in seconds since the POST.
struct Build {
    created: f64,
    first_line: f64,
    succeeded: f64,
    /// How long lines took to arrive that say when they were printed, in ms.
    waits: Vec<f64>,
    pod: Value,
}

fn main() -> anyhow::Result<()> {
    kiln::prepare();
    tokio::runtime::Runtime::new()?.block_on(measure())
}

async fn measure() -> anyhow::Result<()> {
    let runs: u32 = setting("KILN_BENCH_RUNS", 5)?;
    let database = Database::create("kiln_bench_life").await?;
    kiln::run(&database.url, &["migrate"])?;
    let token = kiln::run(&database.url, &["token", "create"])?;
    // One node, so that its images are there after the first build.
    let node = required("KILN_BENCH_NODE", "the node to build on")?;
    let changes = format!("[kubernetes.pod_template.spec.nodeSelector]\n\"kubernetes.io/hostname\" = \"{node}\"\n");
    let configuration = configuration(&database.url, KILN, &changes)?;
    let cluster = Cluster::open(namespace(&configuration)).await?;
    let ours = format!("{INSTALLATION} in ({KILN},{BARE})");
    cluster.remove(&ours).await?;

    let outcome = compare(&cluster, &configuration.to_string(), &token, runs).await;
    cluster.remove(&ours).await?;
    database.drop_it().await?;
    outcome
}

async fn compare(cluster: &Cluster, configuration: &str, token: &str, runs: u32) -> anyhow::Result<()> {
    let environment = [("KUBECONFIG", cluster.kubeconfig.as_str())];
    let server = Kiln::start(configuration, &["--roles", "api,worker"], &environment, "/readyz").await?;
    let caller = Caller::new(&server.base, token);
    let request = request()?;

    let first = by_kiln(cluster, &caller, &request).await?;
    println!(
        "One image by rootless BuildKit, in seconds; Kiln and the bare pod (the same specification) take turns. A \
         first build, not counted, took {:.1} s.\n",
        first.succeeded
    );
    let mut table = Table::new([
        "run",
        "POST → pod created",
        "POST → first log line at a subscriber",
        "POST → succeeded",
        "bare pod: create → container ended",
        "bare pod: create → phase",
        "Kiln adds",
    ]);
    let mut columns = [const { Vec::new() }; 6];
    for run in 0..runs {
        let (build, bare) = if run % 2 == 0 {
            let bare = by_hand(cluster, &first.pod, run).await?;
            (by_kiln(cluster, &caller, &request).await?, bare)
        } else {
            let build = by_kiln(cluster, &caller, &request).await?;
            (build, by_hand(cluster, &first.pod, run).await?)
        };
        let values = [
            build.created,
            build.first_line,
            build.succeeded,
            bare.ended,
            bare.finished,
            build.succeeded - bare.ended,
        ];
        columns
            .iter_mut()
            .zip(values)
            .for_each(|(column, value)| column.push(value));
        table.row(cells((run + 1).to_string(), values));
    }
    let median = columns.each_ref().map(|column| quantile(column, 0.5));
    table.row(cells("**median**".to_owned(), median));
    print!("{table}");
    println!(
        "The medians of Kiln's success and of the container's end differ by {:+.2} s. Resident memory of Kiln at the end: {:.0} MiB.",
        median[2] - median[3],
        resident(server.id())?
    );
    delivery(cluster, &caller, request).await
}

/// From a line that a real pod prints to the subscriber.
async fn delivery(cluster: &Cluster, caller: &Caller, mut request: Value) -> anyhow::Result<()> {
    const LINES: usize = 200;
    let base = required("KILN_TEST_BASE_IMAGE", "an image to begin with")?;
    // The pod's clock of seconds since the start is this program's, too, and any shell can print it.
    let print = format!("i=0; while [ $i -lt {LINES} ]; do cat /proc/uptime; sleep 0.05; i=$((i+1)); done");
    request["source"]["files"]["Dockerfile"] = format!("FROM {base}\nRUN {print}\n").into();
    let waits = by_kiln(cluster, caller, &request).await?.waits;
    ensure!(
        waits.len() == LINES,
        "{} of {LINES} lines say when they were printed",
        waits.len()
    );
    let mut table = Table::new(["lines", "p50 ms", "p90 ms", "p99 ms", "largest ms"]);
    let at = |q| format!("{:.0}", quantile(&waits, q));
    table.row([LINES.to_string(), at(0.5), at(0.9), at(0.99), at(1.0)]);
    println!(
        "\nPrinted in a `RUN` of the one build in its pod → read by a subscriber; the clock ticks every 10 ms:\n\n{table}"
    );
    Ok(())
}

fn cells(name: String, values: [f64; 6]) -> [String; 7] {
    let [created, first_line, succeeded, ended, finished, added] = values;
    [
        name,
        format!("{created:.3}"),
        format!("{first_line:.2}"),
        format!("{succeeded:.2}"),
        format!("{ended:.2}"),
        format!("{finished:.2}"),
        format!("{added:+.2}"),
    ]
}

/// A small image on the base image that the cluster's registry has, pushed to that registry.
fn request() -> anyhow::Result<Value> {
    let registry = required("KILN_TEST_REGISTRY", "a registry to push to")?;
    let base = required("KILN_TEST_BASE_IMAGE", "an image to begin with")?;
    let dockerfile = format!("FROM {base}\nCOPY greeting /greeting\nRUN cat /greeting && sha256sum /greeting > /sum\n");
    Ok(json!({
        "source": {"type": "inline", "files": {"Dockerfile": dockerfile, "greeting": "Good day!\n"}},
        "images": [format!("{registry}/bench/life:1")],
    }))
}

async fn by_kiln(cluster: &Cluster, caller: &Caller, request: &Value) -> anyhow::Result<Build> {
    let mut pods = cluster.watch::<Pod>(&format!("{INSTALLATION}={KILN}")).await?;
    let begun = Utc::now();
    let build = caller.post(request).await?;
    let followed = tokio::spawn(subscriber::follow(caller.clone(), build.clone()));
    let name = format!("kiln-{build}-1");
    let created = first(&mut pods, |seen| seen.created && seen.pod.metadata.name == name).await?;
    let pod = as_sent(cluster.pod(&name).await?);
    let followed = timeout(LIMIT, followed).await.context("the build doesn't end")???;
    let end = &followed.end;
    ensure!(
        end.state == "succeeded",
        "the build is {}: {:?}",
        end.state,
        end.failure
    );
    let since = |at: DateTime<Utc>| (at - begun).as_seconds_f64();
    Ok(Build {
        created: since(created),
        first_line: since(followed.first_line.context("the build printed nothing")?),
        succeeded: since(followed.ended),
        waits: followed.waits,
        pod,
    })
}

async fn by_hand(cluster: &Cluster, pod: &Value, run: u32) -> anyhow::Result<Bare> {
    let name = format!("{BARE}-{run}");
    let mut pods = cluster.watch::<Pod>(&format!("{INSTALLATION}={BARE}")).await?;
    let pod = renamed(pod, &name, BARE);
    let begun = Utc::now();
    cluster.create(&pod).await?;
    let mut ended = None;
    let finished = first(&mut pods, |seen| {
        if seen.pod.has_ended() {
            ended.get_or_insert(seen.at);
        }
        ["Succeeded", "Failed"].contains(&seen.pod.status.phase.as_str())
    });
    let finished = finished.await?;
    let status = &cluster.pod(&name).await?["status"];
    ensure!(status["phase"] == "Succeeded", "the bare pod failed: {status}");
    cluster.remove(&format!("{INSTALLATION}={BARE}")).await?;
    let since = |at: DateTime<Utc>| (at - begun).as_seconds_f64();
    Ok(Bare {
        ended: since(ended.context("no container was seen to end")?),
        finished: since(finished),
    })
}

/// When the first such news arrived.
async fn first(
    pods: &mut UnboundedReceiver<Seen<Pod>>,
    mut wanted: impl FnMut(&Seen<Pod>) -> bool,
) -> anyhow::Result<DateTime<Utc>> {
    let found = async {
        loop {
            let seen = pods.recv().await.context("the watch ended")?;
            if wanted(&seen) {
                return anyhow::Ok(seen.at);
            }
        }
    };
    timeout(LIMIT, found).await.context("the pod doesn't get there")?
}
