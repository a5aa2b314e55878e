//! A worker's part: a build in hand whose log grows. It is another replica than the one that is measured, which hears of
//! growth by NOTIFY only.

use std::time::Duration;

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use kiln::{
    domain::{
        event::{Event, Log, LogStream, StepName},
        id::ReplicaId,
        queue::ProjectLimits,
    },
    journal::{Signals, Writer},
    store::{
        self, Lease,
        journal::{LogCursor, StepCursor},
        leases,
        queue::{ClaimLimits, claim},
    },
};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use url::Url;

/// Entries of one append, as the log of a build that prints much is gathered.
const APPEND: usize = 100;

/// A build in hand; dropping it leaves it where it is.
pub(crate) struct Publisher {
    lease: Lease,
    writer: Writer,
    line: u64,
    text: String,
    stop: CancellationToken,
}

impl Publisher {
    /// Takes the one build that is queued. Every event will have this text.
    pub(crate) async fn claim(database: &Url, text: String) -> anyhow::Result<Self> {
        let pool: PgPool = store::pool(database.as_str(), 5, Duration::from_secs(5))?;
        let (signals, exchange) = Signals::new(pool.clone());
        let (writer, flusher) = Writer::new(pool.clone(), signals);
        let stop = CancellationToken::new();
        tokio::spawn(exchange.run(stop.clone()));
        tokio::spawn(flusher.run(stop.clone()));
        let owner = ReplicaId::new();
        leases::register(&pool, owner, "bench", Duration::from_hours(1)).await?;
        let limits = ClaimLimits {
            batch: 1,
            live: 1000,
            project: ProjectLimits::NONE,
        };
        let mut claimed = claim(&pool, owner, limits, "bench-", Utc::now()).await?;
        let lease = claimed.pop().context("a queued build")?.lease;
        Ok(Self {
            lease,
            writer,
            line: 0,
            text,
            stop,
        })
    }

    /// Appends events to its log.
    pub(crate) async fn publish(&mut self, events: usize) -> anyhow::Result<()> {
        let event = Event::Log(Log {
            step: StepName::Build,
            stream: LogStream::Stdout,
            at: DateTime::UNIX_EPOCH,
            text: self.text.clone(),
            partial: false,
            replaced: 0,
        });
        let mut left = events;
        while left > 0 {
            let count = left.min(APPEND);
            left -= count;
            let from = cursor(self.line);
            self.line += count as u64;
            let entries = vec![event.clone(); count];
            self.writer
                .append(
                    self.lease,
                    from,
                    cursor(self.line),
                    &entries,
                    (count * self.text.len()) as u64,
                )
                .await?;
        }
        Ok(())
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn cursor(line: u64) -> LogCursor {
    let mut cursor = LogCursor::default();
    if line > 0 {
        let step = StepCursor {
            line,
            ..StepCursor::default()
        };
        cursor.0.insert(StepName::Build, step);
    }
    cursor
}
