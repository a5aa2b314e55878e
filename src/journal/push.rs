//! Taking in what attempts push of their logs, at any replica and any number of times. The spool's offset says where a
//! push belongs, the frames' numbers what of it is new; nothing is acknowledged before it is durable.

use kiln_agent::wire::{
    frame::{Frame, MAX_TEXT},
    push::{Printed, Seal, crc32},
};

use super::{
    AppendError, Logs,
    lines::{Jumps, Lines, time},
    log::{Change, Limit},
};
use crate::{
    domain::{
        build::LogVia,
        event::{Event, Gap, Step, StepName, StepPhase},
        id::AttemptId,
    },
    store::{
        self,
        journal::{Fence, Found, LogCursor, Sealed, Standing, StepCursor},
    },
};

/// Why lines are missing that neither the spool nor a frame in their place has.
const SKIPPED: &str = "the step's agent left these lines out without saying why";
/// Work on more bytes than this is kept from holding up other tasks.
const HEAVY: usize = 64 * 1024;

/// What an attempt is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// Every byte of the step's spool below it is durable.
    pub offset: u64,
    /// Whether the build is to be cancelled.
    pub cancel: bool,
    /// When the newest line was printed that this call brought, in milliseconds since the Unix epoch.
    pub newest_ms: Option<u64>,
}

/// Why a push or a seal was refused.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The attempt is over.
    #[error("the attempt is over")]
    Over,
    /// There was never such an attempt.
    #[error("there is no such attempt")]
    Never,
    /// Bytes before it are missing.
    #[error("only the bytes below {0} are held")]
    Offset(u64),
    /// The bytes aren't whole frames.
    #[error("at offset {offset}: {problem}")]
    Frames {
        /// Where in the spool.
        offset: u64,
        /// What is wrong there.
        problem: &'static str,
    },
    /// The journal can't be written.
    #[error("the journal can't be written")]
    Failed,
    /// The database.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl From<AppendError> for PushError {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Fenced => Self::Over,
            AppendError::Moved(_) | AppendError::Failed => Self::Failed,
        }
    }
}

/// What an attempt sends of a step's spool.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    /// Which step's.
    pub step: StepName,
    /// Where in the spool it begins.
    pub offset: u64,
    /// Whole frames; none at all are a sign of life.
    pub bytes: &'a [u8],
    /// How much the step has printed, if the attempt says so.
    pub printed: Option<Printed>,
}

impl Logs {
    /// Takes a piece of a step's spool. Whoever calls has checked that the attempt itself sends it.
    pub async fn push(&self, attempt: AttemptId, piece: Piece<'_>) -> Result<Acknowledged, PushError> {
        let live = self.live(attempt).await?;
        let mut log = self.attempt(Fence::Attempt(attempt), live.project, live.standing);
        let limit = log.limit().await;
        let mut outcome = Ok((0, None));
        log.update(|standing| {
            let merged = heavily(piece.bytes.len(), || piece.merge(attempt.number, standing, limit));
            let (told, change) = match merged {
                Ok((told, change)) => (Ok(told), change),
                Err(refused) => (Err(refused), None),
            };
            outcome = told;
            change
        })
        .await?;
        let (offset, newest_ms) = outcome?;
        Ok(Acknowledged {
            offset,
            cancel: live.cancelling,
            newest_ms,
        })
    }

    /// Takes a step's seal: compares it with what has arrived, and keeps it. What differs becomes a gap.
    pub async fn seal(&self, attempt: AttemptId, step: StepName, seal: Seal) -> Result<Acknowledged, PushError> {
        let live = self.live(attempt).await?;
        let now = self.now();
        let mut log = self.attempt(Fence::Attempt(attempt), live.project, live.standing);
        let mut outcome = Ok(0);
        log.update(|standing| {
            let held = standing.cursor.step(step);
            if held.sealed.is_some() || held.ended {
                outcome = Ok(held.bytes.max(seal.bytes));
                return None;
            }
            if seal.bytes > held.bytes {
                outcome = Err(PushError::Offset(held.bytes));
                return None;
            }
            outcome = Ok(held.bytes);
            let mut cursor = held;
            let mut events = begin(&standing.cursor, step, attempt.number, now);
            let agrees = (seal.bytes, seal.crc32) == (held.bytes, held.crc32) && seal.lines <= held.line;
            if let Some((lines, reason)) = shortfall(&seal, &held) {
                cursor.line = cursor.line.max(seal.lines);
                events.push(Event::Gap(Gap {
                    step,
                    lines,
                    reason,
                    at: now,
                }));
            }
            cursor.via = Some(LogVia::Push);
            cursor.sealed = Some(Sealed {
                lines: seal.lines,
                complete: seal.complete,
                agrees,
            });
            Some(Change {
                cursor: ended_before(&standing.cursor, step).with(step, cursor),
                events,
                text: 0,
            })
        })
        .await?;
        Ok(Acknowledged {
            offset: outcome?,
            cancel: live.cancelling,
            newest_ms: None,
        })
    }

    async fn live(&self, attempt: AttemptId) -> Result<store::journal::Live, PushError> {
        match store::journal::find(self.pool(), attempt).await? {
            Found::Live(live) => Ok(live),
            Found::Over => Err(PushError::Over),
            Found::Never => Err(PushError::Never),
        }
    }
}

