//! Following one build's journal from any point, live or long after.

use std::{sync::Arc, time::Duration};

use super::{
    Frames, History, ReadError, Signals, Slice,
    fill::fill,
    heads::Follower,
    tail::{Item as _, Look, Tail},
};
use crate::{
    domain::{event::Event, id::BuildId},
    store::{self, builds::Progress},
};

/// Reads a journal in order, from after a sequence number until its end. What is there when it begins it reads from
/// Postgres, page by page at its own speed; what comes then it finds in the tail that all followers of the build share,
/// or in Postgres again when it has fallen behind that.
pub struct Reader {
    history: History,
    signals: Signals,
    build: BuildId,
    after: i64,
    /// An entry that the journal is known to hold, with everything before.
    known: i64,
    live: Live,
}

enum Live {
    /// The build isn't over, and the tail not yet needed.
    NotYet,
    Following(Follower),
    /// The build is over: its journal doesn't grow any more.
    Finished,
    /// Everything was returned.
    Ended,
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
        let Some(progress) = store::builds::progress(history.pool(), build).await? else {
            return Ok(None);
        };
        if progress.archived && after < progress.head {
            history.check(build).await?;
        }
        let reader = Self {
            history: history.clone(),
            signals: signals.clone(),
            build,
            after,
            known: progress.head,
            live: match progress.state.is_terminal() {
                true if after >= progress.head => Live::Ended,
                true => Live::Finished,
                false => Live::NotYet,
            },
        };
        Ok(Some(Opened { reader, progress }))
    }

    /// Sequence number of the last entry that was returned, or the one the reader began after.
    pub const fn position(&self) -> i64 {
        self.after
    }

    /// The next entries; waits for some. `None` after the end. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Result<Option<Slice>, ReadError> {
        loop {
            let alone = match &mut self.live {
                Live::Ended => return Ok(None),
                Live::Finished => false,
                Live::NotYet => {
                    if self.join() {
                        continue;
                    }
                    false
                }
                Live::Following(follower) => match follower.look(self.after) {
                    Look::Here(frames) => return Ok(Some(self.take(frames))),
                    Look::Over => {
                        self.live = Live::Ended;
                        return Ok(None);
                    }
                    Look::CaughtUp => {
                        follower.grown().await;
                        continue;
                    }
                    Look::Behind => false,
                    Look::Abandoned => true,
                },
            };
            if let Some(slice) = self.read().await? {
                return Ok(Some(slice));
            }
            // The build may have been deleted, or have ended before where this reader began.
            let progress = store::builds::progress(self.history.pool(), self.build).await?;
            if progress.is_none_or(|now| now.state.is_terminal() && self.after >= now.head) {
                self.live = Live::Ended;
            } else if alone {
                let poll: Duration = self.signals.poll_interval();
                tokio::time::sleep(poll).await;
            }
        }
    }

    /// The next entries that are there already; `None` when there are none.
    pub async fn available(&mut self) -> Result<Option<Slice>, ReadError> {
        match &mut self.live {
            Live::Ended => return Ok(None),
            Live::Following(follower) => {
                if let Look::Here(frames) = follower.look(self.after) {
                    return Ok(Some(self.take(frames)));
                }
            }
            Live::NotYet | Live::Finished => {}
        }
        self.read().await
    }

    /// Goes over to what all followers share, if there are others or this one has nothing else to read.
    fn join(&mut self) -> bool {
        let heads = self.signals.heads();
        let follower = if self.after < self.known {
            heads.follow_too(self.build)
        } else {
            Some(heads.follow(self.build, |news| {
                let tail = Tail::new(self.known);
                let task = fill(
                    self.history.clone(),
                    self.signals.clone(),
                    self.build,
                    Arc::clone(&tail),
                    news,
                    self.known,
                );
                (tail, tokio::spawn(task).abort_handle())
            }))
        };
        let joined = follower.map(Live::Following);
        joined.map(|live| self.live = live).is_some()
    }

    /// What Postgres has.
    async fn read(&mut self) -> Result<Option<Slice>, ReadError> {
        let page = self.history.read(self.build, self.after).await?;
        Ok(Frames::new(page).map(|frames| self.take(Arc::new(frames))))
    }

    fn take(&mut self, frames: Arc<Frames>) -> Slice {
        let last = frames.last();
        let slice = Slice::after(frames, self.after);
        self.after = last;
        self.known = self.known.max(last);
        if matches!(slice.last(), Some((_, Event::End(_)))) {
            self.live = Live::Ended;
        }
        slice
    }
}
