//! Reading a step's log as far as the runner has it.

use std::time::Duration;

use super::{LogPump, carry::late};
use crate::{
    domain::{
        build::LogVia,
        event::{Event, StepName},
    },
    journal::{
        AppendError,
        lines::{Jumps, Lines},
        log::Change,
    },
    runner::{LogEnd, LogPosition, Runner},
};

/// An append gathers about this much output before it goes to the journal.
const MAX_APPEND: usize = 512 * 1024;
/// How often to look whether the attempt has begun to push.
const LOOK: Duration = Duration::from_secs(1);
/// Why lines are missing between others that were read.
const ROTATED: &str = "the cluster rotated the log away before it could be read";

/// Whether anything else may bring what the runner's log lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// Nothing.
    Alone,
    /// Pushes that may come back: lines behind a jump are left to them.
    WhileSilent,
}

/// How the reading ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// Nothing more can be had.
    Ended(LogEnd),
    /// Lines are missing between those that are held and those that can be had.
    Jumped,
    /// The attempt pushes, or has pushed all of it.
    Pushed,
}

impl<R: Runner> LogPump<'_, R> {
    /// Copies the step's output until its end, or until pushes take over.
    pub(super) async fn read(&mut self, step: StepName, reading: Reading) -> Result<Read, AppendError> {
        let at = self.log.cursor().step(step);
        let mut reader = self.context.runner.read_log(
            self.lease.attempt,
            step,
            LogPosition {
                line: at.line,
                at_ms: at.at_ms,
            },
        );
        loop {
            let chunk = tokio::select! {
                chunk = reader.chunks.recv() => chunk,
                () = self.hurry.cancelled() => {
                    reader.end.abort();
                    return Ok(Read::Ended(late()));
                }
                () = tokio::time::sleep(LOOK), if reading == Reading::WhileSilent => {
                    // Where the database can't be asked, the next append finds out.
                    if self.log.refresh().await.is_ok() && self.is_pushed(step) {
                        reader.end.abort();
                        return Ok(Read::Pushed);
                    }
                    continue;
                }
            };
            let Some(chunk) = chunk else { break };
            let mut size = chunk.len();
            let mut chunks = vec![chunk];
            while size < MAX_APPEND
                && let Ok(chunk) = reader.chunks.try_recv()
            {
                size += chunk.len();
                chunks.push(chunk);
            }
            if let Some(end) = self.append(step, reading, &chunks).await? {
                reader.end.abort();
                return Ok(end);
            }
        }
        let broken = || LogEnd::Lost("reading the log broke off".to_owned());
        Ok(Read::Ended(reader.end.await.unwrap_or_else(|_| broken())))
    }

    fn is_pushed(&self, step: StepName) -> bool {
        let held = self.log.cursor().step(step);
        held.via == Some(LogVia::Push) || held.ended || held.sealed.is_some()
    }

    /// Appends what was read; says how the reading ends, if it does.
    async fn append(
        &mut self,
        step: StepName,
        reading: Reading,
        chunks: &[bytes::Bytes],
    ) -> Result<Option<Read>, AppendError> {
        let attempt = self.lease.attempt.number;
        let limit = self.log.limit().await;
        let jumps = match reading {
            Reading::Alone => Jumps::Report(ROTATED),
            Reading::WhileSilent => Jumps::Stop,
        };
        let (mut end, mut gaps) = (None, 0);
        self.log
            .update(|standing| {
                (end, gaps) = (None, 0);
                let held = standing.cursor.step(step);
                let pushed = held.via == Some(LogVia::Push) && reading == Reading::WhileSilent;
                if pushed || held.ended || held.sealed.is_some() {
                    end = Some(Read::Pushed);
                    return None;
                }
                let mut lines = Lines::new(step, attempt, held, jumps, limit.room(standing));
                for chunk in chunks {
                    lines.take(chunk);
                }
                if lines.is_stopped() {
                    end = Some(Read::Jumped);
                }
                let mut batch = lines.finish();
                if batch.cursor == held {
                    return None;
                }
                gaps = batch
                    .events
                    .iter()
                    .filter(|event| matches!(event, Event::Gap(_)))
                    .count();
                batch.cursor.via = Some(R::LOG_VIA);
                Some(Change {
                    cursor: standing.cursor.with(step, batch.cursor),
                    events: batch.events,
                    text: batch.text,
                })
            })
            .await?;
        for _ in 0..gaps {
            self.count_gap("within");
        }
        Ok(end)
    }
}
