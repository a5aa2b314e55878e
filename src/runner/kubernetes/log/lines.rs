//! Bytes of a log stream to whole framed lines, each once. Pure.

use bytes::{Bytes, BytesMut};
use kiln_agent::wire::frame::{Frame, MAX_TEXT};

use crate::runner::LogPosition;

/// No frame is longer; what goes on without a newline for longer than that is none.
const MAX_LINE: usize = MAX_TEXT + 256;

/// Takes the bytes of one stream after the other, each beginning at or before the place where the last one ended.
#[derive(Debug)]
pub(in crate::runner::kubernetes) struct Lines {
    position: LogPosition,
    /// The beginning of a line whose end has not come yet.
    carry: BytesMut,
    /// Whether the stream has brought a frame.
    begun: bool,
    /// Whether the rest of an overlong line is being passed over.
    skipping: bool,
    /// The first line of the stream that wasn't a frame: the kubelet reports its errors so.
    foreign: Option<String>,
}

/// The stream begins later than the last one ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::runner::kubernetes) struct Jump;

impl Lines {
    /// Lines after `position`.
    pub(in crate::runner::kubernetes) fn new(position: LogPosition) -> Self {
        Self {
            position,
            carry: BytesMut::new(),
            begun: false,
            skipping: false,
            foreign: None,
        }
    }

    /// The last line that was passed on.
    pub(super) const fn position(&self) -> LogPosition {
        self.position
    }

    /// What the stream held that no agent wrote, if anything.
    pub(in crate::runner::kubernetes) fn foreign(&self) -> Option<&str> {
        self.foreign.as_deref()
    }

    /// Another stream begins. An unfinished line of the last one comes again.
    pub(super) fn restart(&mut self) {
        self.carry.clear();
        self.begun = false;
        self.skipping = false;
        self.foreign = None;
    }

    /// Takes what has arrived and gives the new whole lines in it. With `strict`, a stream that begins after a gap is
    /// refused, so that it can be asked for from an earlier point.
    pub(in crate::runner::kubernetes) fn take(&mut self, chunk: &Bytes, strict: bool) -> Result<Vec<Bytes>, Jump> {
        let Some(end) = chunk.iter().rposition(|&byte| byte == b'\n') else {
            self.keep(chunk);
            return Ok(Vec::new());
        };
        let mut out = Vec::new();
        let mut whole = chunk.slice(..=end);
        if self.skipping || !self.carry.is_empty() {
            // The line that was begun ends at the first newline.
            let first = whole.iter().position(|&byte| byte == b'\n').unwrap_or(end);
            let rest = whole.split_to(first + 1);
            if !self.skipping {
                self.carry.extend_from_slice(&rest);
                let line = self.carry.split().freeze();
                self.select(&line, strict, &mut out)?;
            }
            self.skipping = false;
        }
        self.select(&whole, strict, &mut out)?;
        self.keep(&chunk[end + 1..]);
        Ok(out)
    }

    fn keep(&mut self, start: &[u8]) {
        if self.skipping {
            return;
        }
        self.carry.extend_from_slice(start);
        if self.carry.len() > MAX_LINE {
            self.note_foreign(&self.carry.clone());
            self.carry.clear();
            self.skipping = true;
        }
    }

    /// Picks the new frames out of whole lines, as slices of them.
    fn select(&mut self, whole: &Bytes, strict: bool, out: &mut Vec<Bytes>) -> Result<(), Jump> {
        let mut from = 0;
        let mut at = 0;
        while at < whole.len() {
            let length = whole[at..]
                .iter()
                .position(|&byte| byte == b'\n')
                .unwrap_or(whole.len() - at);
            let next = (at + length + 1).min(whole.len());
            let wanted = match Frame::parse(&whole[at..at + length]) {
                Some(frame) if frame.number > self.position.line => {
                    if strict && !self.begun && frame.number > self.position.line + 1 {
                        return Err(Jump);
                    }
                    self.begin();
                    self.position = LogPosition {
                        line: frame.number,
                        at_ms: frame.at_ms,
                    };
                    true
                }
                Some(_) => {
                    self.begin();
                    false
                }
                None => {
                    self.note_foreign(&whole[at..at + length]);
                    false
                }
            };
            if !wanted {
                if from < at {
                    out.push(whole.slice(from..at));
                }
                from = next;
            }
            at = next;
        }
        if from < at {
            out.push(whole.slice(from..at));
        }
        Ok(())
    }

