//! A full queue, and how soon all of its pods are there.

use std::{collections::HashSet, time::Duration};

use anyhow::{Context as _, ensure};
use chrono::{DateTime, Utc};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use sqlx::{Connection as _, PgConnection};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::{
    Bench, IN_FLIGHT, KILN, Pod, RAW, build,
    client::Caller,
    cluster::{INSTALLATION, Seen, renamed},
    kiln::resident,
    setting::setting,
    spread::Spread,
    table::Table,
};

const LIMIT: Duration = Duration::from_mins(3);
/// Replicas that empty the queue together.
const REPLICAS: [usize; 2] = [1, 3];

struct Burst {
    seconds: f64,
    /// Processor time and memory of all replicas.
    cpu_seconds: f64,
    idle_mib: f64,
    after_mib: f64,
}

pub(crate) async fn measure(bench: &Bench) -> anyhow::Result<()> {
    let builds: usize = setting("KILN_BENCH_BUILDS", 5000)?;
    let rounds: usize = setting("KILN_BENCH_BURST_ROUNDS", 3)?;
    #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
    let rate = |seconds: f64| builds as f64 / seconds;
    println!("{builds} queued builds → all pods created; medians of {rounds} alternating rounds (smallest–largest):\n");
    let mut table = Table::new([
        "",
        "seconds",
        "pods per second",
        "of raw",
        "Kiln's processor seconds",
        "MiB before",
        "MiB after",
    ]);
    for replicas in REPLICAS {
        let (mut kiln, mut raw) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            if round % 2 == 0 {
                raw.push(by_hand(bench, builds).await?);
                kiln.push(by_kiln(bench, builds, replicas).await?);
            } else {
                kiln.push(by_kiln(bench, builds, replicas).await?);
                raw.push(by_hand(bench, builds).await?);
            }
        }
        let ratios: Vec<f64> = kiln.iter().zip(&raw).map(|(kiln, raw)| raw / kiln.seconds).collect();
        let of = |value: fn(&Burst) -> f64| Spread::of(&kiln.iter().map(value).collect::<Vec<_>>());
        let rates: Vec<f64> = kiln.iter().map(|burst| rate(burst.seconds)).collect();
        let raw_rates: Vec<f64> = raw.iter().map(|seconds| rate(*seconds)).collect();
        table.row([
            format!("raw, {IN_FLIGHT} in flight"),
            format!("{:.1}", Spread::of(&raw)),
            format!("{:.0}", Spread::of(&raw_rates)),
            String::new(),
            String::new(),
            String::new(),
            String::new(),
        ]);
        table.row([
            match replicas {
                1 => "**Kiln**, one replica".to_owned(),
                _ => format!("**Kiln**, {replicas} replicas"),
            },
            format!("{:.1}", of(|burst| burst.seconds)),
            format!("{:.0}", Spread::of(&rates)),
            format!("**{:.2}**", Spread::of(&ratios)),
            format!("{:.2}", of(|burst| burst.cpu_seconds).median),
            format!("{:.0}", of(|burst| burst.idle_mib).median),
            format!("{:.0}", of(|burst| burst.after_mib).median),
        ]);
    }
    println!("{table}");
    Ok(())
}

async fn by_kiln(bench: &Bench, builds: usize, replicas: usize) -> anyhow::Result<Burst> {
    {
        let server = bench.serve(&["--roles", "api"], "/healthz").await?;
        let caller = Caller::new(&server.base, &bench.token);
        let request = build();
        stream::iter(0..builds)
            .map(|_| caller.post(&request))
            .buffer_unordered(16)
            .try_for_each(async |_| Ok(()))
            .await?;
    }
    let mut pods = bench.cluster.watch::<Pod>(&format!("{INSTALLATION}={KILN}")).await?;
    // Listening is all that is waited for: the queue is being emptied from the start.
    let servers = (0..replicas).map(|_| bench.serve(&["--roles", "api,worker"], "/healthz"));
    let servers = futures::future::try_join_all(servers).await?;
    let sum = |of: fn(u32) -> anyhow::Result<f64>| {
        servers
            .iter()
            .map(|server| of(server.id()))
            .sum::<anyhow::Result<f64>>()
    };
    let idle_mib = sum(resident)?;
    let cpu_before = sum(cpu_seconds)?;
    let last = last_of(&mut pods, builds).await?;
    let cpu_after = sum(cpu_seconds)?;
    let after_mib = sum(resident)?;
    drop(servers);

    let mut connection = PgConnection::connect(bench.database.url.as_str()).await?;
    let first: DateTime<Utc> = sqlx::query_scalar("SELECT min(created_at) FROM attempts")
        .fetch_one(&mut connection)
        .await?;
    bench.clear().await?;
    Ok(Burst {
        seconds: (last - first).as_seconds_f64(),
        cpu_seconds: cpu_after - cpu_before,
        idle_mib,
        after_mib,
    })
}

async fn by_hand(bench: &Bench, pods: usize) -> anyhow::Result<f64> {
    let mut seen = bench.cluster.watch::<Pod>(&format!("{INSTALLATION}={RAW}")).await?;
    let bodies: Vec<_> = (0..pods)
        .map(|number| renamed(&bench.pod, &format!("{RAW}-{number:05}"), RAW))
        .collect();
    let first = Utc::now();
    stream::iter(&bodies)
        .map(|body| bench.cluster.create(body))
        .buffer_unordered(IN_FLIGHT)
        .try_for_each(async |()| Ok(()))
        .await?;
    let last = last_of(&mut seen, pods).await?;
    bench.clear().await?;
    Ok((last - first).as_seconds_f64())
}

/// When the last of so many pods was told of.
async fn last_of(pods: &mut UnboundedReceiver<Seen<Pod>>, count: usize) -> anyhow::Result<DateTime<Utc>> {
    let mut names = HashSet::new();
    let all = async {
        loop {
            let seen = pods.recv().await.context("the watch ended")?;
            if seen.created {
                ensure!(names.insert(seen.pod.metadata.name), "a pod was created twice");
            }
            if names.len() == count {
                return Ok(seen.at);
            }
        }
    };
    let last = tokio::time::timeout(LIMIT, all).await;
    last.with_context(|| format!("{} of {count} pods after {} s", names.len(), LIMIT.as_secs()))?
}

/// Processor time that a process has used.
fn cpu_seconds(process: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // Counted after the name in parentheses: user and system time are the 12th and 13th field, in ticks.
    let fields = stat.rsplit_once(')').context("/proc/stat")?.1;
    let ticks: Vec<f64> = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse().ok())
        .collect();
    // A tick is 10 ms for every program, whatever the kernel counts in.
    Ok(ticks.iter().sum::<f64>() / 100.0)
}
