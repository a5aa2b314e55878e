//! Carries the output of an attempt's steps into the journal: every line once, in order, and a gap where a line is
//! known to be missing or may be.

use chrono::{DateTime, Utc};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use kiln_agent::wire::{
    self,
    frame::{Frame, Stream},
    step::StepRecord,
};

use super::{Context, metrics::GapLabels};
use crate::{
    domain::event::{Event, Gap, Log, LogStream, Step, StepName, StepPhase},
    journal::AppendError,
    runner::{LogEnd, LogPosition, Observation, Runner, StepEnd, StepObservation},
    store::{
        Lease,
        journal::{LogCursor, StepCursor},
    },
};

/// A log entry holds at most this much text.
const MAX_ENTRY: usize = 64 * 1024;
/// An append gathers about this much text before it goes to the journal.
const MAX_APPEND: usize = 512 * 1024;

/// The log of one attempt on its way into the journal.
pub(super) struct LogPump<'a, R> {
    pub(super) context: &'a Context<R>,
    pub(super) lease: Lease,
    pub(super) cursor: LogCursor,
    pub(super) observed: watch::Receiver<Observation>,
    /// Cancelled when there is no more time to wait for the rest of the log.
    pub(super) hurry: CancellationToken,
}

impl<R: Runner> LogPump<'_, R> {
    /// Runs until every step of the attempt has ended, one way or the other, and is in the journal.
    pub(super) async fn run(mut self) -> Result<(), AppendError> {
        for step in StepName::ALL {
            if self.cursor.0.get(&step).is_some_and(|cursor| cursor.ended) {
                continue;
            }
            let Some(begun) = self.wait_for_begin(step).await else {
                return Ok(());
            };
            if !self.cursor.0.contains_key(&step) {
                let attempt = self.lease.attempt.number;
                let started = Event::Step(Step::whole(step, attempt, StepPhase::Started, begun.started_at));
                self.append(step, StepCursor::default(), &[started]).await?;
            }
            let end = self.copy(step).await?;
            self.close(step, end).await?;
        }
        Ok(())
    }

    /// Waits until the step runs; `None` when the attempt is over without it.
    async fn wait_for_begin(&mut self, step: StepName) -> Option<StepObservation> {
        let hurry = self.hurry.clone();
        let wait = self
            .observed
            .wait_for(|observation| is_over(observation) || observation.steps().iter().any(|seen| seen.step == step));
        let observation = hurry.run_until_cancelled(wait).await?.ok()?;
        observation.steps().iter().find(|seen| seen.step == step).cloned()
    }

    /// Copies the step's output until its end.
    async fn copy(&mut self, step: StepName) -> Result<LogEnd, AppendError> {
        let at = self.step_cursor(step);
        let mut reader = self.context.runner.read_log(
            self.lease.attempt,
            step,
            LogPosition {
                line: at.line,
                at_ms: at.at_ms,
            },
        );
        let mut lines = Lines::new(step, self.lease.attempt.number, at);
        loop {
            let chunk = tokio::select! {
                chunk = reader.chunks.recv() => chunk,
                () = self.hurry.cancelled() => {
                    reader.end.abort();
                    return Ok(LogEnd::Lost("the rest of the log did not arrive in time".to_owned()));
                }
            };
            let Some(chunk) = chunk else { break };
            lines.take(&chunk);
            while lines.bytes < MAX_APPEND
                && let Ok(chunk) = reader.chunks.try_recv()
            {
                lines.take(&chunk);
            }
            let (events, cursor) = lines.finish();
            for _ in events.iter().filter(|event| matches!(event, Event::Gap(_))) {
                self.count_gap("within");
            }
            if !events.is_empty() {
                self.append(step, cursor, &events).await?;
            }
        }
        Ok(reader
            .end
            .await
            .unwrap_or_else(|_| LogEnd::Lost("reading the log broke off".to_owned())))
    }

    fn count_gap(&self, place: &'static str) {
        self.context.metrics.log_gaps.get_or_create(&GapLabels { place }).inc();
    }

    /// Writes what is missing, if anything, and the step's end.
    async fn close(&mut self, step: StepName, log: LogEnd) -> Result<(), AppendError> {
        let end = self.wait_for_end(step).await;
        let now = self.context.clock.now();
        let mut cursor = self.step_cursor(step);
        let mut events = Vec::new();
        if let Some(gap) = missing(cursor.line, end.as_ref(), &log) {
            self.count_gap("end");
            if let Some(lines) = gap.lines {
                cursor.line += lines;
            }
            events.push(Event::Gap(Gap {
                step,
                lines: gap.lines,
                reason: gap.reason,
                at: now,
            }));
        }
        let phase = if end.as_ref().is_some_and(|end| end.succeeded) {
            StepPhase::Succeeded
        } else {
            StepPhase::Failed
        };
        let at = end.map_or(now, |end| end.at);
        events.push(Event::Step(Step::whole(step, self.lease.attempt.number, phase, at)));
        cursor.ended = true;
        self.append(step, cursor, &events).await
    }

    /// Waits until the step's end was observed; `None` when the attempt was lost without it.
    async fn wait_for_end(&mut self, step: StepName) -> Option<StepEnd> {
        let end_of = |observation: &Observation| {
            observation
                .steps()
                .iter()
                .find(|seen| seen.step == step)
                .and_then(|seen| seen.end.clone())
        };
        let wait = self
            .observed
            .wait_for(|observation| is_over(observation) || end_of(observation).is_some());
        let observation = self.hurry.run_until_cancelled(wait).await?.ok()?;
        end_of(&observation)
    }

    fn step_cursor(&self, step: StepName) -> StepCursor {
        self.cursor.0.get(&step).copied().unwrap_or_default()
    }

    async fn append(&mut self, step: StepName, cursor: StepCursor, events: &[Event]) -> Result<(), AppendError> {
        let mut to = self.cursor.clone();
        to.0.insert(step, cursor);
        self.context
            .writer
            .append(self.lease, self.cursor.clone(), to.clone(), events)
            .await?;
        self.cursor = to;
        Ok(())
    }
}

