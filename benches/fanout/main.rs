//! Many subscribers to one build: events per second and memory for each, beside a bare axum broadcaster of as large
//! events; and whether those who read fast feel those who read slowly. Servers and subscribers are processes of their
//! own; the ceiling and Kiln take turns, because the machine is shared.

#[path = "../common/client.rs"]
mod client;
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
mod publisher;
mod subscribers;

use std::{env, time::Instant};

use bare::Bare;
use client::Caller;
use database::Database;
use kiln::{Kiln, resident};
use publisher::Publisher;
use serde_json::json;
use setting::setting;
use spread::Spread;
use stats::quantile;
use subscribers::{MARK, Subscribers, Task};
use table::Table;

/// Numbers of subscribers.
const CROWDS: [usize; 2] = [1_000, 10_000];
/// Text of an event, in bytes.
const TEXT: usize = 160;
/// Events that each of those gets who are measured beside slow ones.
const BESIDE_SLOW: usize = 8_000;

fn main() -> anyhow::Result<()> {
    if let Ok(data) = env::var(bare::DATA) {
        return bare::serve(&data);
    }
    if let Ok(task) = env::var(subscribers::TASK) {
        return subscribers::run(&task);
    }
    kiln::prepare();
    tokio::runtime::Runtime::new()?.block_on(measure())
}

/// A line of output with the mark of an event.
fn text() -> String {
    let mut text = "x".repeat(TEXT - 2);
    text.push(char::from(MARK));
    text.push('\n');
    text
}

/// The data of an event of Kiln's with that text, but for the number.
fn data() -> String {
    json!({"seq": 1000, "step": "build", "stream": "stdout", "at": "1970-01-01T00:00:00Z", "text": text()}).to_string()
}

/// A Kiln with one build in hand.
struct Scene {
    server: Kiln,
    publisher: Publisher,
    task: Task,
}

impl Scene {
    async fn set(database: &Database, subscribers: usize, slow: usize) -> anyhow::Result<Self> {
        let configuration = format!("[database]\nurl = \"{}\"\nmax_connections = 20\n", database.url);
        let server = Kiln::start(&configuration, &["--roles", "api"], &[], "/healthz").await?;
        let token = kiln::run(&database.url, &["token", "create"])?;
        let caller = Caller::new(&server.base, &token);
        let request = json!({"source": {"type": "inline", "files": {"Dockerfile": "FROM scratch"}}, "push": false});
        let build = caller.post(&request).await?;
        let publisher = Publisher::claim(&database.url, text()).await?;
        let task = Task {
            url: format!("{}/v1/builds/{build}/events", server.base).parse()?,
            token: Some(token),
            subscribers,
            slow,
        };
        Ok(Self {
            server,
            publisher,
            task,
        })
    }

    /// Events until everybody has them; the seconds that it took each.
    async fn round(&mut self, subscribers: &mut Subscribers, events: usize) -> anyhow::Result<Vec<f64>> {
        subscribers.expect(events)?;
        self.publisher.publish(events).await?;
        subscribers.received()
    }
}

/// What one server did.
#[derive(Default)]
struct Measured {
    per_second: Vec<f64>,
    idle_kib: f64,
    busy_kib: f64,
}

#[expect(clippy::cast_precision_loss, reason = "numbers of events")]
fn rate(subscribers: usize, events: usize, since: Instant) -> f64 {
    (subscribers * events) as f64 / since.elapsed().as_secs_f64()
}

#[expect(clippy::cast_precision_loss, reason = "a number of subscribers")]
fn each(mebibytes: f64, subscribers: usize) -> f64 {
    mebibytes * 1024.0 / subscribers as f64
}

