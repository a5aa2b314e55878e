//! Group commit: what many builds print at the same time becomes durable in one transaction.

use std::{collections::HashSet, time::Duration};

use prometheus_client::metrics::gauge::Gauge;
use sqlx::PgPool;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{Signals, metrics::Metrics};
use crate::{
    domain::event::Event,
    store::{
        self,
        entries::{Packed, pack},
        journal::{Append, Appended, Fence, LogCursor, Standing},
    },
};

/// Flushes are at least this far apart. The first after a pause goes at once.
const INTERVAL: Duration = Duration::from_millis(25);
/// So many packed bytes are worth a flush of their own: nothing is gained by waiting for more.
const ENOUGH_BYTES: usize = 64 << 10;
/// A flush takes no more than this many packed bytes.
const MAX_BYTES: usize = 1 << 20;

/// Why entries could not be appended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// Another worker has the build now, or the attempt is over.
    #[error("the lease is lost, or the attempt is over")]
    Fenced,
    /// Somebody else has written since; this is where the log stands now.
    #[error("somebody else has written to the log since")]
    Moved(Standing),
    /// The writer is shutting down, or the database refused the entries; the log says why.
    #[error("the journal can't be written")]
    Failed,
}

struct Request {
    append: Append,
    done: oneshot::Sender<Result<i64, AppendError>>,
}

/// Appends log entries. Cheap to clone.
#[derive(Clone)]
pub struct Writer {
    sender: mpsc::Sender<Request>,
    metrics: Metrics,
}

impl Writer {
    /// A writer and its task.
    pub fn new(pool: PgPool, signals: Signals) -> (Self, Flusher) {
        Self::with_metrics(pool, signals, Metrics::default())
    }

    /// A writer and its task, which counts what it does.
    pub fn with_metrics(pool: PgPool, signals: Signals, metrics: Metrics) -> (Self, Flusher) {
        let (sender, requests) = mpsc::channel(1024);
        let flusher = Flusher {
            pool,
            signals,
            requests,
            held: None,
            metrics: metrics.clone(),
        };
        (Self { sender, metrics }, flusher)
    }

    /// Appends entries, which hold `text` bytes of log text, and moves the cursor, both or neither, and returns once
    /// they are durable. Without entries only the cursor moves.
    pub async fn append(
        &self,
        fence: impl Into<Fence>,
        from: LogCursor,
        to: LogCursor,
        events: &[Event],
        text: u64,
    ) -> Result<i64, AppendError> {
        let append = Append {
            fence: fence.into(),
            from,
            to,
            packed: if events.is_empty() {
                Packed::NOTHING
            } else {
                pack(events)
            },
            text,
        };
        let (done, outcome) = oneshot::channel();
        self.metrics.waiting.inc();
        let _waiting = Waiting(&self.metrics.waiting);
        self.sender
            .send(Request { append, done })
            .await
            .map_err(|_| AppendError::Failed)?;
        outcome.await.unwrap_or(Err(AppendError::Failed))
    }
}

/// An append that is counted as waiting for as long as this lives.
struct Waiting<'a>(&'a Gauge);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The task behind [`Writer`].
pub struct Flusher {
    pool: PgPool,
    signals: Signals,
    requests: mpsc::Receiver<Request>,
    /// Taken from the channel but left for the next flush.
    held: Option<Request>,
    metrics: Metrics,
}

impl Flusher {
    /// Runs until the token is cancelled; what was handed in by then is written first. A database that can't be reached
    /// is then given up instead of waited for: nothing was acknowledged, so nothing is lost.
    pub async fn run(mut self, give_up: CancellationToken) {
        let mut next_flush = Instant::now();
        loop {
            let next = if let Some(held) = self.held.take() {
                Some(held)
            } else {
                tokio::select! {
                    biased;
                    request = self.requests.recv() => request,
                    () = give_up.cancelled() => None,
                }
            };
            let Some(first) = next else { return };
            let batch = self.gather(first, next_flush).await;
            next_flush = Instant::now() + INTERVAL;
            let begun = Instant::now();
            self.flush(batch, &give_up).await;
            self.metrics.flush_seconds.observe(begun.elapsed().as_secs_f64());
        }
    }

    async fn gather(&mut self, first: Request, until: Instant) -> Vec<Request> {
        let mut bytes = first.append.packed.body.len();
        let mut builds = HashSet::from([first.append.fence.attempt().build]);
        let mut batch = vec![first];
        while bytes < MAX_BYTES {
            let request = match self.requests.try_recv() {
                Ok(request) => request,
                Err(_) if bytes >= ENOUGH_BYTES => break,
                Err(_) => match tokio::time::timeout_at(until, self.requests.recv()).await {
                    Ok(Some(request)) => request,
                    Ok(None) | Err(_) => break,
                },
            };
            if !builds.insert(request.append.fence.attempt().build) {
                self.held = Some(request);
                break;
            }
            bytes += request.append.packed.body.len();
            batch.push(request);
        }
        batch
    }

    async fn flush(&self, batch: Vec<Request>, give_up: &CancellationToken) {
        let (appends, waiting): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|request| (request.append, request.done)).unzip();
        let outcomes = match self.append(&appends, give_up).await {
            Ok(outcomes) => outcomes,
            // One bad append must not take the others with it.
            Err(AppendError::Failed) if appends.len() > 1 && !give_up.is_cancelled() => {
                let mut outcomes = Vec::with_capacity(appends.len());
                for append in &appends {
                    let alone = self.append(std::slice::from_ref(append), give_up).await;
                    outcomes.push(alone.map_or_else(Err, |mut one| one.pop().unwrap_or(Err(AppendError::Failed))));
                }
                outcomes
            }
            Err(error) => appends.iter().map(|_| Err(error.clone())).collect(),
        };
        for ((append, done), outcome) in appends.iter().zip(waiting).zip(outcomes) {
            if let Ok(head) = &outcome {
                self.metrics.entries.inc_by(append.packed.count.unsigned_abs());
                self.metrics.bytes.inc_by(append.packed.body.len() as u64);
                self.signals.head(append.fence.attempt().build, *head);
            }
            // The sender may have stopped waiting.
            let _ = done.send(outcome);
        }
    }

    async fn append(
        &self,
        appends: &[Append],
        give_up: &CancellationToken,
    ) -> Result<Vec<Result<i64, AppendError>>, AppendError> {
        let mut backoff = Duration::from_millis(50);
        loop {
            match store::journal::append(&self.pool, appends).await {
                Ok(outcomes) => {
                    return Ok(outcomes
                        .into_iter()
                        .map(|outcome| match outcome {
                            Appended::Durable(head) => Ok(head),
                            Appended::Moved(standing) => Err(AppendError::Moved(standing)),
                            Appended::Fenced => Err(AppendError::Fenced),
                        })
                        .collect());
                }
                Err(store::Error::Unavailable(error)) => {
                    self.metrics.failures.inc();
                    tracing::warn!(error = %error, builds = appends.len(), "log entries wait for the database");
                }
                Err(error) => {
                    self.metrics.failures.inc();
                    tracing::error!(error = ?error, builds = appends.len(), "log entries were refused by the database");
                    return Err(AppendError::Failed);
                }
            }
            if give_up.run_until_cancelled(tokio::time::sleep(backoff)).await.is_none() {
                return Err(AppendError::Failed);
            }
            backoff = (backoff * 2).min(Duration::from_secs(2));
        }
    }
}
