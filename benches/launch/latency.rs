//! How long a caller waits for a pod when there is nothing else to do.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context as _, bail};
use chrono::{DateTime, Utc};
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};

use crate::{
    Bench, KILN, Pod, RAW, build,
    client::Caller,
    cluster::{INSTALLATION, renamed},
    kiln::resident,
    setting::setting,
    stats::quantile,
    table::Table,
};

/// Per second, and for how many seconds unless set otherwise.
const RATES: [(u32, u32); 2] = [(5, 60), (50, 15)];
const LIMIT: Duration = Duration::from_secs(30);

pub(crate) async fn measure(bench: &Bench) -> anyhow::Result<()> {
    let seconds: u32 = setting("KILN_BENCH_LATENCY_SECONDS", 0)?;
    println!("POST → a watch tells of the pod, in ms; Kiln and raw creation take turns:\n");
    let mut table = Table::new(["rate of each", "", "p50", "p90", "p99", "largest"]);
    for (rate, usual) in RATES {
        let seconds = if seconds == 0 { usual } else { seconds };
        let server = bench.serve(&["--roles", "api,worker"], "/readyz").await?;
        let idle = resident(server.id())?;
        let (kiln, raw) = at_rate(bench, &server.base, rate, rate * seconds).await?;
        let after = resident(server.id())?;
        drop(server);
        bench.clear().await?;
        for (name, waits) in [("raw pod", raw), ("**Kiln**", kiln)] {
            let ms = |q| format!("{:.1}", quantile(&waits, q));
            let rate = format!("{rate}/s for {seconds} s");
            table.row([rate, name.to_owned(), ms(0.5), ms(0.9), ms(0.99), ms(1.0)]);
        }
        eprintln!("{rate}/s: Kiln's resident memory went from {idle:.0} to {after:.0} MiB");
    }
    print!("{table}");
    Ok(())
}

/// When pods were asked for, by what their names contain.
type Posted = Vec<(String, DateTime<Utc>)>;

async fn at_rate(bench: &Bench, base: &str, rate: u32, count: u32) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    let selector = format!("{INSTALLATION} in ({KILN},{RAW})");
    let mut pods = bench.cluster.watch::<Pod>(&selector).await?;
    let caller = Caller::new(base, &bench.token);
    // Connections are there before the first one counts.
    caller.post(&build()).await?;
    bench
        .cluster
        .create(&renamed(&bench.pod, "bench-raw-first", RAW))
        .await?;

    let (mut by_kiln, mut by_hand) = (JoinSet::new(), JoinSet::new());
    // Half an interval apart.
    let mut ticks = interval_at(
        Instant::now() + Duration::from_secs(1),
        Duration::from_secs(1) / (rate * 2),
    );
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in 0..count {
        ticks.tick().await;
        let caller = caller.clone();
        by_kiln.spawn(async move {
            let at = Utc::now();
            anyhow::Ok((caller.post(&build()).await?, at))
        });
        ticks.tick().await;
        let name = format!("bench-raw-{number:05}");
        let pod = renamed(&bench.pod, &name, RAW);
        let cluster = bench.cluster.clone();
        by_hand.spawn(async move {
            let at = Utc::now();
            cluster.create(&pod).await?;
            anyhow::Ok((name, at))
        });
    }
    let kiln: Posted = by_kiln.join_all().await.into_iter().collect::<Result<_, _>>()?;
    let raw: Posted = by_hand.join_all().await.into_iter().collect::<Result<_, _>>()?;

    let mut created = HashMap::new();
    // Those before the first one, too.
    let expected = kiln.len() + raw.len() + 2;
    while created.len() < expected {
        let Ok(seen) = timeout(LIMIT, pods.recv()).await else {
            bail!("{} of {expected} pods after {} s", created.len(), LIMIT.as_secs());
        };
        let seen = seen.context("the watch ended")?;
        if seen.created {
            created.insert(seen.pod.metadata.name, seen.at);
        }
    }
    let waits = |posted: Posted, name: fn(&str) -> String| -> anyhow::Result<Vec<f64>> {
        let wait = |(id, at): (String, DateTime<Utc>)| {
            let created = created.get(&name(&id)).with_context(|| format!("no pod for {id}"))?;
            Ok((*created - at).as_seconds_f64() * 1e3)
        };
        posted.into_iter().map(wait).collect()
    };
    Ok((waits(kiln, |id| format!("kiln-{id}-1"))?, waits(raw, str::to_owned)?))
}
