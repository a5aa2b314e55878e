//! BuildKit's vertices, out of the JSON lines of `buildctl --progress=rawjson`.
//!
//! The log is made as `--progress=plain` would show it, with less ceremony: `#5 [2/3] RUN make` when a vertex begins,
//! its output as `#5 0.123 text` (seconds since it began), and `#5 DONE 0.3s`, `#5 CACHED`, `#5 ERROR: …` or
//! `#5 CANCELED` at its end. Lines come when BuildKit sends them: nothing is held back to keep vertices apart.
//! What isn't such a message, as buildctl's last words, passes as it is.

mod message;
mod vertex;

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use kiln_agent::wire::{
    frame::Stream,
    report::FailedStep,
    step::{StepPhase, StepRecord},
};
use memchr::memchr;

use self::{
    message::{Log, Message, Status, Time, Warning},
    vertex::{Output, State, Vertex},
};
use crate::capture::{
    lines::Lines,
    sink::{Batch, Writer},
};

/// A longer line passes as text. A message holds at most what fits a gRPC message of 16 MiB, with its logs in base64.
const MAX_LINE: usize = 24 * 1024 * 1024;

/// BuildKit ends many vertices and comes back to them at once; they have ended when that doesn't happen for so long.
const SETTLED: Duration = Duration::from_millis(200);
/// Output comes apart from the news of its vertex, and on a busy machine after the end. A line that has no end yet is
/// waited for so much longer, or it would come out in two.
const UNFINISHED: Duration = Duration::from_secs(2);

/// How much time passes between two lines about one download, in microseconds.
const STATUS_EVERY: i64 = 5_000_000;

/// Reads a client's standard error.
pub(crate) struct Buildkit {
    writer: Writer,
    /// The line that isn't complete.
    line: Vec<u8>,
    /// Whether that line is too long for a message, and passes as text.
    passing: bool,
    text: Lines,
    vertices: Vec<Vertex>,
    /// By digest, and by the id of a group.
    places: HashMap<String, usize>,
    numbers: u32,
}

impl Buildkit {
    pub(super) fn new(writer: Writer) -> Self {
        Self {
            writer,
            line: Vec::new(),
            passing: false,
            text: Lines::default(),
            vertices: Vec::new(),
            places: HashMap::new(),
            numbers: 0,
        }
    }

    pub(super) fn take(&mut self, mut bytes: &[u8], now: Instant, batch: &mut Batch<'_>) {
        while let Some(end) = memchr(b'\n', bytes) {
            let (line, rest) = bytes.split_at(end);
            bytes = &rest[1..];
            if self.passing {
                self.passing = false;
                self.pass(line, batch);
                self.pass(b"\n", batch);
            } else if self.line.is_empty() {
                self.line(line, now, batch);
            } else {
                self.line.extend_from_slice(line);
                let line = std::mem::take(&mut self.line);
                self.line(&line, now, batch);
            }
        }
        if self.passing {
            self.pass(bytes, batch);
        } else {
            self.line.extend_from_slice(bytes);
            if self.line.len() > MAX_LINE {
                self.passing = true;
                let line = std::mem::take(&mut self.line);
                self.pass(&line, batch);
            }
        }
    }

    pub(super) fn due(&self, now: Instant) -> Option<Duration> {
        let ends = self.vertices.iter().filter_map(settled_at);
        ends.min().map(|at| at.saturating_duration_since(now))
    }

    pub(super) fn tick(&mut self, now: Instant, batch: &mut Batch<'_>) {
        for at in 0..self.vertices.len() {
            if settled_at(&self.vertices[at]).is_some_and(|settled| now >= settled) {
                self.end(at, batch);
            }
        }
    }

    fn settle(&mut self, batch: &mut Batch<'_>) {
        for at in 0..self.vertices.len() {
            if matches!(self.vertices[at].state, State::Ending(_)) {
                self.end(at, batch);
            }
        }
    }

    pub(super) fn finish(mut self, batch: &mut Batch<'_>) {
        if !self.line.is_empty() {
            let line = std::mem::take(&mut self.line);
            self.line(&line, Instant::now(), batch);
        }
        self.settle(batch);
        batch.switch(self.writer, Stream::Stderr);
        self.text.finish(|text, partial| batch.line(text, partial));
        for at in 0..self.vertices.len() {
            match self.vertices[at].state {
                State::Running => {
                    "the builder ended before this did".clone_into(&mut self.vertices[at].error);
                    self.end(at, batch);
                }
                State::Waiting | State::Ending(_) | State::Ended => self.flush(at, batch),
            }
        }
    }