    /// The first frame of a stream. What came before it is the end of a line that the node keeps in pieces: a stream
    /// that begins at a time may begin between them.
    fn begin(&mut self) {
        if !self.begun {
            self.begun = true;
            self.foreign = None;
        }
    }

    fn note_foreign(&mut self, line: &[u8]) {
        if self.foreign.is_none() && !line.is_empty() {
            let text = String::from_utf8_lossy(&line[..line.len().min(200)]);
            self.foreign = Some(text.trim().to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(number: u64) -> String {
        format!("{number} {} o. line {number}\n", 1_000 + number)
    }

    fn frames(numbers: std::ops::RangeInclusive<u64>) -> String {
        numbers.map(frame).collect::<Vec<_>>().concat()
    }

    fn joined(chunks: &[Bytes]) -> String {
        String::from_utf8(chunks.concat()).unwrap()
    }

    fn take(lines: &mut Lines, chunk: impl Into<Bytes>, strict: bool) -> Result<Vec<Bytes>, Jump> {
        lines.take(&chunk.into(), strict)
    }

    fn at(line: u64) -> LogPosition {
        LogPosition {
            line,
            at_ms: if line == 0 { 0 } else { 1_000 + line },
        }
    }

    #[test]
    fn what_is_held_is_passed_over() {
        let mut lines = Lines::new(at(2));
        let out = take(&mut lines, frames(1..=5), false).unwrap();
        assert_eq!(joined(&out), frames(3..=5));
        assert_eq!(lines.position(), at(5));
    }

    #[test]
    fn another_stream_may_repeat_but_not_skip() {
        let mut lines = Lines::new(at(0));
        take(&mut lines, frames(1..=3), false).unwrap();
        lines.restart();
        assert_eq!(joined(&take(&mut lines, frames(2..=4), true).unwrap()), frame(4));
        lines.restart();
        assert_eq!(take(&mut lines, frames(6..=7), true), Err(Jump));
        assert_eq!(lines.position(), at(4));
        lines.restart();
        // Asked for from the beginning, there is no more to be had.
        assert_eq!(joined(&take(&mut lines, frames(6..=7), false).unwrap()), frames(6..=7));
    }

    #[test]
    fn a_jump_within_a_stream_is_passed_on() {
        let mut lines = Lines::new(at(0));
        let text = frame(1) + &frame(9);
        assert_eq!(joined(&take(&mut lines, text.clone(), true).unwrap()), text);
    }

    #[test]
    fn what_the_kubelet_says_is_told_apart() {
        let mut lines = Lines::new(at(0));
        let error = "unable to retrieve container logs for containerd://abc\n";
        assert!(take(&mut lines, error, false).unwrap().is_empty());
        assert_eq!(lines.foreign(), Some(error.trim()));
        lines.restart();
        assert_eq!(lines.foreign(), None);
        let out = take(&mut lines, frame(1) + error + &frame(2), false).unwrap();
        assert_eq!(joined(&out), frames(1..=2));
        assert_eq!(lines.foreign(), Some(error.trim()));
        lines.restart();
        let out = take(&mut lines, "end of a long line\n".to_owned() + &frame(3), true).unwrap();
        assert_eq!((joined(&out), lines.foreign()), (frame(3), None));
    }

    #[test]
    fn what_never_ends_is_not_kept() {
        let mut lines = Lines::new(at(0));
        for _ in 0..100 {
            take(&mut lines, vec![b'x'; 64 * 1024], false).unwrap();
            assert!(lines.carry.len() <= MAX_LINE);
        }
        let out = take(&mut lines, "x\n".to_owned() + &frame(1), false).unwrap();
        assert_eq!(joined(&out), frame(1));
    }

    proptest! {
        #[test]
        fn chunks_make_no_difference(held in 0u64..20, from in 1u64..20, cuts in prop::collection::vec(1usize..40, 1..40)) {
            let text = frames(from..=30);
            let mut lines = Lines::new(at(held));
            let mut out = Vec::new();
            let mut rest = text.as_bytes();
            for cut in cuts.iter().cycle() {
                let (chunk, after) = rest.split_at((*cut).min(rest.len()));
                out.extend(take(&mut lines, Bytes::copy_from_slice(chunk), false).unwrap());
                rest = after;
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert!(out.iter().all(|chunk| chunk.ends_with(b"\n")));
            prop_assert_eq!(joined(&out), frames(from.max(held + 1)..=30));
            prop_assert_eq!(lines.position(), at(30));
        }
    }
}