/// How much is missing by what a seal says, and in which words.
fn shortfall(seal: &Seal, held: &StepCursor) -> Option<(Option<u64>, String)> {
    if seal.lines > held.line {
        let reason = "the end of the log did not reach Kiln, though all that the attempt still had was sent";
        return Some((Some(seal.lines - held.line), reason.to_owned()));
    }
    if seal.bytes != held.bytes {
        let reason = format!(
            "the attempt sent {} bytes of this step's log and then said that there are {}: some of it may be wrong",
            held.bytes, seal.bytes
        );
        return Some((None, reason));
    }
    (seal.crc32 != held.crc32).then(|| {
        let reason = format!(
            "the checksum of this step's log is {:08x} and not {:08x}, as the attempt said: some of it may be wrong",
            held.crc32, seal.crc32
        );
        (None, reason)
    })
}

/// What a push comes to: up to where everything is held, and when the newest line was printed.
type Told = (u64, Option<u64>);

impl Piece<'_> {
    /// Merges the piece with what is held.
    fn merge(&self, attempt: u32, standing: &Standing, limit: Limit) -> Result<(Told, Option<Change>), PushError> {
        let held = standing.cursor.step(self.step);
        let end = self.offset + self.bytes.len() as u64;
        // What comes after the end was declared, with a gap where something was missing.
        if held.ended || held.sealed.is_some() {
            return Ok(((held.bytes.max(end), None), None));
        }
        let Some(skip) = held.bytes.checked_sub(self.offset) else {
            return Err(PushError::Offset(held.bytes));
        };
        let Some(fresh) = usize::try_from(skip).ok().and_then(|skip| self.bytes.get(skip..)) else {
            return Ok(((held.bytes, None), None));
        };
        if fresh.is_empty() {
            return Ok(((held.bytes, None), self.sign_of_life(standing)));
        }
        let room = limit.room(standing);
        let mut lines = Lines::new(self.step, attempt, held, Jumps::Report(SKIPPED), room);
        let mut at = held.bytes;
        let mut first_ms = None;
        for line in fresh.split_inclusive(|&byte| byte == b'\n') {
            let frame = line
                .strip_suffix(b"\n")
                .ok_or("a frame ends with a newline; send whole frames only")
                .and_then(|line| Frame::parse(line).ok_or("this is no frame"))
                .and_then(|frame| {
                    let fits = frame.text.len() <= MAX_TEXT;
                    fits.then_some(frame).ok_or("a frame's text is at most 64 KiB long")
                })
                .map_err(|problem| PushError::Frames { offset: at, problem })?;
            first_ms.get_or_insert(frame.at_ms);
            lines.frame(&frame);
            at += line.len() as u64;
        }
        let mut batch = lines.finish();
        batch.cursor.bytes = at;
        batch.cursor.crc32 = crc32(held.crc32, fresh);
        batch.cursor.via = Some(LogVia::Push);
        batch.cursor = batch.cursor.and_printed(self.printed);
        let newest_ms = batch.cursor.at_ms;
        let begun_at = time(first_ms.unwrap_or_default());
        let mut events = begin(&standing.cursor, self.step, attempt, begun_at);
        events.append(&mut batch.events);
        let change = Change {
            cursor: ended_before(&standing.cursor, self.step).with(self.step, batch.cursor),
            events,
            text: batch.text,
        };
        Ok(((at, Some(newest_ms)), Some(change)))
    }

    /// Notes that what runs is pushed and how much it has printed, where that wasn't known.
    fn sign_of_life(&self, standing: &Standing) -> Option<Change> {
        let mut cursor = standing.cursor.clone();
        for (step, held) in cursor.0.iter_mut().filter(|(_, held)| !held.ended) {
            held.via = Some(LogVia::Push);
            if *step == self.step {
                *held = held.and_printed(self.printed);
            }
        }
        (cursor != standing.cursor).then_some(Change {
            cursor,
            events: Vec::new(),
            text: 0,
        })
    }
}

/// The entries that come before the first of a step, when its worker hasn't seen yet that it runs: that it does, and
/// that the step before it ended well, without which it would not.
fn begin(cursor: &LogCursor, step: StepName, attempt: u32, at: chrono::DateTime<chrono::Utc>) -> Vec<Event> {
    let mut events = Vec::new();
    if cursor.0.contains_key(&step) {
        return events;
    }
    for before in ending_before(cursor, step) {
        events.extend(super::lines::not_kept(before, &cursor.step(before), at));
        events.push(Event::Step(Step::whole(before, attempt, StepPhase::Succeeded, at)));
    }
    events.push(Event::Step(Step::whole(step, attempt, StepPhase::Started, at)));
    events
}

/// Steps that are over because this one begins, and whose log is at its end.
fn ending_before(cursor: &LogCursor, step: StepName) -> impl Iterator<Item = StepName> {
    let begins = !cursor.0.contains_key(&step);
    cursor
        .0
        .iter()
        .filter(move |(before, held)| begins && **before < step && !held.ended && held.sealed.is_some())
        .map(|(before, _)| *before)
        .collect::<Vec<_>>()
        .into_iter()
}

/// The cursor after [`begin`].
fn ended_before(cursor: &LogCursor, step: StepName) -> LogCursor {
    let mut after = cursor.clone();
    for before in ending_before(cursor, step) {
        if let Some(held) = after.0.get_mut(&before) {
            held.ended = true;
        }
    }
    after
}

/// Does work that takes a while when there is much to do.
fn heavily<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    if bytes > HEAVY && Handle::try_current().is_ok_and(|now| now.runtime_flavor() == RuntimeFlavor::MultiThread) {
        tokio::task::block_in_place(work)
    } else {
        work()
    }
}
