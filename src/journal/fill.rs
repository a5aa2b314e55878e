//! Reads a journal for all its followers at once: one query for each growth, however many they are.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

use super::{
    Frames, History, ReadError, Signals,
    heads::News,
    tail::{Item as _, Tail},
};
use crate::{
    domain::{event::Event, id::BuildId},
    store::{self, Error},
};

/// Pauses while the database is away.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Fills a tail with what comes after `last` as the journal grows, until the build is over.
pub(super) async fn fill(
    history: History,
    signals: Signals,
    build: BuildId,
    tail: Arc<Tail<Frames>>,
    mut news: watch::Receiver<News>,
    mut last: i64,
) {
    let _abandons = Abandons(&tail);
    let mut backoff = BACKOFF.0;
    loop {
        let nudges = news.borrow().nudges;
        match read(&history, &signals, build, &tail, &mut last).await {
            Ok(Outcome::Grown) => backoff = BACKOFF.0,
            Ok(Outcome::Over) => return tail.end(),
            Ok(Outcome::Nothing) => {
                backoff = BACKOFF.0;
                let poll = signals.poll_interval();
                // News of what has been read already isn't any.
                let news = news.wait_for(|news| news.head > last || news.nudges != nudges);
                // Whether it is news or time to look makes no difference.
                let _ = tokio::time::timeout(poll, news).await;
            }
            Err(ReadError::Store(Error::Unavailable(error))) => {
                tracing::warn!(build.id = %build, error = %error, "those who follow a journal wait for the database");
                tokio::time::sleep(backoff).await;
                backoff = (backoff * 2).min(BACKOFF.1);
            }
            // Readers meet the same error, each for itself.
            Err(error) => {
                tracing::error!(build.id = %build, error = ?error, "a journal can't be followed");
                return;
            }
        }
    }
}

/// Lets readers know when nobody reads for them any more, whatever the reason.
struct Abandons<'a>(&'a Tail<Frames>);

impl Drop for Abandons<'_> {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

enum Outcome {
    Grown,
    Nothing,
    Over,
}

async fn read(
    history: &History,
    signals: &Signals,
    build: BuildId,
    tail: &Arc<Tail<Frames>>,
    last: &mut i64,
) -> Result<Outcome, ReadError> {
    let page = history.read(build, *last).await?;
    let over = matches!(page.last(), Some((_, Event::End(_))));
    let Some(frames) = Frames::new(page) else {
        // The build may have been deleted, or have ended before where its followers began.
        let progress = store::builds::progress(history.pool(), build).await?;
        let over = progress.is_none_or(|now| now.state.is_terminal() && *last >= now.head);
        return Ok(if over { Outcome::Over } else { Outcome::Nothing });
    };
    *last = frames.last();
    signals.heads().shelf().put(tail, frames);
    Ok(if over { Outcome::Over } else { Outcome::Grown })
}
