//! How far each journal that somebody reads has grown, as far as this process knows.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use crate::domain::id::BuildId;

type Map = HashMap<BuildId, watch::Sender<i64>>;

/// The heads. Only builds with subscribers are kept, so the size is bounded by the number of readers.
#[derive(Clone, Default)]
pub struct Heads(Arc<Mutex<Map>>);

impl Heads {
    fn lock(&self) -> MutexGuard<'_, Map> {
        // The map is whole after every statement, so a panic elsewhere can't have left it half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells subscribers that a journal has grown at least to `head`. Late news of smaller heads is ignored.
    pub fn advance(&self, build: BuildId, head: i64) {
        if let Some(sender) = self.lock().get(&build) {
            sender.send_if_modified(|known| {
                let grown = head > *known;
                *known = head.max(*known);
                grown
            });
        }
    }

    /// Makes every subscriber look again, because news may have been missed.
    pub fn nudge(&self) {
        for sender in self.lock().values() {
            sender.send_modify(|_| {});
        }
    }

    /// Follows a build's head. Subscribe first and read then, so that nothing falls between.
    pub fn subscribe(&self, build: BuildId) -> Subscription {
        let receiver = self
            .lock()
            .entry(build)
            .or_insert_with(|| watch::Sender::new(0))
            .subscribe();
        Subscription {
            heads: self.clone(),
            build,
            receiver: Some(receiver),
        }
    }

    /// Number of builds with subscribers.
    pub fn watched(&self) -> usize {
        self.lock().len()
    }
}

/// A reader's interest in a build.
pub struct Subscription {
    heads: Heads,
    build: BuildId,
    receiver: Option<watch::Receiver<i64>>,
}

impl Subscription {
    /// Waits for news since the last call.
    pub async fn changed(&mut self) {
        if let Some(receiver) = &mut self.receiver
            // The sender stays in the map while there is a receiver.
            && receiver.changed().await.is_ok()
        {
            return;
        }
        std::future::pending::<()>().await;
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut map = self.heads.lock();
        self.receiver = None;
        if map.get(&self.build).is_some_and(|sender| sender.receiver_count() == 0) {
            map.remove(&self.build);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn subscribers_hear_growth_and_leave_nothing_behind() {
        let heads = Heads::default();
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
}