    /// A whole line.
    fn line(&mut self, line: &[u8], now: Instant, batch: &mut Batch<'_>) {
        if let Some(message) = Message::parse(line) {
            self.apply(message, now, batch);
        } else {
            // buildctl's last words are the last.
            self.settle(batch);
            self.pass(line, batch);
            self.pass(b"\n", batch);
        }
    }

    fn pass(&mut self, bytes: &[u8], batch: &mut Batch<'_>) {
        batch.switch(self.writer, Stream::Stderr);
        self.text.push(bytes, |text, partial| batch.line(text, partial));
    }

    fn apply(&mut self, message: Message, now: Instant, batch: &mut Batch<'_>) {
        for log in message.logs.iter().flatten() {
            let at = self.place(&log.vertex);
            if let State::Ending(since) = &mut self.vertices[at].state {
                *since = now;
            }
        }
        self.tick(now, batch);
        let vertexes = message.vertexes.unwrap_or_default();
        let mut touched = Vec::new();
        for news in vertexes {
            let at = self.place(news.group.as_ref().map_or(&news.digest, |group| &group.id));
            self.places.insert(news.digest.clone(), at);
            let begins = self.vertices[at].take(news);
            if begins {
                self.begin(at, batch);
            }
            touched.push(at);
        }
        for warning in message.warnings.unwrap_or_default() {
            self.warning(&warning, batch);
        }
        for log in message.logs.unwrap_or_default() {
            self.log(&log, batch);
        }
        for status in message.statuses.unwrap_or_default() {
            self.status(&status, batch);
        }
        for at in touched {
            let vertex = &mut self.vertices[at];
            let over = matches!(vertex.state, State::Running | State::Ending(_)) && !vertex.is_running();
            if over && !vertex.error.is_empty() {
                self.end(at, batch);
            } else if over && vertex.state == State::Running {
                vertex.state = State::Ending(now);
            }
        }
    }

    /// The place of what has this digest or group id, which may be unheard of.
    fn place(&mut self, id: &str) -> usize {
        if let Some(&at) = self.places.get(id) {
            return at;
        }
        self.vertices.push(Vertex::default());
        self.places.insert(id.to_owned(), self.vertices.len() - 1);
        self.vertices.len() - 1
    }

    /// Its number, which it gets when it shows for the first time.
    fn number(&mut self, at: usize) -> u32 {
        let number = &mut self.vertices[at].number;
        if *number == 0 {
            self.numbers += 1;
            *number = self.numbers;
        }
        *number
    }

    fn begin(&mut self, at: usize, batch: &mut Batch<'_>) {
        let number = self.number(at);
        let vertex = &mut self.vertices[at];
        vertex.state = State::Running;
        let record = StepRecord {
            vertex: number,
            name: vertex.name.clone(),
            phase: StepPhase::Started,
            cached: false,
            duration_ms: None,
            error: None,
        };
        let heading = vertex.name.clone();
        batch.step(&record);
        self.say(at, &heading, batch);
    }

    fn end(&mut self, at: usize, batch: &mut Batch<'_>) {
        self.flush(at, batch);
        let number = self.number(at);
        let vertex = &mut self.vertices[at];
        vertex.state = State::Ended;
        let micros = vertex.micros();
        let canceled = vertex.error.ends_with("context canceled");
        let error = (!vertex.error.is_empty()).then(|| std::mem::take(&mut vertex.error));
        let record = StepRecord {
            vertex: number,
            name: vertex.name.clone(),
            phase: if error.is_none() {
                StepPhase::Succeeded
            } else {
                StepPhase::Failed
            },
            cached: vertex.cached && error.is_none(),
            duration_ms: Some(micros / 1000),
            error: error.clone(),
        };
        let words = match &error {
            Some(_) if canceled => "CANCELED".to_owned(),
            Some(error) => format!("ERROR: {error}"),
            None if vertex.cached => "CACHED".to_owned(),
            None => format!("DONE {}", seconds(micros)),
        };
        if let Some(error) = error
            && !canceled
        {
            let name = vertex.name.clone();
            batch.failed(&FailedStep { name, error });
        }
        self.say(at, &words, batch);
        batch.step(&record);
    }

