//! The ceiling: compress rows and COPY them.

use std::{sync::Arc, time::Instant};

use anyhow::Context as _;
use kiln::store::entries::plain;
use sqlx::{PgPool, Row as _};
use tokio::task::JoinSet;

/// More than the processors would only make them wait for each other.
const MOST_COPIES: usize = 2;
/// The level that rows of the journal are compressed with.
const LEVEL: i32 = 1;

/// A row of the journal before it is compressed.
struct Row {
    build: uuid::Uuid,
    first: i64,
    last: i64,
    plain: Vec<u8>,
}

/// What the journal holds, shared out to as many connections as builds push at once, within reason.
pub(crate) struct Copy {
    pool: PgPool,
    shares: Vec<Arc<Vec<Row>>>,
}

impl Copy {
    pub(crate) async fn of_journal(pool: &PgPool, crowd: usize) -> anyhow::Result<Self> {
        let rows =
            sqlx::query("SELECT build_id, first_seq, last_seq, codec, body FROM journal ORDER BY build_id, first_seq")
                .fetch_all(pool)
                .await?;
        let mut shares: Vec<Vec<Row>> = Vec::new();
        shares.resize_with(crowd.min(MOST_COPIES), Vec::new);
        let count = shares.len();
        for (index, row) in rows.iter().enumerate() {
            shares[index % count].push(Row {
                build: row.try_get("build_id")?,
                first: row.try_get("first_seq")?,
                last: row.try_get("last_seq")?,
                plain: plain(row.try_get("codec")?, row.try_get("body")?)?.into_owned(),
            });
        }
        sqlx::raw_sql("CREATE TABLE bench_copy (LIKE journal INCLUDING ALL)")
            .execute(pool)
            .await?;
        let shares = shares.into_iter().map(Arc::new).collect();
        Ok(Self {
            pool: pool.clone(),
            shares,
        })
    }

    /// Seconds until everything is durable.
    pub(crate) async fn run(&self) -> anyhow::Result<f64> {
        sqlx::raw_sql("TRUNCATE bench_copy").execute(&self.pool).await?;
        let mut copies = JoinSet::new();
        let begun = Instant::now();
        for share in &self.shares {
            copies.spawn(copy(self.pool.clone(), Arc::clone(share)));
        }
        while let Some(outcome) = copies.join_next().await {
            outcome??;
        }
        Ok(begun.elapsed().as_secs_f64())
    }

    pub(crate) async fn remove(self) -> anyhow::Result<()> {
        sqlx::raw_sql("DROP TABLE bench_copy").execute(&self.pool).await?;
        Ok(())
    }
}

async fn copy(pool: PgPool, rows: Arc<Vec<Row>>) -> anyhow::Result<()> {
    let mut connection = pool.acquire().await?;
    let mut copy = connection
        .copy_in_raw("COPY bench_copy (build_id, first_seq, last_seq, codec, body) FROM STDIN (FORMAT binary)")
        .await?;
    // Signature, flags, no extension.
    copy.send(&b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0"[..]).await?;
    for row in rows.iter() {
        let body = zstd::bulk::compress(&row.plain, LEVEL)?;
        let mut tuple = Vec::with_capacity(body.len() + 64);
        tuple.extend(5_i16.to_be_bytes());
        for field in [
            row.build.as_bytes().as_slice(),
            &row.first.to_be_bytes(),
            &row.last.to_be_bytes(),
            &1_i16.to_be_bytes(),
            &body,
        ] {
            let length = i32::try_from(field.len()).context("a field")?;
            tuple.extend(length.to_be_bytes());
            tuple.extend(field);
        }
        copy.send(tuple).await?;
    }
    copy.send((-1_i16).to_be_bytes().as_slice()).await?;
    copy.finish().await?;
    Ok(())
}
