//! From a line that a build prints to the frame that a subscriber has read: pods that are processes of this machine and
//! run the real agent, one subscriber for each, all of it on loopback. Beside it the same printing programs whose lines
//! this program reads from a pipe: what the machine itself takes to hand a line on.

#[path = "../common/client.rs"]
mod client;
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
#[path = "../common/worker.rs"]
mod worker;

mod pod;
mod printer;

use std::{env, time::Duration};

use anyhow::Context as _;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio_util::io::StreamReader;

use client::Caller;
use database::Database;
use kiln::{Kiln, resident};
use pod::Pod;
use printer::{Printing, now_us};
use setting::{required, setting};
use stats::quantile;
use table::Table;
use worker::Worker;

/// Builds that print at the same time, and how often each does. The machine can't be asked for more than it has: many
/// builds print as much together as a few.
const CROWDS: [(usize, Duration); 3] = [
    (1, Duration::from_millis(50)),
    (50, Duration::from_millis(250)),
    (500, Duration::from_secs(2)),
];
/// Nothing takes longer after the last line was printed.
const LIMIT: Duration = Duration::from_mins(2);

fn main() -> anyhow::Result<()> {
    if let Ok(printing) = env::var(printer::PRINTING) {
        return printer::print(&serde_json::from_str(&printing)?);
    }
    kiln::prepare();
    tokio::runtime::Runtime::new()?.block_on(measure())
}

async fn measure() -> anyhow::Result<()> {
    let seconds: u32 = setting("KILN_BENCH_DELIVERY_SECONDS", 20)?;
    let mut table = Table::new([
        "builds",
        "lines of each",
        "",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "largest ms",
        "Kiln's memory, MiB",
    ]);
    for (builds, interval) in CROWDS {
        let printing = Printing {
            lines: u32::try_from(Duration::from_secs(seconds.into()).as_millis() / interval.as_millis())?,
            interval,
            begin_us: 0,
        };
        let piped = piped(builds, &printing).await?;
        let (followed, memory) = followed(builds, &printing).await?;
        for (name, waits, memory) in [
            ("a pipe, without Kiln", &piped, String::new()),
            (
                "**Kiln**: printed → read by a subscriber",
                &followed,
                format!("{memory:.0}"),
            ),
        ] {
            let at = |q| format!("{:.1}", quantile(waits, q));
            table.row([
                builds.to_string(),
                format!("{} in {} s", printing.lines, seconds),
                name.to_owned(),
                at(0.5),
                at(0.9),
                at(0.99),
                at(1.0),
                memory,
            ]);
        }
    }
    print!("{table}");
    Ok(())
}

/// How long each line took to arrive here from the printing programs themselves, in ms.
async fn piped(count: usize, printing: &Printing) -> anyhow::Result<Vec<f64>> {
    let printing = printing.clone().begins_soon(count);
    let mut programs = Vec::new();
    for _ in 0..count {
        programs.push(printer::spawn(&printing)?);
    }
    let printing = &printing;
    let read = programs.iter_mut().map(|program| {
        let output = program.stdout.take().context("it has an output");
        async move {
            let mut waits = Vec::new();
            let mut lines = BufReader::new(output?).lines();
            while waits.len() < usize::try_from(printing.lines)? {
                let line = lines.next_line().await?.context("it ended too soon")?;
                waits.push(wait(&line)?);
            }
            anyhow::Ok(waits)
        }
    });
    let waits = futures::future::try_join_all(read.collect::<Vec<_>>());
    let waits = tokio::time::timeout(LIMIT, waits).await.context("they don't end")??;
    Ok(waits.concat())
}

/// How long each line took to arrive at a subscriber, in ms, and the memory of the service.
async fn followed(count: usize, printing: &Printing) -> anyhow::Result<(Vec<f64>, f64)> {
    let agent = required("KILN_BENCH_AGENT", "the program kiln-agent")?;
    let database = Database::create("kiln_bench_delivery").await?;
    kiln::run(&database.url, &["migrate"])?;
    let configuration = format!("[database]\nurl = \"{}\"\n", database.url);
    let server = Kiln::start(&configuration, &["--roles", "api"], &[], "/healthz").await?;
    let token = kiln::run(&database.url, &["token", "create"])?;
    let caller = Caller::new(&server.base, &token);
    let request = json!({"source": {"type": "inline", "files": {"Dockerfile": "FROM scratch"}}, "push": false});
    stream::iter(0..count)
        .map(|_| caller.post(&request))
        .buffer_unordered(16)
        .try_for_each(async |_| Ok(()))
        .await?;
    let worker = Worker::start(&database.url).await?;
    let claimed = worker.claim(count).await?;
    let mut subscribers = Vec::new();
    for claimed in &claimed {
        let path = format!("{}/v1/builds/{}/events", caller.base, claimed.lease.attempt.build);
        let answer = caller.http.get(path).bearer_auth(&caller.token).send().await?;
        let body = answer.error_for_status()?.bytes_stream().map_err(std::io::Error::other);
        let lines = usize::try_from(printing.lines)?;
        subscribers.push(tokio::spawn(follow(StreamReader::new(body), lines)));
    }
    let printing = printing.clone().begins_soon(count);
    let mut pods = Vec::new();
    for claimed in &claimed {
        let attempt = claimed.lease.attempt;
        let token = worker.token(attempt).await?;
        pods.push(Pod::start(&agent, &server.base, attempt, &token, &printing)?);
    }
    let mut waits = Vec::new();
    for subscriber in subscribers {
        let outcome = tokio::time::timeout(LIMIT, subscriber).await;
        waits.extend(outcome.context("lines are missing")???);
    }
    let memory = resident(server.id())?;
    drop((pods, server));
    worker.pool.close().await;
    database.drop_it().await?;
    Ok((waits, memory))
}

/// Reads events (`text/event-stream`) until so many lines have come.
async fn follow(events: impl AsyncRead + Unpin, wanted: usize) -> anyhow::Result<Vec<f64>> {
    #[derive(Deserialize)]
    struct Log {
        text: String,
    }
    let mut lines = BufReader::new(events).lines();
    let (mut event, mut waits) = (String::new(), Vec::new());
    while waits.len() < wanted {
        let line = lines.next_line().await?.context("the stream of events broke off")?;
        if let Some(kind) = line.strip_prefix("event:") {
            kind.trim().clone_into(&mut event);
        } else if let Some(data) = line.strip_prefix("data:").filter(|_| event == "log") {
            for line in serde_json::from_str::<Log>(data)?.text.lines() {
                waits.push(wait(line)?);
            }
        }
    }
    Ok(waits)
}

/// Milliseconds since the line was printed, which says when that was.
#[expect(clippy::cast_precision_loss, reason = "milliseconds")]
fn wait(line: &str) -> anyhow::Result<f64> {
    let printed: i64 = line.parse().with_context(|| line.to_owned())?;
    Ok((now_us() - printed) as f64 / 1e3)
}