    /// Writes lines of the builder's own about a vertex.
    fn say(&mut self, at: usize, words: &str, batch: &mut Batch<'_>) {
        let number = self.number(at);
        batch.switch(self.writer, Stream::Stderr);
        let mut lines = Lines::default();
        for line in words.split('\n') {
            lines.push(format!("#{number} {line}\n").as_bytes(), |text, partial| {
                batch.line(text, partial);
            });
        }
    }

    /// Writes the lines of a vertex that have no end yet.
    fn flush(&mut self, at: usize, batch: &mut Batch<'_>) {
        let vertex = &mut self.vertices[at];
        for (part, output) in vertex.outputs.iter_mut().enumerate() {
            let (writer, stream) = output_of(self.writer, vertex.number, part);
            batch.switch(writer, stream);
            output.finish(|text, partial| batch.line(text, partial));
        }
    }

    fn log(&mut self, log: &Log, batch: &mut Batch<'_>) {
        let at = self.place(&log.vertex);
        let number = self.number(at);
        let part = usize::from(log.stream == 2);
        let (writer, stream) = output_of(self.writer, number, part);
        batch.switch(writer, stream);
        let vertex = &mut self.vertices[at];
        let since = vertex.since(log.timestamp);
        let prefix = format!("#{number} {}.{:03} ", since / 1_000_000, since / 1000 % 1000);
        vertex.outputs[part].push(&prefix, &log.data, |text, partial| batch.line(text, partial));
    }

    fn warning(&mut self, warning: &Warning, batch: &mut Batch<'_>) {
        let at = self.place(&warning.vertex);
        let words = format!("WARN: {}", String::from_utf8_lossy(&warning.short));
        self.say(at, &words, batch);
    }

    fn status(&mut self, status: &Status, batch: &mut Batch<'_>) {
        let at = self.place(&status.vertex);
        let vertex = &mut self.vertices[at];
        let first = status.started.unwrap_or(status.timestamp);
        let shown = vertex.statuses.entry(status.id.clone()).or_insert((first, false));
        let over = status.completed.is_some();
        let due = status.timestamp.0.saturating_sub(shown.0.0) >= STATUS_EVERY;
        if shown.1 || !(over || due) {
            return;
        }
        *shown = (status.timestamp, over);
        let amount = match (status.current, status.total) {
            (0, 0) => String::new(),
            (current, 0) => format!(" {}", bytes(current)),
            (current, total) => format!(" {} / {}", bytes(current), bytes(total)),
        };
        let Time(until) = status.completed.unwrap_or(status.timestamp);
        let took = until.saturating_sub(first.0).max(0);
        let took = if took > 10_000 {
            format!(" {}", seconds(took.unsigned_abs()))
        } else {
            String::new()
        };
        let done = if over { " done" } else { "" };
        self.say(at, &format!("{}{amount}{took}{done}", status.id), batch);
    }
}

/// When a vertex that is ending has ended.
fn settled_at(vertex: &Vertex) -> Option<Instant> {
    let State::Ending(since) = vertex.state else {
        return None;
    };
    let unfinished = vertex.outputs.iter().any(Output::is_within);
    Some(since + if unfinished { UNFINISHED } else { SETTLED })
}

/// Which writer and stream the output of a vertex belongs to: lines that are not complete must not run together.
fn output_of(writer: Writer, number: u32, part: usize) -> (Writer, Stream) {
    let stream = if part == 1 { Stream::Stderr } else { Stream::Stdout };
    (writer.part(number), stream)
}

fn seconds(micros: u64) -> String {
    format!("{}.{}s", micros / 1_000_000, micros / 100_000 % 10)
}

/// An amount in the largest unit of which there is one, with two digits.
fn bytes(amount: i64) -> String {
    let mut unit = 0;
    let mut divisor = 1_i64;
    while unit < 4 && amount / divisor >= 1000 {
        divisor *= 1000;
        unit += 1;
    }
    let name = ["B", "kB", "MB", "GB", "TB"][unit];
    if unit == 0 {
        return format!("{amount}{name}");
    }
    format!("{}.{:02}{name}", amount / divisor, amount % divisor / (divisor / 100))
}

#[cfg(test)]
mod tests;
