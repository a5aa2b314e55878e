//! Following one build's journal from any point, live or long after.

use std::time::Duration;

use super::{History, ReadError, Signals, heads::Subscription};
use crate::{
    domain::{event::Event, id::BuildId},
    store::{self, builds::Progress, journal::Page},
};

/// Reads a journal in order, from after a sequence number until its end.
pub struct Reader {
    history: History,
    signals: Signals,
    subscription: Subscription,
    build: BuildId,
    after: i64,
    ended: bool,
}

/// What a reader starts with.
pub struct Opened {
    /// The reader.
    pub reader: Reader,
    /// How far the build was when the reader was opened.
    pub progress: Progress,
}

impl Opened {
    /// Whether the build is over and the reader has nothing left to read.
    pub const fn is_caught_up(&self) -> bool {
        self.progress.state.is_terminal() && self.reader.after >= self.progress.head
    }
}

impl Reader {
    /// A reader of the entries after `after`; 0 for all. `None` when there is no such build.
    pub async fn open(
        history: &History,
        signals: &Signals,
        build: BuildId,
        after: i64,
    ) -> Result<Option<Opened>, ReadError> {
        let subscription = signals.heads().subscribe(build);
        let Some(progress) = store::builds::progress(history.pool(), build).await? else {
            return Ok(None);
        };
        if progress.archived && after < progress.head {
            history.check(build).await?;
        }
        let reader = Self {
            history: history.clone(),
            signals: signals.clone(),
            subscription,
            build,
            after,
            ended: progress.state.is_terminal() && after >= progress.head,
        };
        Ok(Some(Opened { reader, progress }))
    }

    /// Sequence number of the last entry that was returned, or the one the reader began after.
    pub const fn position(&self) -> i64 {
        self.after
    }

    /// The next entries; waits for some. `None` after the end. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Option<Page>, ReadError> {
        let mut waited = false;
        loop {
            if let Some(page) = self.available().await? {
                return Ok(Some(page));
            }
            // Woken without an entry: the build may have been deleted, or have ended before where this reader began.
            if waited && !self.ended {
                let progress = store::builds::progress(self.history.pool(), self.build).await?;
                self.ended = progress.is_none_or(|now| now.state.is_terminal() && self.after >= now.head);
            }
            if self.ended {
                return Ok(None);
            }
            self.wait().await;
            waited = true;
        }
    }

    /// The next entries that are there already; `None` when there are none.
    pub async fn available(&mut self) -> Result<Option<Page>, ReadError> {
        if self.ended {
            return Ok(None);
        }
        let page = self.history.read(self.build, self.after).await?;
        let Some((last, event)) = page.last() else {
            return Ok(None);
        };
        self.after = *last;
        self.ended = matches!(event, Event::End(_));
        Ok(Some(page))
    }

    /// Waits for news, or until it is time to look without any.
    async fn wait(&mut self) {
        let poll: Duration = self.signals.poll_interval();
        // Either way the next thing is to look.
        let _ = tokio::time::timeout(poll, self.subscription.changed()).await;
    }
}