const fn is_over(observation: &Observation) -> bool {
    matches!(observation, Observation::Finished { .. } | Observation::Gone { .. })
}

/// What a step's log lacks at its end.
#[derive(Debug, PartialEq, Eq)]
struct Missing {
    lines: Option<u64>,
    reason: String,
}

/// Compares what arrived with what the step's agent says it printed.
fn missing(line: u64, end: Option<&StepEnd>, log: &LogEnd) -> Option<Missing> {
    let reported = end.and_then(|end| end.report.as_ref()).map(|report| report.lines);
    match (reported, log) {
        (Some(reported), _) if reported <= line => None,
        (Some(reported), log) => Some(Missing {
            lines: Some(reported - line),
            reason: match log {
                LogEnd::Complete => "the cluster no longer had the end of the log".to_owned(),
                LogEnd::Lost(reason) => reason.clone(),
            },
        }),
        (None, LogEnd::Lost(reason)) => Some(Missing {
            lines: None,
            reason: reason.clone(),
        }),
        (None, LogEnd::Complete) => Some(Missing {
            lines: None,
            reason: "the step was killed before it could say how much it had printed".to_owned(),
        }),
    }
}

/// Turns framed lines into log entries.
struct Lines {
    step: StepName,
    attempt: u32,
    cursor: StepCursor,
    events: Vec<Event>,
    bytes: usize,
    /// Whether the last entry may take further lines.
    open: bool,
}

impl Lines {
    const fn new(step: StepName, attempt: u32, cursor: StepCursor) -> Self {
        Self {
            step,
            attempt,
            cursor,
            events: Vec::new(),
            bytes: 0,
            open: false,
        }
    }

    /// Takes whole lines. Lines that are held already are passed over; what isn't a frame was not printed by the step.
    fn take(&mut self, chunk: &[u8]) {
        for line in chunk.split(|&byte| byte == b'\n') {
            if let Some(frame) = Frame::parse(line) {
                self.frame(&frame);
            }
        }
    }

