//! Turns framed lines, whatever brought them, into entries of the journal: every line once, in order, with a gap where
//! lines are known to be missing, and no more text than there is room for.

use chrono::{DateTime, Utc};
use kiln_agent::wire::{
    self,
    frame::{Frame, Stream},
    step::StepRecord,
};

use crate::{
    domain::event::{Event, Gap, Log, LogStream, Step, StepName, StepPhase},
    store::journal::StepCursor,
};

/// A log entry holds at most this much text.
const MAX_ENTRY: usize = 64 * 1024;

/// What a jump of the numbers means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Jumps {
    /// The lines between are lost, for this reason.
    Report(&'static str),
    /// They may still come another way: nothing after them is taken.
    Stop,
}

/// How much text may still be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes.
    pub bytes: u64,
    /// Which limit it is, in words for readers of the log.
    pub limit: String,
}

/// What came of some lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The entries.
    pub events: Vec<Event>,
    /// The cursor that goes with them.
    pub cursor: StepCursor,
    /// Bytes of log text in the entries.
    pub text: u64,
}

/// Takes framed lines of one step.
pub struct Lines {
    step: StepName,
    attempt: u32,
    cursor: StepCursor,
    jumps: Jumps,
    room: Room,
    events: Vec<Event>,
    text: u64,
    /// Whether the last entry may take further lines.
    open: bool,
    /// Whether a jump was met that nothing is taken after.
    stopped: bool,
}

impl Lines {
    /// Goes on from `cursor`.
    pub const fn new(step: StepName, attempt: u32, cursor: StepCursor, jumps: Jumps, room: Room) -> Self {
        Self {
            step,
            attempt,
            cursor,
            jumps,
            room,
            events: Vec::new(),
            text: 0,
            open: false,
            stopped: false,
        }
    }

    /// Takes whole lines. Lines that are held already are passed over; what isn't a frame was not printed by the step.
    pub fn take(&mut self, chunk: &[u8]) {
        for line in chunk.split(|&byte| byte == b'\n') {
            if let Some(frame) = Frame::parse(line) {
                self.frame(&frame);
            }
        }
    }

