//! Builds from the queue to success, one after the other on many places, for minutes.

use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use sqlx::PgPool;

use crate::{
    Bench, RAW, build,
    client::Caller,
    cluster::{INSTALLATION, renamed},
    kiln::{Kiln, resident},
    kubelet::{Kubelet, Role},
    setting::setting,
    stats::quantile,
    table::Table,
};

/// Builds that are open at the same time, queued ones included; and pods for the ceiling.
const OPEN: usize = 64;
/// How long the ceiling is measured, before and after.
const RAW_SECONDS: u64 = 15;

pub(crate) async fn measure(bench: &Bench) -> anyhow::Result<()> {
    let seconds: u64 = setting("KILN_BENCH_SUSTAINED_SECONDS", 300)?;
    let mut raw = vec![by_hand(bench).await?];
    let server = bench.serve().await?;
    let kubelet = bench.kubelet(&server, Role::Succeed).await?;
    let caller = bench.caller(&server);
    let begun = Instant::now();
    let mut minutes = Vec::new();
    while begun.elapsed() < Duration::from_secs(seconds) {
        let left = Duration::from_secs(seconds).saturating_sub(begun.elapsed());
        minutes.push(keep_busy(bench, &caller, &kubelet, left.min(Duration::from_mins(1))).await?);
    }
    bench.settle().await?;
    let lives = lives(&bench.pool).await?;
    let memory = memory(&server)?;
    drop((kubelet, server));
    bench.clear().await?;
    raw.push(by_hand(bench).await?);

    println!(
        "Builds from POST to success, pods removed, each with a log of 100 lines, {OPEN} open at any time, for {seconds} s; and \
         the same pods created, reported running and ended, and deleted, without Kiln:\n"
    );
    let mut table = Table::new(["", "per minute", "slowest minute", "p50 s", "p99 s", "of pods alone"]);
    let ceiling = quantile(&raw, 0.5);
    table.row([
        "pods alone".to_owned(),
        format!("{ceiling:.0}"),
        format!("{:.0}", quantile(&raw, 0.0)),
        String::new(),
        String::new(),
        String::new(),
    ]);
    let median = quantile(&minutes, 0.5);
    table.row([
        "**Kiln**, whole builds".to_owned(),
        format!("{median:.0}"),
        format!("{:.0}", quantile(&minutes, 0.0)),
        format!("{:.2}", quantile(&lives, 0.5)),
        format!("{:.2}", quantile(&lives, 0.99)),
        format!("**{:.2}**", median / ceiling),
    ]);
    print!("{table}");
    println!(
        "Kiln's resident memory after {} builds: {memory:.0} MiB.\n",
        lives.len()
    );
    Ok(())
}

fn memory(server: &Kiln) -> anyhow::Result<f64> {
    resident(server.id())
}

/// Keeps that many builds open, and gives how many ended in a minute.
pub(crate) async fn keep_busy(
    bench: &Bench,
    caller: &Caller,
    kubelet: &Kubelet,
    time: Duration,
) -> anyhow::Result<f64> {
    let before = over(&bench.pool).await?;
    let begun = Instant::now();
    let request = build();
    while begun.elapsed() < time {
        kubelet.check()?;
        let missing = OPEN.saturating_sub(bench.open().await?);
        stream::iter(0..missing)
            .map(|_| caller.post(&request))
            .buffer_unordered(16)
            .try_for_each(async |_| Ok(()))
            .await?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let ended = over(&bench.pool).await? - before;
    Ok(ended as f64 * 60.0 / begun.elapsed().as_secs_f64())
}

/// Builds that succeeded.
async fn over(pool: &PgPool) -> anyhow::Result<i64> {
    let over = "SELECT count(*) FROM builds WHERE state = 'succeeded' AND finished_at IS NOT NULL";
    Ok(sqlx::query_scalar(over).fetch_one(pool).await?)
}

/// Seconds from each request to the build's success.
async fn lives(pool: &PgPool) -> anyhow::Result<Vec<f64>> {
    let lives = "SELECT extract(epoch FROM finished_at - created_at)::float8 FROM builds WHERE state = 'succeeded'";
    Ok(sqlx::query_scalar(lives).fetch_all(pool).await?)
}

/// Pods that live and are gone in a minute, without Kiln.
async fn by_hand(bench: &Bench) -> anyhow::Result<f64> {
    let selector = format!("{INSTALLATION}={RAW}");
    let kubelet = Kubelet::start(&bench.cluster, &bench.namespace, &selector, None, Role::RemoveToo).await?;
    let begun = Instant::now();
    let mut created = 0;
    while begun.elapsed() < Duration::from_secs(RAW_SECONDS) {
        kubelet.check()?;
        let missing = OPEN.saturating_sub(created - kubelet.played());
        let pods = (created..created + missing).map(|number| renamed(&bench.pod, &format!("{RAW}-{number:06}"), RAW));
        stream::iter(pods)
            .map(|pod| async move { bench.cluster.create(&pod).await })
            .buffer_unordered(16)
            .try_for_each(async |()| Ok(()))
            .await?;
        created += missing;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let played = kubelet.played();
    let per_minute = played as f64 * 60.0 / begun.elapsed().as_secs_f64();
    drop(kubelet);
    bench.clear().await?;
    Ok(per_minute)
}
