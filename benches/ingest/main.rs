//! Logs on their way in: builds push what they print as the agent does, in compressed pieces of at most 1 MiB, each
//! sent when the one before is durable. Beside it, with the very bytes that Kiln stored: compressing them as Kiln does and
//! COPY into a table like the journal, in one transaction, and nothing else. The two take turns.

#![expect(clippy::cast_precision_loss, reason = "sizes are far below 2^52")]

#[path = "../common/client.rs"]
mod client;
#[path = "../common/database.rs"]
mod database;
#[path = "../common/kiln.rs"]
mod kiln;
#[path = "../common/lines.rs"]
mod lines;
#[path = "../common/setting.rs"]
mod setting;
#[path = "../common/spread.rs"]
mod spread;
#[path = "../common/stats.rs"]
mod stats;
#[path = "../common/table.rs"]
mod table;
#[path = "../common/worker.rs"]
mod worker;

mod copy;

use std::time::Instant;

use anyhow::ensure;
use futures::future::try_join_all;
use kiln_agent::wire::{
    frame::{Frame, Stream},
    push::{MAX_PUSH, PushAnswer, SpoolStep, push_url},
};
use serde_json::json;

use client::Caller;
use copy::Copy;
use database::Database;
use kiln::{Kiln, resident};
use lines::Lines;
use setting::setting;
use spread::Spread;
use table::Table;
use worker::Worker;

/// Builds that push at the same time.
const CROWDS: [usize; 3] = [1, 4, 32];
const MEGABYTE: f64 = 1e6;

fn main() -> anyhow::Result<()> {
    kiln::prepare();
    tokio::runtime::Runtime::new()?.block_on(measure())
}

/// A push, ready to be sent.
struct Piece {
    offset: u64,
    frames: usize,
    body: Vec<u8>,
}

/// The log of a build.
struct Printed {
    pieces: Vec<Piece>,
    text: usize,
}

impl Printed {
    /// About so much text, as pieces of the agent's.
    fn new(text: usize, seed: u64) -> anyhow::Result<Self> {
        let mut lines = Lines::new(seed);
        let mut printed = Self {
            pieces: Vec::new(),
            text: 0,
        };
        let (mut frames, mut offset, mut number) = (Vec::new(), 0, 0);
        while printed.text < text {
            let mut line = String::new();
            lines.write(&mut line);
            number += 1;
            let mut frame = Vec::new();
            Frame {
                number,
                at_ms: 1_763_900_000_000 + number / 50,
                stream: Stream::Stdout,
                partial: false,
                text: line.trim_end().as_bytes(),
            }
            .encode(&mut frame);
            if frames.len() + frame.len() > MAX_PUSH {
                offset = printed.piece(&frames, offset)?;
                frames.clear();
            }
            printed.text += line.len();
            frames.extend(frame);
        }
        printed.piece(&frames, offset)?;
        Ok(printed)
    }

    fn piece(&mut self, frames: &[u8], offset: u64) -> anyhow::Result<u64> {
        self.pieces.push(Piece {
            offset,
            frames: frames.len(),
            // The agent's level.
            body: zstd::bulk::compress(frames, 1)?,
        });
        Ok(offset + frames.len() as u64)
    }

    /// Sends it, piece by piece.
    async fn push(&self, http: &reqwest::Client, url: &str, token: &str) -> anyhow::Result<()> {
        for piece in &self.pieces {
            let request = http
                .post(push_url(url, SpoolStep::Build, piece.offset))
                .bearer_auth(token)
                .header("content-encoding", "zstd")
                .body(piece.body.clone());
            let answer: PushAnswer = request.send().await?.error_for_status()?.json().await?;
            ensure!(answer.offset == piece.offset + piece.frames as u64, "{answer:?}");
        }
        Ok(())
    }
}

async fn measure() -> anyhow::Result<()> {
    let rounds: usize = setting("KILN_BENCH_ROUNDS", 5)?;
    let megabytes: usize = setting("KILN_BENCH_INGEST_MB", 64)?;
    let database = Database::create("kiln_bench_ingest").await?;
    kiln::run(&database.url, &["migrate"])?;
    let configuration = format!("[database]\nurl = \"{}\"\n", database.url);
    let server = Kiln::start(&configuration, &["--roles", "api"], &[], "/healthz").await?;
    let token = kiln::run(&database.url, &["token", "create"])?;
    let caller = Caller::new(&server.base, &token);
    let worker = Worker::start(&database.url).await?;
    let idle = resident(server.id())?;

    let mut table = Table::new(["builds at once", "", "MB of log per second", "of zstd and COPY"]);
    for crowd in CROWDS {
        let seeds = 0..u64::try_from(crowd)?;
        let logs: Vec<_> = seeds
            .map(|seed| Printed::new(megabytes * 1_000_000 / crowd, seed))
            .collect::<Result<_, _>>()?;
        let printed = logs.iter().map(|log| log.text).sum::<usize>() as f64 / MEGABYTE;
        let (mut kiln, mut ceiling) = (Vec::new(), Vec::new());
        // The first one warms up, and its rows are what the ceiling stores.
        by_kiln(&caller, &worker, &logs).await?;
        let copy = Copy::of_journal(&worker.pool, crowd).await?;
        for round in 0..rounds {
            if round % 2 == 0 {
                ceiling.push(printed / copy.run().await?);
                kiln.push(printed / by_kiln(&caller, &worker, &logs).await?);
            } else {
                kiln.push(printed / by_kiln(&caller, &worker, &logs).await?);
                ceiling.push(printed / copy.run().await?);
            }
        }
        copy.remove().await?;
        let ratios: Vec<f64> = kiln
            .iter()
            .zip(&ceiling)
            .map(|(kiln, ceiling)| kiln / ceiling)
            .collect();
        for (name, rates, ratio) in [
            ("zstd and COPY", &ceiling, String::new()),
            ("**Kiln**", &kiln, format!("**{:.2}**", Spread::of(&ratios))),
        ] {
            table.row([
                crowd.to_string(),
                name.to_owned(),
                format!("{:.1}", Spread::of(rates)),
                ratio,
            ]);
        }
    }
    print!("{table}");
    println!(
        "{megabytes} MB of text in all builds together; medians of {rounds} rounds, with the smallest and the largest. \
         Kiln's resident memory went from {idle:.0} to {:.0} MiB.",
        resident(server.id())?
    );
    drop(server);
    worker.pool.close().await;
    database.drop_it().await
}

/// Seconds from the first push until everything is durable.
async fn by_kiln(caller: &Caller, worker: &Worker, logs: &[Printed]) -> anyhow::Result<f64> {
    let request = json!({"source": {"type": "inline", "files": {"Dockerfile": "FROM scratch"}}, "push": false});
    sqlx::raw_sql("TRUNCATE builds, attempts, journal CASCADE")
        .execute(&worker.pool)
        .await?;
    for _ in logs {
        caller.post(&request).await?;
    }
    let mut pushes = Vec::new();
    for (claimed, log) in worker.claim(logs.len()).await?.into_iter().zip(logs) {
        let attempt = claimed.lease.attempt;
        let url = format!("{}/internal/v1/attempts/{attempt}/log", caller.base);
        let token = worker.token(attempt).await?;
        pushes.push(async move { log.push(&caller.http, &url, &token).await });
    }
    let begun = Instant::now();
    try_join_all(pushes).await?;
    Ok(begun.elapsed().as_secs_f64())
}
