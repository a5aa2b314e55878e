//! `POST /v1/builds` per second, beside two ceilings measured in the same run: pgbench with the very statements that
//! such a request makes, on the same Postgres and as many connections; and a bare axum handler that reads the same
//! JSON and answers as much.
//!
//! The rounds are short and interleaved, because the machine is shared: a ratio is taken within a round.

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

mod bare;
mod capture;
mod pgbench;
mod wrk;

use std::env;

use database::Database;
use kiln::{Kiln, resident};
use pgbench::Pgbench;
use setting::setting;
use spread::Spread;
use table::Table;
use wrk::Wrk;

/// What is posted: a git build as CI would ask for it.
const BODY: &str = r#"{"source": {"type": "git", "url": "https://git.example.com/team/app.git", "ref": "main"}, "dockerfile": "Dockerfile", "build_args": {"VERSION": "1.2.3"}, "labels": {"org.opencontainers.image.revision": "0123456789abcdef"}, "images": ["registry.example.com/team/app:1.2.3"]}"#;
const CONNECTIONS: [u32; 3] = [1, 8, 32];

/// One measurement.
#[derive(Clone, Copy, Debug)]
struct Rate {
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
}

fn main() -> anyhow::Result<()> {
    if let Ok(bytes) = env::var(bare::SIZE) {
        return bare::serve(bytes.parse()?);
    }
    kiln::prepare();
    tokio::runtime::Runtime::new()?.block_on(measure())
}

async fn measure() -> anyhow::Result<()> {
    let rounds: u32 = setting("KILN_BENCH_ROUNDS", 5)?;
    let seconds: u32 = setting("KILN_BENCH_SECONDS", 3)?;

    let database = Database::create("kiln_bench_accept").await?;
    kiln::run(&database.url, &["migrate"])?;
    let token = kiln::run(&database.url, &["token", "create"])?;
    let configuration = format!("[database]\nurl = \"{}\"\nmax_connections = 40\n", database.url);
    let serve = async || Kiln::start(&configuration, &["--roles", "api"], &[], "/healthz").await;

    let captured = {
        capture::switch(&database, true).await?;
        let server = serve().await?;
        let captured = capture::statements(&database, &server, &token, BODY).await?;
        capture::switch(&database, false).await?;
        captured
    };
    println!("Statements of one request, which pgbench repeats:\n");
    for statement in &captured.statements {
        println!("- `{}`", statement.in_one_line());
    }
    println!();

    let server = serve().await?;
    let bare = bare::Bare::start(captured.answer_bytes).await?;
    let pgbench = Pgbench::new(&database.url, &captured)?;
    let wrk = Wrk::new(&token, BODY)?;

    let mut table = Table::new(["connections", "", "per second", "p50 ms", "p99 ms", "of pgbench"]);
    for connections in CONNECTIONS {
        let (mut ceiling, mut kiln, mut http) = (Vec::new(), Vec::new(), Vec::new());
        // Fills caches, opens the pool's connections.
        wrk.run(&server.base, connections, 1)?;
        for round in 0..rounds {
            // Whichever comes second gets a disk that is busier with the first one's writes.
            if round % 2 == 0 {
                ceiling.push(pgbench.run(connections, seconds)?);
                kiln.push(wrk.run(&server.base, connections, seconds)?);
            } else {
                kiln.push(wrk.run(&server.base, connections, seconds)?);
                ceiling.push(pgbench.run(connections, seconds)?);
            }
            http.push(wrk.run(&bare.base, connections, 1)?);
        }
        let ratios: Vec<f64> = kiln
            .iter()
            .zip(&ceiling)
            .map(|(kiln, ceiling)| kiln.per_second / ceiling.per_second)
            .collect();
        for (name, rates, ratio) in [
            ("pgbench", &ceiling, String::new()),
            ("**Kiln**", &kiln, format!("**{:.2}**", Spread::of(&ratios))),
            ("bare axum handler, no database", &http, String::new()),
        ] {
            let of = |value: fn(&Rate) -> f64| Spread::of(&rates.iter().map(value).collect::<Vec<_>>());
            table.row([
                connections.to_string(),
                name.to_owned(),
                format!("{:.0}", of(|rate| rate.per_second)),
                format!("{:.2}", of(|rate| rate.p50_ms)),
                format!("{:.2}", of(|rate| rate.p99_ms)),
                ratio,
            ]);
        }
    }
    print!("{table}");
    println!(
        "Medians of {rounds} rounds of {seconds} s each, with the smallest and the largest. Resident memory of Kiln at \
         the end: {:.0} MiB.",
        resident(server.id())?
    );
    drop(server);
    database.drop_it().await
}
