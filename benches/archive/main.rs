//! Logs of finished builds: what they take in Postgres and in the archive, and how fast they move, beside compressing
//! the same entries into a file with nothing else.

#![expect(clippy::cast_precision_loss, reason = "sizes are far below 2^52")]

#[path = "../common/database.rs"]
mod database;
#[path = "../common/lines.rs"]
mod lines;
#[path = "../common/setting.rs"]
mod setting;
#[path = "../common/table.rs"]
mod table;

use std::{io::Write as _, time::Instant};

use anyhow::Context as _;
use chrono::{DateTime, TimeDelta, Utc};
use kiln::{
    domain::{
        event::{Event, Log, LogStream, StepName},
        id::BuildId,
        queue::QueueConfig,
    },
    journal::archive::{Archive, metrics::Metrics, mover},
    store::{
        self,
        builds::{self, NewBuild},
        entries::pack,
    },
};
use serde_json::json;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use url::Url;

use database::Database;
use lines::Lines;
use setting::setting;
use table::Table;

const MEGABYTE: f64 = 1e6;
/// Text of one entry of a build that prints fast: what its log's frames are gathered into.
const ENTRY: usize = 16 << 10;
/// The level that archives are compressed with.
const LEVEL: i32 = 6;

/// How a build prints.
struct Kind {
    name: &'static str,
    bytes: usize,
    /// Text of a row.
    row: usize,
}

fn log(text: String, number: i64) -> Event {
    Event::Log(Log {
        step: StepName::Build,
        stream: LogStream::Stdout,
        at: DateTime::UNIX_EPOCH + TimeDelta::milliseconds(number),
        text,
        partial: false,
        replaced: 0,
    })
}

/// Stores a finished build of this kind; returns the bytes of text that it printed.
async fn fill(pool: &PgPool, kind: &Kind, seed: u64) -> anyhow::Result<usize> {
    let build = BuildId::new();
    let spec = serde_json::from_value(json!({
        "source": {"type": "inline", "files": {"Dockerfile": "FROM scratch"}},
        "dockerfile": "Dockerfile", "build_args": {}, "target": null, "platforms": ["linux/amd64"], "labels": {},
        "images": ["registry.test/app:1"], "push": true, "builder": "buildkit",
        "resources": {"cpu": "1", "memory": "1Gi", "disk": "1Gi"},
        "timeout_seconds": 600, "priority": 0, "annotations": {},
    }))?;
    let new = NewBuild {
        id: build,
        project: "default".parse()?,
        spec,
        queue: QueueConfig::default(),
        created_at: Utc::now(),
        retry: None,
        coalesce: false,
        trace: None,
        origin: None,
    };
    builds::create(pool, new, None).await?;
    let mut lines = Lines::new(seed);
    let mut printed = 0;
    while printed < kind.bytes {
        let mut events = Vec::new();
        let mut row = 0;
        while row < kind.row && printed < kind.bytes {
            let mut text = String::new();
            while text.len() < ENTRY.min(kind.row) {
                lines.write(&mut text);
            }
            row += text.len();
            printed += text.len();
            events.push(log(text, i64::try_from(printed)?));
        }
        let packed = pack(&events);
        sqlx::query(
            "WITH build AS (UPDATE builds SET journal_head = journal_head + $2 WHERE id = $1 RETURNING journal_head)
             INSERT INTO journal (build_id, first_seq, last_seq, codec, body)
             SELECT $1, journal_head - $2 + 1, journal_head, $3, $4 FROM build",
        )
        .bind(build.0)
        .bind(packed.count)
        .bind(packed.codec)
        .bind(packed.body)
        .execute(pool)
        .await?;
    }
    builds::cancel(pool, build, Utc::now() - TimeDelta::days(1)).await?;
    Ok(printed)
}

/// Bytes of the journal in Postgres, indexes included.
async fn size(pool: &PgPool) -> anyhow::Result<f64> {
    let bytes: i64 = sqlx::query_scalar(
        "SELECT sum(pg_total_relation_size(inhrelid))::bigint FROM pg_inherits WHERE inhparent = 'journal'::regclass",
    )
    .fetch_one(pool)
    .await?;
    Ok(bytes as f64)
}