async fn measure() -> anyhow::Result<()> {
    let rounds: usize = setting("KILN_BENCH_ROUNDS", 5)?;
    let deliveries: usize = setting("KILN_BENCH_DELIVERIES", 2_000_000)?;
    let database = Database::create("kiln_bench_fanout").await?;
    kiln::run(&database.url, &["migrate"])?;

    let mut table = Table::new([
        "subscribers",
        "",
        "events per second",
        "of bare axum",
        "KiB each, idle",
        "KiB each, after all rounds",
    ]);
    for crowd in CROWDS {
        let (bare, kiln) = crowd_of(&database, crowd, deliveries / crowd, rounds).await?;
        let ratios: Vec<f64> = kiln
            .per_second
            .iter()
            .zip(&bare.per_second)
            .map(|(kiln, bare)| kiln / bare)
            .collect();
        for (name, measured, ratio) in [
            ("bare axum broadcaster", &bare, String::new()),
            ("**Kiln**", &kiln, format!("**{:.2}**", Spread::of(&ratios))),
        ] {
            table.row([
                crowd.to_string(),
                name.to_owned(),
                format!("{:.0}", Spread::of(&measured.per_second)),
                ratio,
                format!("{:.1}", measured.idle_kib),
                format!("{:.1}", measured.busy_kib),
            ]);
        }
    }
    println!("{table}");

    let mut table = Table::new(["100 who read fast", "seconds, median of them", "of alone"]);
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        for (slow, into) in [(0, &mut alone), (100, &mut beside)] {
            let mut scene = Scene::set(&database, 100 + slow, slow).await?;
            let mut subscribers = Subscribers::start(&scene.task)?;
            let seconds = scene.round(&mut subscribers, BESIDE_SLOW).await?;
            into.push(quantile(&seconds, 0.5));
        }
    }
    let ratios: Vec<f64> = beside
        .iter()
        .zip(&alone)
        .map(|(beside, alone)| beside / alone)
        .collect();
    for (name, seconds, ratio) in [
        ("alone", &alone, String::new()),
        (
            "**beside 100 at 1 KiB/s**",
            &beside,
            format!("**{:.2}**", Spread::of(&ratios)),
        ),
    ] {
        table.row([name.to_owned(), format!("{:.2}", Spread::of(seconds)), ratio]);
    }
    println!("{table}");
    println!("Medians of {rounds} rounds, with the smallest and the largest.");
    database.drop_it().await
}

/// A crowd at each of both servers, who take turns in sending.
async fn crowd_of(
    database: &Database,
    crowd: usize,
    events: usize,
    rounds: usize,
) -> anyhow::Result<(Measured, Measured)> {
    let (mut bare, mut kiln) = (Measured::default(), Measured::default());

    let mut broadcaster = Bare::start(&data())?;
    let before = resident(broadcaster.id())?;
    let mut task = Task {
        url: broadcaster.base.parse()?,
        token: None,
        subscribers: crowd,
        slow: 0,
    };
    task.url.set_path("/");
    let mut at_bare = Subscribers::start(&task)?;
    bare.idle_kib = each(resident(broadcaster.id())? - before, crowd);

    let mut scene = Scene::set(database, crowd, 0).await?;
    // Fills caches, opens the pool's connections.
    drop(Subscribers::start(&Task {
        url: scene.task.url.clone(),
        token: scene.task.token.clone(),
        subscribers: 20,
        slow: 0,
    })?);
    let server = scene.server.id();
    let before_kiln = resident(server)?;
    let mut at_kiln = Subscribers::start(&scene.task)?;
    kiln.idle_kib = each(resident(server)? - before_kiln, crowd);

    for round in 0..=rounds {
        at_bare.expect(events)?;
        let begun = Instant::now();
        broadcaster.publish(events)?;
        at_bare.received()?;
        let of_bare = rate(crowd, events, begun);

        let begun = Instant::now();
        scene.round(&mut at_kiln, events).await?;
        let of_kiln = rate(crowd, events, begun);
        // The first one warms up.
        if round > 0 {
            bare.per_second.push(of_bare);
            kiln.per_second.push(of_kiln);
        }
    }
    bare.busy_kib = each(resident(broadcaster.id())? - before, crowd);
    kiln.busy_kib = each(resident(server)? - before_kiln, crowd);
    Ok((bare, kiln))
}
