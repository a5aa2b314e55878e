//! How long a caller waits for a pod when there is nothing else to do.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context as _, bail};
use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{Connection as _, PgConnection};
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
    let mut table = Table::new(["rate of each", "from POST to", "p50", "p90", "p99", "largest"]);
    for (rate, usual) in RATES {
        let seconds = if seconds == 0 { usual } else { seconds };
        let server = bench.serve(&["--roles", "api,worker"], "/readyz").await?;
        let idle = resident(server.id())?;
        let waits = at_rate(bench, &server.base, rate, rate * seconds).await?;
        let after = resident(server.id())?;
        drop(server);
        bench.clear().await?;
        for (name, waits) in waits {
            let at = |q| format!("{:.1}", quantile(&waits, q));
            let rate = format!("{rate}/s for {seconds} s");
            table.row([rate, name.to_owned(), at(0.5), at(0.9), at(0.99), at(1.0)]);
        }
        eprintln!("{rate}/s: Kiln's resident memory went from {idle:.0} to {after:.0} MiB");
    }
    print!("{table}");
    Ok(())
}

/// What was waited for, and how long each time, in ms.
type Waits = Vec<(&'static str, Vec<f64>)>;

async fn at_rate(bench: &Bench, base: &str, rate: u32, count: u32) -> anyhow::Result<Waits> {
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
            let posted = Utc::now();
            let id = caller.post(&build()).await?;
            anyhow::Ok((id, posted, Utc::now()))
        });
        ticks.tick().await;
        let name = format!("bench-raw-{number:05}");
        let pod = renamed(&bench.pod, &name, RAW);
        let cluster = bench.cluster.clone();
        by_hand.spawn(async move {
            let posted = Utc::now();
            cluster.create(&pod).await?;
            anyhow::Ok((name, posted))
        });
    }
    let kiln: Vec<_> = by_kiln.join_all().await.into_iter().collect::<Result<_, _>>()?;
    let raw: Vec<_> = by_hand.join_all().await.into_iter().collect::<Result<_, _>>()?;

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
    let claimed = claims(bench).await?;

    let wait = |known: &HashMap<String, DateTime<Utc>>, name: &str, posted: DateTime<Utc>| {
        let at = known.get(name).with_context(|| format!("no news of {name}"))?;
        anyhow::Ok(ms(*at - posted))
    };
    let raw = raw.iter().map(|(name, posted)| wait(&created, name, *posted));
    let answered = kiln.iter().map(|(_, posted, answered)| ms(*answered - *posted));
    let claimed = kiln.iter().map(|(id, posted, _)| wait(&claimed, id, *posted));
    let launched = kiln
        .iter()
        .map(|(id, posted, _)| wait(&created, &format!("kiln-{id}-1"), *posted));
    Ok(vec![
        ("raw pod", raw.collect::<Result<_, _>>()?),
        ("Kiln's answer", answered.collect()),
        ("Kiln's claim", claimed.collect::<Result<_, _>>()?),
        ("**Kiln's pod**", launched.collect::<Result<_, _>>()?),
    ])
}

/// When each build was claimed from the queue.
async fn claims(bench: &Bench) -> anyhow::Result<HashMap<String, DateTime<Utc>>> {
    let mut connection = PgConnection::connect(bench.database.url.as_str()).await?;
    let rows: Vec<(String, DateTime<Utc>)> = sqlx::query_as("SELECT build_id::text, created_at FROM attempts")
        .fetch_all(&mut connection)
        .await?;
    Ok(rows.into_iter().collect())
}

fn ms(wait: TimeDelta) -> f64 {
    wait.as_seconds_f64() * 1e3
}
