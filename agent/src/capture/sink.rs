//! Where all frames of a step go. One lock over numbering and writing makes the order of the numbers the order in the
//! log; a writer that blocks therefore blocks every stream, and with them the processes that write to them.

use std::{
    collections::HashMap,
    fs::File,
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use kiln_agent::wire::{
    frame::{Frame, Stream},
    report::{FailedStep, MAX_TAIL},
    step::{MAX_ERROR, MAX_NAME, StepRecord, clip_middle},
};

use super::{
    kept::Kept,
    lines::{Lines, split_long},
    outlet::Outlet,
};
use crate::{
    mask::{Held, Masker},
    spool::writer::Spool,
};

/// How long whoever reads standard output may take nothing until it isn't waited for, where there is a spool.
const OUTLET_PATIENCE: Duration = Duration::from_secs(10);

/// Says what time it is, in milliseconds since the Unix epoch.
pub(crate) type Clock = fn() -> u64;

/// Numbers frames and writes them.
pub(crate) struct Sink {
    state: Mutex<State>,
    clock: Clock,
    masker: OnceLock<Masker>,
    // Outside the lock, so that a step that is told to stop can report while a write blocks.
    lines: AtomicU64,
    bytes: AtomicU64,
    tail: Mutex<Kept>,
    failed: Mutex<Option<FailedStep>>,
    abandoned: AtomicBool,
}

struct State {
    spool: Option<Spool>,
    out: Outlet,
    buffer: Vec<u8>,
    /// Who has left a line unfinished on stdout and on stderr.
    unfinished: [Option<Writer>; 2],
    failed: bool,
    /// Of lines that go on, what may be the beginning of a secret.
    held: HashMap<(Writer, usize), Held>,
    /// The log is complete: nothing is added any more.
    sealed: bool,
}

/// One source of output, so that a line which it left unfinished isn't continued by another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Writer(pub(crate) u64);

impl Writer {
    /// The agent itself.
    const AGENT: Self = Self(0);

    /// One of several sources that share a writer's pipe.
    pub(crate) const fn part(self, number: u32) -> Self {
        Self(self.0 | (number as u64) << 32)
    }
}

/// The log can't be written any more.
#[derive(Debug, thiserror::Error)]
#[error("the build log can't be written: {0}")]
pub(crate) struct OutputLost(#[from] std::io::Error);

/// What was written so far.
#[derive(Debug)]
pub(crate) struct Totals {
    /// Number of frames.
    pub(crate) lines: u64,
    /// Bytes of text, with a newline for each whole line.
    pub(crate) bytes: u64,
    /// The last of them.
    pub(crate) tail: String,
    /// The first of the builder's steps that failed.
    pub(crate) failed: Option<FailedStep>,
}

impl Sink {
    /// A sink that writes to `out`, numbering from 1. Beside a spool, `out` may fail and fall behind.
    pub(crate) fn new(out: File, spool: Option<Spool>, clock: Clock) -> Self {
        let out = match spool {
            None => Outlet::only(out),
            Some(_) => Outlet::aside(out, OUTLET_PATIENCE),
        };
        Self {
            state: Mutex::new(State {
                spool,
                out,
                buffer: Vec::new(),
                unfinished: [None; 2],
                failed: false,
                held: HashMap::new(),
                sealed: false,
            }),
            clock,
            masker: OnceLock::new(),
            lines: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            // Longer than a report takes, which can then begin with a whole line.
            tail: Mutex::new(Kept::new(2 * MAX_TAIL)),
            failed: Mutex::new(None),
            abandoned: AtomicBool::new(false),
        }
    }

    /// Hides these secrets from now on. To be called before anything runs that knows them.
    pub(crate) fn hide(&self, masker: Masker) {
        // There is one set of secrets to a step.
        let _ = self.masker.set(masker);
    }

    /// A text for the report, without secrets.
    pub(crate) fn masked(&self, text: &str) -> String {
        self.masker
            .get()
            .map_or_else(|| text.to_owned(), |masker| masker.mask_text(text))
    }

    /// Writes a message of the agent's own. An error is left to the next batch to find.
    pub(crate) fn say(&self, message: &str) {
        if self.abandoned.load(Ordering::Relaxed) {
            return;
        }
        let mut batch = self.batch(Writer::AGENT, Stream::Stderr);
        let mut lines = Lines::default();
        lines.push(message.as_bytes(), |text, partial| batch.line(text, partial));
        lines.finish(|text, partial| batch.line(text, partial));
        let _ = batch.send();
    }

    /// Begins a batch of lines of one stream, which are written together. Nobody else writes before it is sent.
    pub(crate) fn batch(&self, writer: Writer, stream: Stream) -> Batch<'_> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Batch {
            state,
            tail: self.tail.lock().unwrap_or_else(PoisonError::into_inner),
            sink: self,
            writer,
            stream,
            at_ms: (self.clock)(),
        }
    }

    /// A write blocks and nobody will wait for it: the agent has nothing to say any more.
    pub(crate) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }

    /// Seals the spool, if there is one, after all that was to be said. Without one this does nothing, as then a write
    /// may block for ever.
    pub(crate) fn seal(&self, has_spool: bool) -> Result<(), OutputLost> {
        if !has_spool {
            return Ok(());
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut state.sealed, true) || state.failed {
            return Ok(());
        }
        if let Some(spool) = &mut state.spool {
            spool.finish((self.clock)())?;
        }
        Ok(())
    }

    /// What was written so far. Never blocks for long.
    pub(crate) fn totals(&self) -> Totals {
        Totals {
            lines: self.lines.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            tail: self.tail.lock().unwrap_or_else(PoisonError::into_inner).text(),
            failed: self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

/// Lines that are written together.
pub(crate) struct Batch<'a> {
    state: MutexGuard<'a, State>,
    tail: MutexGuard<'a, Kept>,
    sink: &'a Sink,
    writer: Writer,
    stream: Stream,
    at_ms: u64,
}

impl Batch<'_> {
    /// What comes next is of this source and stream.
    pub(crate) const fn switch(&mut self, writer: Writer, stream: Stream) {
        self.writer = writer;
        self.stream = stream;
    }

    /// Adds a builder's word on one of its steps. Name and error may be of any length.
    pub(crate) fn step(&mut self, record: &StepRecord) {
        let record = StepRecord {
            name: clip_middle(&self.sink.masked(&record.name), MAX_NAME),
            error: record
                .error
                .as_ref()
                .map(|error| clip_middle(&self.sink.masked(error), MAX_ERROR)),
            ..*record
        };
        // Strings and numbers can't fail to serialise.
        let text = serde_json::to_vec(&record).unwrap_or_default();
        self.encode(Stream::Step, &text, false);
    }

    /// Notes a builder's step that failed, for the report; the first one counts.
    pub(crate) fn failed(&self, step: &FailedStep) {
        let mut failed = self.sink.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.get_or_insert_with(|| FailedStep {
            name: self.sink.masked(&step.name),
            error: self.sink.masked(&step.error),
        });
    }

    /// Adds a line, or a piece of one that goes on.
    pub(crate) fn line(&mut self, text: &[u8], partial: bool) {
        let slot = match self.stream {
            Stream::Stdout => 0,
            Stream::Stderr | Stream::Step | Stream::Truncated => 1,
        };
        let Some(masker) = self.sink.masker.get() else {
            self.piece(slot, text, partial);
            return;
        };
        let key = (self.writer, slot);
        let held = self.state.held.remove(&key);
        if held.is_none() && !partial {
            self.piece(slot, &masker.mask(text), false);
            return;
        }
        let mut held = held.unwrap_or_default();
        let hidden = masker.mask_piece(&mut held, text, !partial);
        if partial {
            self.state.held.insert(key, held);
        }
        // With what was held back it may be more than fits a frame.
        let rest = split_long(&hidden, &mut |text, partial| self.piece(slot, text, partial));
        if !partial || !rest.is_empty() {
            self.piece(slot, rest, partial);
        }
    }

    fn piece(&mut self, slot: usize, text: &[u8], partial: bool) {
        if self.state.unfinished[slot].is_some_and(|writer| writer != self.writer) {
            self.frame(b"", false);
        }
        self.frame(text, partial);
        self.state.unfinished[slot] = partial.then_some(self.writer);
    }

    fn encode(&mut self, stream: Stream, text: &[u8], partial: bool) -> bool {
        if self.state.sealed {
            return false;
        }
        let frame = Frame {
            number: self.sink.lines.fetch_add(1, Ordering::Relaxed) + 1,
            at_ms: self.at_ms,
            stream,
            partial,
            text,
        };
        frame.encode(&mut self.state.buffer);
        true
    }

    fn frame(&mut self, text: &[u8], partial: bool) {
        if !self.encode(self.stream, text, partial) {
            return;
        }
        self.tail.push(text);
        if !partial {
            self.tail.push(b"\n");
        }
        let bytes = text.len() + usize::from(!partial);
        self.sink.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Writes the batch. After a failure nothing is written any more: the log would have a hole in the middle.
    pub(crate) fn send(self) -> Result<(), OutputLost> {
        let Self {
            mut state, tail, sink, ..
        } = self;
        drop(tail);
        let State {
            spool,
            out,
            buffer,
            failed,
            ..
        } = &mut *state;
        let hurry = &sink.abandoned;
        let written = if *failed || buffer.is_empty() {
            Ok(())
        } else {
            let spooled = spool.as_mut().map_or(Ok(()), |spool| spool.append(buffer, hurry));
            spooled.and_then(|()| out.write(buffer, hurry))
        };
        buffer.clear();
        *failed |= written.is_err();
        Ok(written?)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Read};

    use tempfile::{NamedTempFile, tempfile};

    use super::*;

    const NOON: Clock = || 43_200_000;

    fn put(sink: &Sink, writer: u64, stream: Stream, text: &str, partial: bool) -> Result<(), OutputLost> {
        let mut batch = sink.batch(Writer(writer), stream);
        batch.line(text.as_bytes(), partial);
        batch.send()
    }

    #[test]
    fn one_numbering_over_all_streams() {
        let file = NamedTempFile::new().unwrap();
        let sink = Sink::new(file.reopen().unwrap(), None, NOON);
        put(&sink, 1, Stream::Stdout, "out", false).unwrap();
        put(&sink, 1, Stream::Stderr, "err", false).unwrap();
        sink.say("two\nlines");
        assert_eq!(
            fs::read_to_string(file.path()).unwrap(),
            "1 43200000 o. out\n2 43200000 e. err\n3 43200000 e. two\n4 43200000 e. lines\n"
        );
        let totals = sink.totals();
        assert_eq!((totals.lines, totals.bytes), (4, 18));
        assert_eq!(totals.tail, "out\nerr\ntwo\nlines\n");
    }

    #[test]
    fn nobody_goes_on_with_the_line_of_another() {
        let file = NamedTempFile::new().unwrap();
        let sink = Sink::new(file.reopen().unwrap(), None, NOON);
        put(&sink, 1, Stream::Stderr, "long", true).unwrap();
        put(&sink, 2, Stream::Stdout, "other stream", false).unwrap();
        put(&sink, 1, Stream::Stderr, "longer", true).unwrap();
        put(&sink, 2, Stream::Stderr, "intruder", false).unwrap();
        put(&sink, 1, Stream::Stderr, "end", false).unwrap();
        let written = fs::read_to_string(file.path()).unwrap();
        let lines: Vec<_> = written
            .lines()
            .map(|line| line.split_once(" 43200000 ").unwrap().1)
            .collect();
        assert_eq!(
            lines,
            [
                "e+ long",
                "o. other stream",
                "e+ longer",
                "e. ",
                "e. intruder",
                "e. end"
            ]
        );
    }

    #[test]
    fn after_a_failure_nothing_is_written_but_all_is_counted() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let sink = Sink::new(full, None, NOON);
        assert!(put(&sink, 1, Stream::Stdout, "lost", false).is_err());
        assert!(put(&sink, 1, Stream::Stdout, "lost too", false).is_ok());
        assert_eq!(sink.totals().lines, 2);
    }

    #[test]
    fn who_is_abandoned_says_nothing() {
        let mut file = tempfile().unwrap();
        let sink = Sink::new(file.try_clone().unwrap(), None, NOON);
        sink.abandon();
        sink.say("unheard");
        assert_eq!(file.read_to_end(&mut Vec::new()).unwrap(), 0);
        assert_eq!(sink.totals().lines, 0);
    }
}