/// Seconds to compress the whole journal into one synced file.
async fn ceiling(pool: &PgPool, folder: &std::path::Path) -> anyhow::Result<f64> {
    let ids: Vec<uuid::Uuid> = sqlx::query_scalar("SELECT id FROM builds").fetch_all(pool).await?;
    let mut plain = Vec::new();
    for id in ids {
        let mut after = 0;
        loop {
            let rows = store::journal::rows(pool, BuildId(id), after).await?;
            let Some(last) = rows.last() else { break };
            after = last.last_seq;
            plain.extend(rows.into_iter().flat_map(|row| row.lines));
        }
    }
    let begun = Instant::now();
    let mut file = std::fs::File::create(folder.join("ceiling.zst"))?;
    for piece in plain.chunks(1 << 20) {
        file.write_all(&zstd::bulk::compress(piece, LEVEL)?)?;
    }
    file.sync_all()?;
    Ok(begun.elapsed().as_secs_f64())
}

fn main() -> anyhow::Result<()> {
    tokio::runtime::Runtime::new()?.block_on(measure())
}

async fn measure() -> anyhow::Result<()> {
    let megabytes: usize = setting("KILN_BENCH_ARCHIVE_MB", 64)?;
    let total = megabytes * 1_000_000;
    let mut table = Table::new([
        "builds",
        "MB of log",
        "Postgres: bytes per MB",
        "archive: bytes per MB",
        "Postgres after: bytes per MB",
        "moved, MB/s",
        "zstd and a file, MB/s",
        "ratio",
    ]);
    let kinds = [
        (
            1,
            Kind {
                name: "1 that prints as fast as it can",
                bytes: total,
                row: 1 << 20,
            },
        ),
        (
            64,
            Kind {
                name: "64 smaller ones, 64 KiB a row",
                bytes: total / 64,
                row: 64 << 10,
            },
        ),
        (
            16,
            Kind {
                name: "16 that print a line now and then",
                bytes: total / 256,
                row: 1,
            },
        ),
    ];
    for (count, kind) in kinds {
        let database = Database::create("kiln_bench_archive").await?;
        let pool = store::pool(database.url.as_str(), 10, std::time::Duration::from_secs(5))?;
        store::migrate(&pool).await?;
        let mut printed = 0;
        for seed in 0..count {
            printed += fill(&pool, &kind, seed).await?;
        }
        let printed = printed as f64 / MEGABYTE;
        let before = size(&pool).await?;
        let folder = tempfile::tempdir()?;
        let plain = ceiling(&pool, folder.path()).await?;
        let url = Url::from_directory_path(folder.path().join("archive"))
            .ok()
            .context("a folder")?;
        let archive = Archive::open(&url)?;
        let begun = Instant::now();
        mover::move_due(&pool, &archive, 0, &Metrics::default(), &CancellationToken::new()).await?;
        let took = begun.elapsed().as_secs_f64();
        let left: i64 = sqlx::query_scalar("SELECT count(*) FROM journal")
            .fetch_one(&pool)
            .await?;
        anyhow::ensure!(left == 0, "{left} rows stay");
        let objects: i64 = sqlx::query_scalar("SELECT sum(bytes)::bigint FROM archives")
            .fetch_one(&pool)
            .await?;
        sqlx::query("VACUUM journal").execute(&pool).await?;
        let after = size(&pool).await?;
        let per = |bytes: f64| format!("{:.0}", bytes / printed);
        table.row([
            kind.name.to_owned(),
            format!("{printed:.1}"),
            per(before),
            per(objects as f64),
            per(after),
            format!("{:.0}", printed / took),
            format!("{:.0}", printed / plain),
            format!("{:.2}", plain / took),
        ]);
        pool.close().await;
        database.drop_it().await?;
    }
    print!("{table}");
    Ok(())
}
