//! The way to the API server, shared by all requests: so many at a time, and none while the server has asked for a pause.
//!
//! A server that answers 429 means everybody, not only whoever happened to be answered. Watches and logs take no place
//! here, since they last; what they are refused counts all the same.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::Instant,
};

/// The longest pause that a server is granted at once. It can ask again.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// Where the server names no pause.
const PAUSE: Duration = Duration::from_secs(1);

/// Bounds what is asked of the API server.
pub(super) struct Gate {
    places: Semaphore,
    closed_until: Mutex<Option<Instant>>,
}

impl Gate {
    /// A gate for so many requests at a time.
    pub(super) fn new(places: usize) -> Self {
        Self {
            places: Semaphore::new(places.max(1)),
            closed_until: Mutex::default(),
        }
    }

    /// Waits for a place, which is free again when the answer is dropped. `None` never comes: the places are never closed.
    pub(super) async fn enter(&self) -> Option<SemaphorePermit<'_>> {
        loop {
            self.open().await;
            let place = self.places.acquire().await.ok();
            // It may have been closed while this one waited in line.
            if self.closed().is_none() {
                return place;
            }
        }
    }

    /// Waits until the server has had the pause it asked for.
    pub(super) async fn open(&self) {
        while let Some(until) = self.closed() {
            tokio::time::sleep_until(until).await;
        }
    }

    /// The server has asked for a pause.
    pub(super) fn close(&self, asked: Option<Duration>) {
        let until = Instant::now() + asked.unwrap_or(PAUSE).min(MAX_PAUSE);
        let mut closed = self.closed_until.lock().unwrap_or_else(PoisonError::into_inner);
        *closed = Some(closed.map_or(until, |before| before.max(until)));
    }

    fn closed(&self) -> Option<Instant> {
        let closed = *self.closed_until.lock().unwrap_or_else(PoisonError::into_inner);
        closed.filter(|until| *until > Instant::now())
    }
}

/// The pause that an answer asks for: `Retry-After` in seconds.
pub(super) fn retry_after(headers: &http::HeaderMap) -> Option<Duration> {
    let seconds = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pause_is_everybodys_and_the_longest_counts() {
        let gate = Arc::new(Gate::new(2));
        let begun = Instant::now();
        gate.close(Some(Duration::from_secs(7)));
        gate.close(Some(Duration::from_secs(3)));
        let late = Arc::clone(&gate);
        // Asked for while others wait already.
        let more = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(5)).await;
            late.close(Some(Duration::from_secs(4)));
        });
        let place = gate.enter().await;
        assert!(place.is_some());
        assert_eq!(begun.elapsed().as_secs(), 9);
        more.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_at_a_time() {
        let gate = Gate::new(2);
        let (first, _second) = (gate.enter().await, gate.enter().await);
        let waits = tokio::time::timeout(Duration::from_mins(1), gate.enter());
        assert!(waits.await.is_err());
        drop(first);
        assert!(gate.enter().await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn no_pause_is_too_long() {
        let gate = Gate::new(1);
        let begun = Instant::now();
        gate.close(Some(Duration::from_hours(1)));
        drop(gate.enter().await);
        assert_eq!(begun.elapsed(), MAX_PAUSE);
    }
}
