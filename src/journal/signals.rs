//! News between the parts of a replica, and between replicas. Within the process it arrives at once; others get it
//! through Postgres, gathered so that a burst of commits becomes a few notifications.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sqlx::PgPool;
use tokio::{
    sync::{Notify, broadcast, mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{Heads, TailLimits, changes::Feed};
use crate::{
    domain::id::BuildId,
    store::{
        self,
        notify::{self, Hint, Listener},
    },
};

/// Hints are gathered for this long before other replicas get them.
const GATHER: Duration = Duration::from_millis(100);
/// Gathered hints beyond this are dropped: they are only hints, and readers poll.
const OUTBOX: usize = 16 * 1024;
/// A numbering that is younger serves readers that look without any news.
const FRESH: Duration = Duration::from_secs(1);
/// How often to look without a hint, while hints arrive.
const POLL_LISTENING: Duration = Duration::from_secs(10);
/// How often to look without a hint, while no hint can arrive.
const POLL_DEAF: Duration = Duration::from_secs(1);

/// The news of one replica.
#[derive(Clone)]
pub struct Signals(Arc<Inner>);

struct Inner {
    heads: Heads,
    feed: Feed,
    queued: Notify,
    cancels: broadcast::Sender<BuildId>,
    /// Counts news of builds that entered another state.
    changes: watch::Sender<u64>,
    numbered: tokio::sync::Mutex<Numbered>,
    outbox: mpsc::Sender<Hint>,
    listening: AtomicBool,
}

impl Signals {
    /// Makes the signals of a replica, and the task that connects them with other replicas. Without the task, news
    /// stays within the process.
    pub fn new(pool: PgPool) -> (Self, Exchange) {
        Self::with_tails(pool, TailLimits::default())
    }

    /// As [`Self::new`], and so much is held for those who follow journals.
    pub fn with_tails(pool: PgPool, tails: TailLimits) -> (Self, Exchange) {
        let (outbox, inbox) = mpsc::channel(OUTBOX);
        let signals = Self(Arc::new(Inner {
            heads: Heads::new(tails),
            feed: Feed::default(),
            queued: Notify::new(),
            cancels: broadcast::Sender::new(1024),
            changes: watch::Sender::new(0),
            numbered: tokio::sync::Mutex::default(),
            outbox,
            listening: AtomicBool::new(false),
        }));
        let exchange = Exchange {
            pool,
            signals: signals.clone(),
            inbox,
        };
        (signals, exchange)
    }

    /// The heads of journals.
    pub fn heads(&self) -> &Heads {
        &self.0.heads
    }

    /// What those share who follow changes.
    pub(super) fn feed(&self) -> &Feed {
        &self.0.feed
    }

    /// A build was queued. Call it after the commit.
    pub fn queued(&self) {
        self.0.queued.notify_one();
        self.tell(Hint::Queued);
    }

    /// A live build is to be stopped. Call it after the commit.
    pub fn cancel(&self, build: BuildId) {
        // Nobody listens where no worker runs.
        let _ = self.0.cancels.send(build);
        self.tell(Hint::Cancel(build));
    }

    /// A journal has grown. Call it after the commit.
    pub fn head(&self, build: BuildId, head: i64) {
        self.0.heads.advance(build, head);
        self.tell(Hint::Head(build, head));
    }

    /// A build has entered another state, and its journal has grown. Call it after the commit.
    pub fn status(&self, build: BuildId, head: i64) {
        self.head(build, head);
        self.change();
        self.tell(Hint::Change);
    }

    fn change(&self) {
        self.0.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Counts news of builds that entered another state.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Has the changes numbered that the news so far was about, once for all of this process who ask for it
    /// at the same time.
    pub(super) async fn number_changes(&self, pool: &PgPool) -> Result<(), store::Error> {
        let wanted = *self.0.changes.borrow();
        let mut numbered = self.0.numbered.lock().await;
        let fresh = numbered.at.is_some_and(|at| at.elapsed() < FRESH);
        if fresh && numbered.count == Some(wanted) {
            return Ok(());
        }
        let count = *self.0.changes.borrow();
        store::changes::number(pool).await?;
        *numbered = Numbered {
            count: Some(count),
            at: Some(Instant::now()),
        };
        Ok(())
    }

    /// Waits until a build was queued since the last call.
    pub async fn wait_queued(&self) {
        self.0.queued.notified().await;
    }

    /// Follows the builds that are to be stopped. May lag; the tables know better.
    pub fn cancels(&self) -> broadcast::Receiver<BuildId> {
        self.0.cancels.subscribe()
    }

    /// How long to wait for news before looking without any; jittered, so that readers don't look all at once.
    pub fn poll_interval(&self) -> Duration {
        let base = if self.0.listening.load(Ordering::Relaxed) {
            POLL_LISTENING
        } else {
            POLL_DEAF
        };
        base.mul_f64(rand::random_range(0.8..1.2))
    }

    fn tell(&self, hint: Hint) {
        // A full outbox means that nobody can be told just now.
        let _ = self.0.outbox.try_send(hint);
    }

    fn hear(&self, hint: Hint) {
        match hint {
            Hint::Queued => self.0.queued.notify_one(),
            Hint::Cancel(build) => {
                let _ = self.0.cancels.send(build);
            }
            Hint::Head(build, head) => self.0.heads.advance(build, head),
            Hint::Change => self.change(),
        }
    }
}

/// The news that changes were numbered for, and when that was.
#[derive(Default)]
struct Numbered {
    count: Option<u64>,
    at: Option<Instant>,
}

/// Carries news between this replica and the others.
pub struct Exchange {
    pool: PgPool,
    signals: Signals,
    inbox: mpsc::Receiver<Hint>,
}

impl Exchange {
    /// Runs until the token is cancelled; gathered news is sent before it returns.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self {
            pool,
            signals,
            mut inbox,
        } = self;
        tokio::join!(
            send_all(&pool, &mut inbox, &shutdown),
            shutdown.run_until_cancelled(listen(&pool, &signals))
        );
    }
}

async fn send_all(pool: &PgPool, inbox: &mut mpsc::Receiver<Hint>, shutdown: &CancellationToken) {
    loop {
        let first = tokio::select! {
            biased;
            hint = inbox.recv() => hint,
            () = shutdown.cancelled() => None,
        };
        let Some(first) = first else { return };
        let _ = tokio::time::timeout(GATHER, shutdown.cancelled()).await;
        let mut hints = vec![first];
        while let Ok(hint) = inbox.try_recv() {
            hints.push(hint);
        }
        if let Err(error) = notify::send(pool, &coalesce(hints)).await {
            tracing::debug!(error = %error, "hints for other replicas were dropped");
        }
    }
}

/// Keeps the largest head of each build, and one of every other hint.
fn coalesce(hints: Vec<Hint>) -> Vec<Hint> {
    let mut kept: Vec<Hint> = Vec::new();
    let mut heads = std::collections::HashMap::new();
    for hint in hints {
        match hint {
            Hint::Head(build, head) => {
                let known = heads.entry(build).or_insert(head);
                *known = head.max(*known);
            }
            other if kept.contains(&other) => {}
            other => kept.push(other),
        }
    }
    kept.extend(heads.into_iter().map(|(build, head)| Hint::Head(build, head)));
    kept
}

async fn listen(pool: &PgPool, signals: &Signals) {
    let mut backoff = Duration::from_millis(200);
    loop {
        match Listener::connect(pool).await {
            Ok(mut listener) => {
                backoff = Duration::from_millis(200);
                signals.0.listening.store(true, Ordering::Relaxed);
                // What was said before the connection stood is unknown.
                signals.0.heads.nudge();
                signals.0.queued.notify_one();
                signals.change();
                loop {
                    match listener.next().await {
                        Ok(Some(hints)) => hints.into_iter().for_each(|hint| signals.hear(hint)),
                        Ok(None) => break,
                        Err(error) => {
                            tracing::warn!(error = %error, "the connection for hints from other replicas broke; polling");
                            break;
                        }
                    }
                }
                signals.0.listening.store(false, Ordering::Relaxed);
                signals.0.heads.nudge();
                signals.change();
            }
            Err(error) => tracing::debug!(error = %error, "hints from other replicas can't be heard; polling"),
        }
        tokio::time::sleep(backoff).await;
        backoff = (backoff * 2).min(Duration::from_secs(10));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_becomes_one_hint_a_build() {
        let build = BuildId::new();
        let hints = coalesce(vec![
            Hint::Head(build, 1),
            Hint::Queued,
            Hint::Head(build, 3),
            Hint::Queued,
            Hint::Head(build, 2),
        ]);
        assert_eq!(hints, [Hint::Queued, Hint::Head(build, 3)]);
    }
}
