//! The journals that somebody follows: how far each has grown, as far as this process knows, and its newest entries.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{sync::watch, task::AbortHandle};

use super::{
    Frames,
    tail::{Look, Shelf, Tail, TailLimits},
};
use crate::domain::id::BuildId;

/// The heads. Only builds with subscribers are kept, so the size is bounded by the number of readers.
#[derive(Clone)]
pub struct Heads(Arc<Inner>);

struct Inner {
    map: Mutex<HashMap<BuildId, Watched>>,
    shelf: Shelf<Frames>,
}

/// What is known about a journal.
#[derive(Clone, Copy, Debug)]
pub(super) struct News {
    /// It has grown to this at least.
    pub(super) head: i64,
    /// How often it was suspected that news was missed.
    pub(super) nudges: u64,
}

/// A journal with subscribers.
struct Watched {
    subscribers: usize,
    news: watch::Sender<News>,
    /// Where some of them follow its entries.
    shared: Option<Shared>,
}

/// What those share who follow a journal's entries.
struct Shared {
    followers: usize,
    tail: Arc<Tail<Frames>>,
    /// The task that reads for all of them.
    filler: AbortHandle,
}

impl Heads {
    pub(super) fn new(limits: TailLimits) -> Self {
        Self(Arc::new(Inner {
            map: Mutex::default(),
            shelf: Shelf::new(limits),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<BuildId, Watched>> {
        // The map is whole after every statement, so a panic elsewhere can't have left it half changed.
        self.0.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells subscribers that a journal has grown at least to `head`. Late news of smaller heads is ignored.
    pub fn advance(&self, build: BuildId, head: i64) {
        if let Some(watched) = self.lock().get(&build) {
            watched.news.send_if_modified(|known| {
                let grown = head > known.head;
                known.head = head.max(known.head);
                grown
            });
        }
    }

    /// Makes everybody look again, because news may have been missed.
    pub fn nudge(&self) {
        for watched in self.lock().values() {
            watched.news.send_modify(|known| known.nudges += 1);
        }
    }

    /// Hears of a build's growth. Subscribe first and read then, so that nothing falls between.
    pub fn subscribe(&self, build: BuildId) -> Subscription {
        self.watch(&mut self.lock(), build)
    }

    fn watch(&self, map: &mut HashMap<BuildId, Watched>, build: BuildId) -> Subscription {
        let watched = map.entry(build).or_insert_with(|| Watched {
            subscribers: 0,
            news: watch::Sender::new(News { head: 0, nudges: 0 }),
            shared: None,
        });
        watched.subscribers += 1;
        Subscription {
            heads: self.clone(),
            build,
            news: watched.news.subscribe(),
        }
    }

    /// Follows a journal's entries. The first follower begins the tail, and `fill` makes the task that fills it.
    pub(super) fn follow(
        &self,
        build: BuildId,
        fill: impl FnOnce(watch::Receiver<News>) -> (Arc<Tail<Frames>>, AbortHandle),
    ) -> Follower {
        let mut map = self.lock();
        let subscription = self.watch(&mut map, build);
        let news = subscription.news.clone();
        let tail = map.get_mut(&build).map(|watched| {
            let shared = watched.shared.get_or_insert_with(|| {
                let (tail, filler) = fill(news);
                Shared {
                    followers: 0,
                    tail,
                    filler,
                }
            });
            shared.followers += 1;
            Arc::clone(&shared.tail)
        });
        // Watching it has made the entry.
        let tail = tail.unwrap_or_else(|| Tail::new(0));
        Follower::new(subscription, tail)
    }

    /// Follows a journal's entries if others do.
    pub(super) fn follow_too(&self, build: BuildId) -> Option<Follower> {
        let mut map = self.lock();
        let shared = map.get_mut(&build)?.shared.as_mut()?;
        shared.followers += 1;
        let tail = Arc::clone(&shared.tail);
        Some(Follower::new(self.watch(&mut map, build), tail))
    }

    pub(super) fn shelf(&self) -> &Shelf<Frames> {
        &self.0.shelf
    }

    /// Number of builds with subscribers.
    pub fn watched(&self) -> usize {
        self.lock().len()
    }

    /// Bytes of memory that the newest entries take.
    pub fn held_bytes(&self) -> usize {
        self.0.shelf.bytes()
    }
}

/// Somebody's interest in a build.
pub struct Subscription {
    heads: Heads,
    build: BuildId,
    news: watch::Receiver<News>,
}

impl Subscription {
    /// Waits for news since the last call.
    pub async fn changed(&mut self) {
        // The sender stays in the map while there is a subscriber.
        let _ = self.news.changed().await;
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut map = self.heads.lock();
        if let Some(watched) = map.get_mut(&self.build) {
            watched.subscribers -= 1;
            if watched.subscribers == 0 {
                map.remove(&self.build);
            }
        }
    }
}

/// Somebody who follows a journal's entries.
pub(super) struct Follower {
    tail: Arc<Tail<Frames>>,
    grown: watch::Receiver<()>,
    subscription: Subscription,
}

impl Follower {
    fn new(subscription: Subscription, tail: Arc<Tail<Frames>>) -> Self {
        Self {
            grown: tail.grown(),
            tail,
            subscription,
        }
    }

    /// What follows after an entry. What comes later than this call is told by [`Self::grown`].
    pub(super) fn look(&mut self, after: i64) -> Look<Frames> {
        self.grown.mark_unchanged();
        self.tail.look(after)
    }

    /// Waits for growth since the last look.
    pub(super) async fn grown(&mut self) {
        // The tail has the sender, and this has the tail.
        let _ = self.grown.changed().await;
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let Subscription { heads, build, .. } = &self.subscription;
        let mut map = heads.lock();
        let Some(watched) = map.get_mut(build) else { return };
        if let Some(shared) = &mut watched.shared {
            shared.followers -= 1;
            if shared.followers == 0 {
                shared.filler.abort();
                watched.shared = None;
                drop(map);
                heads.shelf().remove(&self.tail);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn subscribers_hear_growth_and_leave_nothing_behind() {
        let heads = Heads::new(TailLimits::default());
        let build = BuildId::new();
        heads.advance(build, 5);
        assert_eq!(heads.watched(), 0);
        let mut first = heads.subscribe(build);
        let second = heads.subscribe(build);
        heads.advance(build, 6);
        first.changed().await;
        heads.nudge();
        first.changed().await;
        drop(first);
        assert_eq!(heads.watched(), 1);
        drop(second);
        assert_eq!(heads.watched(), 0);
    }

    #[tokio::test]
    async fn followers_share_one_task_that_ends_with_the_last_of_them() {
        let heads = Heads::new(TailLimits::default());
        let build = BuildId::new();
        assert!(heads.follow_too(build).is_none());
        let task = tokio::spawn(std::future::pending::<()>());
        let first = heads.follow(build, |_| (Tail::new(3), task.abort_handle()));
        let second = heads.follow(build, |_| unreachable!("the first one fills"));
        let mut third = heads.follow_too(build).expect("others follow");
        assert!(matches!(third.look(3), Look::CaughtUp));
        assert!(matches!(third.look(2), Look::Behind));
        drop((first, second));
        assert!(!task.is_finished());
        drop(third);
        assert!(task.await.is_err_and(|error| error.is_cancelled()));
        assert_eq!(heads.watched(), 0);
    }
}