    /// Whether a jump was met that nothing is taken after.
    pub const fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Takes one line.
    pub fn frame(&mut self, frame: &Frame<'_>) {
        if self.stopped || frame.number <= self.cursor.line {
            return;
        }
        let at = time(frame.at_ms);
        // A frame in place of lines that were dropped has the number of the last one of them.
        let truncated = frame.stream == Stream::Truncated;
        let lost = frame.number - self.cursor.line - u64::from(!truncated);
        if lost > 0 {
            let reason = match self.jumps {
                _ if truncated => decode(frame.text).0,
                Jumps::Report(reason) => reason.to_owned(),
                Jumps::Stop => {
                    self.stopped = true;
                    return;
                }
            };
            self.gap(Some(lost), reason, at);
        }
        self.cursor.line = frame.number;
        self.cursor.at_ms = frame.at_ms;
        let stream = match frame.stream {
            Stream::Truncated => return,
            Stream::Stdout => LogStream::Stdout,
            Stream::Stderr => LogStream::Stderr,
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
        self.print(stream, at, frame);
    }

    fn print(&mut self, stream: LogStream, at: DateTime<Utc>, frame: &Frame<'_>) {
        let (mut text, replaced) = decode(frame.text);
        if !frame.partial {
            text.push('\n');
        }
        if !self.fits(&text, at) {
            return;
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

    /// Takes the room that a line needs. Once there was none, the step's further lines are only counted.
    fn fits(&mut self, text: &str, at: DateTime<Utc>) -> bool {
        if let Some(dropped) = &mut self.cursor.dropped {
            *dropped += 1;
            return false;
        }
        let needed = text.len() as u64;
        if self.text + needed <= self.room.bytes {
            self.text += needed;
            return true;
        }
        self.cursor.dropped = Some(1);
        let reason = format!(
            "{}; from here on the step's output is not kept, and its lines are counted at the step's end",
            self.room.limit
        );
        self.gap(None, reason, at);
        false
    }

    fn gap(&mut self, lines: Option<u64>, reason: String, at: DateTime<Utc>) {
        self.open = false;
        self.events.push(Event::Gap(Gap {
            step: self.step,
            lines,
            reason,
            at,
        }));
    }

    /// What came of the lines so far.
    pub fn finish(self) -> Batch {
        Batch {
            events: self.events,
            cursor: self.cursor,
            text: self.text,
        }
    }
}

/// When a frame was read from the process.
pub(super) fn time(at_ms: u64) -> DateTime<Utc> {
    i64::try_from(at_ms)
        .ok()
        .and_then(DateTime::from_timestamp_millis)
        .unwrap_or_default()
}

/// The gap that says at a step's end how much of it wasn't kept, if that is so.
pub fn not_kept(step: StepName, cursor: &StepCursor, at: DateTime<Utc>) -> Option<Event> {
    let lines = cursor.dropped.filter(|lines| *lines > 0)?;
    Some(Event::Gap(Gap {
        step,
        lines: Some(lines),
        reason: "these lines came after the limit was reached, and were not kept".to_owned(),
        at,
    }))
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
    use proptest::prelude::*;

    use super::*;

    fn frame(number: u64, stream: Stream, text: &[u8]) -> Frame<'_> {
        Frame {
            number,
            at_ms: 1,
            stream,
            partial: false,
            text,
        }
    }

    fn room(bytes: u64) -> Room {
        Room {
            bytes,
            limit: "full".to_owned(),
        }
    }

    fn lines(cursor: StepCursor, jumps: Jumps, bytes: u64) -> Lines {
        Lines::new(StepName::Build, 1, cursor, jumps, room(bytes))
    }

    fn text(events: &[Event]) -> String {
        events
            .iter()
            .filter_map(|event| match event {
                Event::Log(log) => Some(log.text.as_str()),
                _ => None,
            })
            .collect()
    }

    fn gaps(events: &[Event]) -> Vec<(Option<u64>, &str)> {
        events
            .iter()
            .filter_map(|event| match event {
                Event::Gap(gap) => Some((gap.lines, gap.reason.as_str())),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn jumps_become_gaps_or_end_the_taking() {
        let mut reported = lines(StepCursor::default(), Jumps::Report("rotated"), 100);
        let mut stopped = lines(StepCursor::default(), Jumps::Stop, 100);
        for lines in [&mut reported, &mut stopped] {
            lines.frame(&frame(1, Stream::Stdout, b"a"));
            lines.frame(&frame(1, Stream::Stdout, b"a"));
            lines.frame(&frame(4, Stream::Stdout, b"d"));
            lines.frame(&frame(5, Stream::Stdout, b"e"));
        }
        assert!(stopped.is_stopped() && !reported.is_stopped());
        let (reported, stopped) = (reported.finish(), stopped.finish());
        assert_eq!(gaps(&reported.events), [(Some(2), "rotated")]);
        assert_eq!(
            (text(&reported.events).as_str(), reported.cursor.line),
            ("a\nd\ne\n", 5)
        );
        assert_eq!(gaps(&stopped.events), []);
        assert_eq!((text(&stopped.events).as_str(), stopped.cursor.line), ("a\n", 1));
    }

    #[test]
    fn dropped_lines_become_a_gap_with_the_agents_words() {
        for jumps in [Jumps::Stop, Jumps::Report("rotated")] {
            let mut lines = lines(StepCursor::default(), jumps, 100);
            lines.frame(&frame(1, Stream::Stdout, b"a"));
            lines.frame(&frame(8, Stream::Truncated, b"the spool was full"));
            lines.frame(&frame(9, Stream::Stdout, b"i"));
            let batch = lines.finish();
            assert_eq!(gaps(&batch.events), [(Some(7), "the spool was full")]);
            assert_eq!((text(&batch.events).as_str(), batch.cursor.line), ("a\ni\n", 9));
        }
    }

    #[test]
    fn beyond_the_room_lines_are_only_counted() {
        let mut first = lines(StepCursor::default(), Jumps::Stop, 4);
        for number in 1..=4 {
            first.frame(&frame(number, Stream::Stdout, b"x"));
        }
        let first = first.finish();
        assert_eq!((first.text, first.cursor.line, first.cursor.dropped), (4, 4, Some(2)));
        assert_eq!(gaps(&first.events).len(), 1);
        assert!(gaps(&first.events)[0].1.starts_with("full;"));
        // More room, such as on the next day, changes nothing within the step.
        let mut second = lines(first.cursor, Jumps::Stop, 100);
        second.frame(&frame(5, Stream::Stderr, b"y"));
        let second = second.finish();
        assert_eq!((second.events.as_slice(), second.text), ([].as_slice(), 0));
        let Some(Event::Gap(gap)) = not_kept(StepName::Build, &second.cursor, DateTime::UNIX_EPOCH) else {
            panic!("no gap")
        };
        assert_eq!(gap.lines, Some(3));
        assert_eq!(
            not_kept(StepName::Build, &StepCursor::default(), DateTime::UNIX_EPOCH),
            None
        );
    }

    proptest! {
        /// However a step's frames are cut into pieces, repeated and taken up again, each line is there once.
        #[test]
        fn every_line_once_however_they_come(
            texts in proptest::collection::vec("[a-z\\r]{0,12}", 1..40),
            pieces in proptest::collection::vec((0_usize..40, 1_usize..20), 1..20),
        ) {
            let mut cursor = StepCursor::default();
            let mut all = String::new();
            let end = (0, texts.len());
            for (start, length) in pieces.into_iter().chain([end]) {
                // Whoever pushes or reads goes on from what is held, or repeats.
                let start = start.min(usize::try_from(cursor.line).expect("small"));
                let mut lines = lines(cursor, Jumps::Stop, u64::MAX);
                for (text, number) in texts.iter().zip(1..).skip(start).take(length) {
                    lines.frame(&frame(number, Stream::Stdout, text.as_bytes()));
                }
                prop_assert!(!lines.is_stopped());
                let batch = lines.finish();
                prop_assert_eq!(gaps(&batch.events), []);
                all += &text(&batch.events);
                cursor = batch.cursor;
            }
            prop_assert_eq!(all, texts.iter().fold(String::new(), |all, text| all + text + "\n"));
        }
    }
}