    fn frame(&mut self, frame: &Frame<'_>) {
        if frame.number <= self.cursor.line {
            return;
        }
        let at = i64::try_from(frame.at_ms)
            .ok()
            .and_then(chrono::DateTime::from_timestamp_millis)
            .unwrap_or_default();
        let truncated = frame.stream == Stream::Truncated;
        let lost = frame.number - self.cursor.line - u64::from(!truncated);
        if lost > 0 {
            self.open = false;
            self.events.push(Event::Gap(Gap {
                step: self.step,
                lines: Some(lost),
                reason: if truncated {
                    decode(frame.text).0
                } else {
                    "the cluster rotated the log away before it could be read".to_owned()
                },
                at,
            }));
        }
        self.cursor.line = frame.number;
        self.cursor.at_ms = frame.at_ms;
        self.bytes += frame.text.len() + 1;

        let stream = match frame.stream {
            Stream::Stdout => LogStream::Stdout,
            Stream::Stderr => LogStream::Stderr,
            Stream::Truncated => return,
            Stream::Step => match serde_json::from_slice(frame.text) {
                Ok(record) => {
                    self.open = false;
                    self.events
                        .push(Event::Step(vertex(self.step, self.attempt, at, record)));
                    return;
                }
                // Whoever wrote this isn't the agent, but it was written.
                Err(_) => LogStream::Stderr,
            },
        };
        let (mut text, replaced) = decode(frame.text);
        if !frame.partial {
            text.push('\n');
        }
        match self.events.last_mut() {
            Some(Event::Log(entry))
                if self.open
                    && !frame.partial
                    && entry.stream == stream
                    && entry.text.len() + text.len() <= MAX_ENTRY =>
            {
                entry.text.push_str(&text);
                entry.replaced += replaced;
            }
            _ => self.events.push(Event::Log(Log {
                step: self.step,
                stream,
                at,
                text,
                partial: frame.partial,
                replaced,
            })),
        }
        self.open = !frame.partial;
    }

    /// The entries so far, and the cursor that goes with them.
    fn finish(&mut self) -> (Vec<Event>, StepCursor) {
        self.bytes = 0;
        self.open = false;
        (std::mem::take(&mut self.events), self.cursor)
    }
}

/// A builder's word on one of its own steps.
fn vertex(step: StepName, attempt: u32, at: DateTime<Utc>, record: StepRecord) -> Step {
    let phase = match record.phase {
        wire::step::StepPhase::Started => StepPhase::Started,
        wire::step::StepPhase::Succeeded => StepPhase::Succeeded,
        wire::step::StepPhase::Failed => StepPhase::Failed,
    };
    Step {
        vertex: Some(record.vertex),
        name: Some(record.name),
        cached: (phase != StepPhase::Started).then_some(record.cached),
        duration_ms: record.duration_ms,
        error: record.error,
        ..Step::whole(step, attempt, phase, at)
    }
}

/// The text, and how many invalid sequences were replaced in it.
fn decode(bytes: &[u8]) -> (String, u64) {
    let mut text = String::with_capacity(bytes.len() + 1);
    let mut replaced = 0;
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        if !chunk.invalid().is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
            replaced += 1;
        }
    }
    (text, replaced)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_agent_dropped_is_one_gap_of_as_many_lines() {
        let mut lines = Lines::new(StepName::Build, 1, StepCursor::default());
        lines.take(b"1 0 o. one\n4 0 t. no room\n5 0 o. five\n4 0 t. no room\n8 0 o. eight\n");
        let (events, cursor) = lines.finish();
        assert_eq!(cursor.line, 8);
        let seen: Vec<_> = events
            .iter()
            .map(|event| match event {
                Event::Log(log) => log.text.clone(),
                Event::Gap(gap) => format!("{} lines: {}", gap.lines.unwrap(), gap.reason),
                other => panic!("{other:?}"),
            })
            .collect();
        let rotated = "2 lines: the cluster rotated the log away before it could be read";
        assert_eq!(seen, ["one\n", "3 lines: no room", "five\n", rotated, "eight\n"]);
    }
}
