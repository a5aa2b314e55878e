//! Which way a step's log comes, and for how long which way is waited for.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    Carried, LogPump, end_of, is_over,
    read::{Read, Reading},
};
use crate::{
    domain::event::StepName,
    engine::config::seconds,
    journal::{AppendError, log::Change},
    runner::{LogEnd, Observation, Runner, Shipping},
    store::journal::Sealed,
};

/// How often to look for a seal once the step has ended: soon at first, then ever less often.
const LOOKS: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// How often to look while the step runs; all there is to see is whether anything was pushed at all.
const LOOK_RUNNING: Duration = Duration::from_secs(1);

/// What came of waiting for pushes.
#[derive(Debug, PartialEq, Eq)]
enum Pushed {
    /// All of it, and the seal.
    Sealed(Sealed),
    /// Nothing for a while; it may come back.
    Silent,
    /// No more can come.
    Over,
    /// There is no more time.
    Late,
}

impl<R: Runner> LogPump<'_, R> {
    /// Waits until the step's log is in the journal, or whatever of it can be had.
    pub(super) async fn carry(&mut self, step: StepName) -> Result<Carried, AppendError> {
        if self.shipping() == Shipping::Absent && !self.log.cursor().is_pushed() {
            return self.read_rest(step).await;
        }
        let mut read = false;
        loop {
            match self.wait_for_seal(step, read).await {
                Pushed::Sealed(sealed) => return Ok(Carried::Sealed(sealed)),
                Pushed::Late => return Ok(Carried::Read(late())),
                Pushed::Over => {
                    self.fall_back(step).await?;
                    return self.read_rest(step).await;
                }
                Pushed::Silent => {
                    self.fall_back(step).await?;
                    match self.read(step, Reading::WhileSilent).await? {
                        Read::Pushed => read = false,
                        Read::Ended(LogEnd::Complete) if self.has_all(step) => {
                            return Ok(Carried::Read(LogEnd::Complete));
                        }
                        // What is missing may still be pushed.
                        Read::Ended(_) | Read::Jumped => read = true,
                    }
                }
            }
        }
    }

    /// Reads what there is, as nothing else is waited for. A push may bring the rest meanwhile, and the seal.
    async fn read_rest(&mut self, step: StepName) -> Result<Carried, AppendError> {
        let read = match self.read(step, Reading::Alone).await? {
            Read::Ended(end) => end,
            Read::Pushed | Read::Jumped => late(),
        };
        let sealed = self.log.cursor().step(step).sealed;
        Ok(sealed.map_or(Carried::Read(read), Carried::Sealed))
    }

    /// What is known of the attempt's own sending.
    pub(super) fn shipping(&self) -> Shipping {
        self.context.runner.shipping(self.lease.attempt)
    }

    /// Whether the step has ended and every line is held that its agent says it printed.
    fn has_all(&self, step: StepName) -> bool {
        let observation = self.observed.borrow();
        let report = end_of(&observation, step).and_then(|end| end.report.as_ref());
        report.is_some_and(|report| report.lines <= self.log.cursor().step(step).line)
    }

    /// Waits for the seal, as long as that makes sense. `read` says that what the runner has was read already.
    async fn wait_for_seal(&mut self, step: StepName, read: bool) -> Pushed {
        let config = &self.context.config;
        let (patience, limit) = (
            seconds(config.log_push_patience_seconds),
            seconds(config.log_seal_timeout_seconds),
        );
        let begun = Instant::now();
        let mut pause = LOOKS.0;
        let mut ended = None;
        let mut progress = (self.log.cursor().step(step), begun);
        loop {
            // Asked before looking: what was pushed before the end is then certain to be seen.
            let (over, gone) = {
                let observation = self.observed.borrow_and_update();
                let gone = matches!(*observation, Observation::Gone { .. });
                (is_over(&observation) || end_of(&observation, step).is_some(), gone)
            };
            let sends = self.shipping();
            let now = Instant::now();
            let ended = over.then(|| *ended.get_or_insert(now));
            let asked = self.log.refresh().await;
            let held = self.log.cursor().step(step);
            if held != progress.0 {
                progress = (held, now);
            }
            let pushes = self.log.cursor().is_pushed();
            let quiet = now - ended.map_or(progress.1, |ended| ended.max(progress.1));
            // Containers may outlive their pod for a moment, and the one that pushes goes last.
            let lingers = gone && pushes && quiet < patience;
            if let Err(error) = asked {
                tracing::debug!(error = %error, "where the log stands can't be read");
            } else if let Some(sealed) = held.sealed {
                return Pushed::Sealed(sealed);
            } else if !lingers && (gone || sends == Shipping::Over) {
                return Pushed::Over;
            }
            if pushes {
                if ended.is_some_and(|ended| now - ended >= limit) {
                    return Pushed::Over;
                }
                if ended.is_some() && quiet >= patience && !read {
                    return Pushed::Silent;
                }
            } else {
                if !read && (self.log.cursor().was_read() || now - begun >= patience) {
                    return Pushed::Silent;
                }
                // What never got through gives up soon after the step's end.
                if ended.is_some_and(|ended| now - ended >= patience * 2) {
                    return Pushed::Over;
                }
            }
            let wait = if ended.is_some() {
                pause = (pause * 2).min(LOOKS.1);
                pause
            } else {
                LOOK_RUNNING
            };
            tokio::select! {
                () = self.hurry.cancelled() => return Pushed::Late,
                () = tokio::time::sleep(wait) => {}
                changed = self.observed.changed() => if changed.is_err() {
                    // The runner shuts down.
                    return Pushed::Late;
                },
            }
        }
    }

    /// Goes over to reading what the runner has, and lets callers see it.
    async fn fall_back(&mut self, step: StepName) -> Result<(), AppendError> {
        if self.note_reading(step).await? {
            self.context.metrics.log_fallbacks.inc();
            tracing::info!(
                step = step.as_str(),
                "the attempt doesn't push its log; it is read instead"
            );
        }
        Ok(())
    }

    /// Notes that the step's log is read. Says whether that is news.
    async fn note_reading(&mut self, step: StepName) -> Result<bool, AppendError> {
        let mut news = false;
        self.log
            .update(|standing| {
                let mut cursor = standing.cursor.step(step);
                news = cursor.via != Some(R::LOG_VIA) && !cursor.ended;
                cursor.via = Some(R::LOG_VIA);
                news.then(|| Change {
                    cursor: standing.cursor.with(step, cursor),
                    events: Vec::new(),
                    text: 0,
                })
            })
            .await?;
        Ok(news)
    }
}

/// The end of what isn't waited for any more.
pub(super) fn late() -> LogEnd {
    LogEnd::Lost("the rest of the log did not arrive in time".to_owned())
}
