//! Following the states of many builds, from any point, live or long after.

use std::{
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use sqlx::PgPool;
use tokio::{sync::watch, task::AbortHandle};

use super::{
    Signals, TailLimits,
    frames::change,
    tail::{Item, Look, Shelf, Tail},
};
use crate::{
    domain::{event::Change, project::ProjectName},
    store::{self, Error},
};

/// What is held for those who follow changes.
const LIMITS: TailLimits = TailLimits {
    build: 4 << 20,
    total: 4 << 20,
};
/// What a change costs in memory, held and encoded.
const CHANGE_COST: usize = 1024;
/// Pauses while the database is away.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Consecutive changes of all builds, read and encoded once; at least one.
struct Page {
    changes: Vec<Change>,
    /// Made when somebody wants it first: server-sent events, and where each ends.
    encoded: OnceLock<(Bytes, Vec<usize>)>,
}

impl Page {
    fn new(changes: Vec<Change>) -> Option<Self> {
        let encoded = OnceLock::new();
        (!changes.is_empty()).then_some(Self { changes, encoded })
    }

    fn encoded(&self) -> &(Bytes, Vec<usize>) {
        self.encoded.get_or_init(|| {
            let mut bytes = Vec::new();
            let each = |one| {
                change(&mut bytes, one);
                bytes.len()
            };
            let ends = self.changes.iter().map(each).collect();
            (bytes.into(), ends)
        })
    }
}

impl Item for Page {
    fn last(&self) -> i64 {
        self.changes.last().map_or(0, |change| change.seq)
    }

    fn cost(&self) -> usize {
        self.changes.len() * CHANGE_COST
    }
}

/// The changes that a reader gets at once, with some between that aren't for it. As a slice it is all of them.
pub struct Changes {
    page: Arc<Page>,
    from: usize,
    project: Option<ProjectName>,
}

impl Changes {
    /// The changes that `wanted` says as server-sent events. Shared with other readers where it is all of them.
    pub fn server_sent(&self, wanted: impl Fn(&Change) -> bool) -> Bytes {
        let wanted = |change: &Change| self.is_for_reader(change) && wanted(change);
        let (bytes, ends) = self.page.encoded();
        let end = |index: usize| {
            index
                .checked_sub(1)
                .and_then(|index| ends.get(index))
                .map_or(0, |end| *end)
        };
        if self.iter().all(wanted) {
            return bytes.slice(end(self.from)..);
        }
        let mut out = Vec::new();
        for (index, change) in (self.from..).zip(self.iter()) {
            if wanted(change) {
                out.extend_from_slice(&bytes[end(index)..end(index + 1)]);
            }
        }
        out.into()
    }

    fn is_for_reader(&self, change: &Change) -> bool {
        self.project.as_ref().is_none_or(|project| *project == change.project)
    }
}

impl Deref for Changes {
    type Target = [Change];

    fn deref(&self) -> &Self::Target {
        &self.page.changes[self.from..]
    }
}

/// What all followers of changes in this process share, while there are any.
pub(super) struct Feed {
    shared: Mutex<Option<Shared>>,
    shelf: Shelf<Page>,
}

struct Shared {
    followers: usize,
    tail: Arc<Tail<Page>>,
    /// The task that reads for all of them.
    filler: AbortHandle,
}

impl Default for Feed {
    fn default() -> Self {
        Self {
            shared: Mutex::default(),
            shelf: Shelf::new(LIMITS),
        }
    }
}

impl Feed {
    fn lock(&self) -> MutexGuard<'_, Option<Shared>> {
        // Whole after every statement, so a panic elsewhere can't have left it half changed.
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One who follows changes.
struct Follower {
    signals: Signals,
    tail: Arc<Tail<Page>>,
    grown: watch::Receiver<()>,
}

impl Follower {
    /// The first one begins the tail, after `start`, up to which everything is numbered.
    fn new(pool: &PgPool, signals: &Signals, start: i64) -> Self {
        let mut shared = signals.feed().lock();
        let shared = shared.get_or_insert_with(|| {
            let tail = Tail::new(start);
            let task = fill(pool.clone(), signals.clone(), Arc::clone(&tail), start);
            Shared {
                followers: 0,
                tail,
                filler: tokio::spawn(task).abort_handle(),
            }
        });
        shared.followers += 1;
        Self {
            signals: signals.clone(),
            grown: shared.tail.grown(),
            tail: Arc::clone(&shared.tail),
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let feed = self.signals.feed();
        let mut all = feed.lock();
        let Some(shared) = all.as_mut() else { return };
        shared.followers -= 1;
        if shared.followers == 0 {
            shared.filler.abort();
            *all = None;
            drop(all);
            feed.shelf.remove(&self.tail);
        }
    }
}

/// Fills the tail with what comes after `last`, for ever.
async fn fill(pool: PgPool, signals: Signals, tail: Arc<Tail<Page>>, mut last: i64) {
    let mut news = signals.changes();
    let mut backoff = BACKOFF.0;
    loop {
        news.mark_unchanged();
        match read(&pool, &signals, &tail, &mut last).await {
            Ok(()) => {
                backoff = BACKOFF.0;
                // Whether it is news or time to look makes no difference.
                let _ = tokio::time::timeout(signals.poll_interval(), news.changed()).await;
            }
            Err(Error::Unavailable(error)) => {
                tracing::warn!(error = %error, "those who follow changes wait for the database");
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(BACKOFF.1);
            }
            // Readers meet the same error, each for itself.
            Err(error) => {
                tracing::error!(error = ?error, "changes can't be followed");
                return tail.abandon();
            }
        }
    }
}

async fn read(pool: &PgPool, signals: &Signals, tail: &Arc<Tail<Page>>, last: &mut i64) -> Result<(), Error> {
    signals.number_changes(pool).await?;
    while let Some(page) = Page::new(store::changes::read(pool, None, *last).await?) {
        *last = page.last();
        signals.feed().shelf.put(tail, page);
    }
    Ok(())
}

/// Reads the changes of one project's builds, or of all, in order, for ever. What is there when it begins it reads from
/// Postgres; what comes then it finds in what all followers share.
pub struct ChangeReader {
    pool: PgPool,
    signals: Signals,
    project: Option<ProjectName>,
    after: i64,
    follower: Option<Follower>,
}

impl ChangeReader {
    /// A reader of the changes after `after`; of those to come when absent.
    pub async fn open(
        pool: &PgPool,
        signals: &Signals,
        project: Option<ProjectName>,
        after: Option<i64>,
    ) -> Result<Self, Error> {
        let after = if let Some(after) = after {
            after
        } else {
            store::changes::number(pool).await?;
            store::changes::head(pool).await?
        };
        Ok(Self {
            pool: pool.clone(),
            signals: signals.clone(),
            project,
            after,
            follower: None,
        })
    }

    /// Number of the last change that was returned, or the one the reader began after.
    pub const fn position(&self) -> i64 {
        self.after
    }

    /// The next changes; waits for some. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Changes, Error> {
        loop {
            if let Some(follower) = &mut self.follower {
                follower.grown.mark_unchanged();
                match follower.tail.look(self.after) {
                    Look::Here(page) => return Ok(self.take(page)),
                    Look::CaughtUp | Look::Over => {
                        // The tail has the sender, and the follower has the tail.
                        let _ = follower.grown.changed().await;
                        continue;
                    }
                    Look::Behind => {}
                    Look::Abandoned => {
                        tokio::time::sleep(self.signals.poll_interval()).await;
                    }
                }
            }
            // All that has a number by now; what is found or not found below it won't change.
            self.signals.number_changes(&self.pool).await?;
            let head = store::changes::head(&self.pool).await?;
            let changes = store::changes::read(&self.pool, self.project.as_ref(), self.after).await?;
            if let Some(page) = Page::new(changes) {
                return Ok(self.take(Arc::new(page)));
            }
            self.after = self.after.max(head);
            if self.follower.is_none() {
                self.follower = Some(Follower::new(&self.pool, &self.signals, head));
            }
        }
    }

    fn take(&mut self, page: Arc<Page>) -> Changes {
        let from = page.changes.partition_point(|change| change.seq <= self.after);
        self.after = page.last();
        Changes {
            page,
            from,
            project: self.project.clone(),
        }
    }
}
