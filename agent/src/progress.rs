//! What builders say about their steps, out of their output: log lines stay log lines, and each step's beginning and
//! end becomes a record among them.

mod buildah;
mod buildkit;

use std::time::{Duration, Instant};

use kiln_agent::wire::plan::Progress;

use crate::capture::sink::{Batch, Writer};

use self::{buildah::Buildah, buildkit::Buildkit};

/// Reads one pipe of a builder.
pub(crate) enum Translator {
    Buildkit(Box<Buildkit>),
    Buildah(Buildah),
}

impl Translator {
    pub(crate) fn new(progress: Progress, writer: Writer) -> Self {
        match progress {
            Progress::BuildkitJson => Self::Buildkit(Box::new(Buildkit::new(writer))),
            Progress::Buildah => Self::Buildah(Buildah::default()),
        }
    }

    /// Takes the next bytes.
    pub(crate) fn take(&mut self, bytes: &[u8], now: Instant, batch: &mut Batch<'_>) {
        match self {
            Self::Buildkit(buildkit) => buildkit.take(bytes, now, batch),
            Self::Buildah(buildah) => buildah.take(bytes, now, batch),
        }
    }

    /// How long it may wait for further bytes until [`Self::tick`] has something to say.
    pub(crate) fn due(&self, now: Instant) -> Option<Duration> {
        match self {
            Self::Buildkit(buildkit) => buildkit.due(now),
            Self::Buildah(_) => None,
        }
    }

    /// Says what is due.
    pub(crate) fn tick(&mut self, now: Instant, batch: &mut Batch<'_>) {
        match self {
            Self::Buildkit(buildkit) => buildkit.tick(now, batch),
            Self::Buildah(_) => {}
        }
    }

    /// Says what is left at the end of the output.
    pub(crate) fn finish(self, batch: &mut Batch<'_>) {
        match self {
            Self::Buildkit(buildkit) => buildkit.finish(batch),
            Self::Buildah(buildah) => buildah.finish(batch),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{fs::File, io::Read};

    use kiln_agent::wire::{
        frame::{Frame, Stream},
        report::FailedStep,
        step::{StepPhase, StepRecord},
    };
    use tempfile::NamedTempFile;

    use super::*;
    use crate::capture::sink::Sink;

    /// What came out of a translator.
    pub(crate) struct Seen {
        /// All lines, of both streams.
        pub(crate) text: String,
        /// Lines and records in their order, records as in [`Seen::steps`].
        pub(crate) all: Vec<String>,
        pub(crate) records: Vec<StepRecord>,
        pub(crate) failed: Option<FailedStep>,
    }

    impl Seen {
        /// The records, in words.
        pub(crate) fn steps(&self) -> Vec<String> {
            self.records.iter().map(words).collect()
        }
    }

    fn words(record: &StepRecord) -> String {
        let phase = match record.phase {
            StepPhase::Started => "started",
            StepPhase::Succeeded => "succeeded",
            StepPhase::Failed => "failed",
        };
        let cached = if record.cached { " cached" } else { "" };
        format!("{} {phase}{cached} {}", record.vertex, record.name)
    }

    /// Passes these portions through a translator.
    pub(crate) fn seen(progress: Progress, portions: &[&[u8]]) -> Seen {
        let at_once: Vec<_> = portions.iter().map(|&portion| (Duration::ZERO, portion)).collect();
        seen_over_time(progress, &at_once)
    }

    /// The same with the moment at which each arrives.
    pub(crate) fn seen_over_time(progress: Progress, portions: &[(Duration, &[u8])]) -> Seen {
        let file = NamedTempFile::new().unwrap();
        let sink = Sink::new(file.reopen().unwrap(), None, || 7);
        let begun = Instant::now();
        let mut translator = Translator::new(progress, Writer(1));
        for (after, portion) in portions {
            let mut batch = sink.batch(Writer(1), Stream::Stdout);
            translator.take(portion, begun + *after, &mut batch);
            batch.send().unwrap();
        }
        let mut batch = sink.batch(Writer(1), Stream::Stdout);
        translator.finish(&mut batch);
        batch.send().unwrap();

        let mut bytes = Vec::new();
        File::open(file.path()).unwrap().read_to_end(&mut bytes).unwrap();
        let mut seen = Seen {
            text: String::new(),
            all: Vec::new(),
            records: Vec::new(),
            failed: sink.totals().failed,
        };
        for (line, number) in bytes
            .split(|&byte| byte == b'\n')
            .filter(|line| !line.is_empty())
            .zip(1..)
        {
            let frame = Frame::parse(line).unwrap();
            assert_eq!(frame.number, number, "numbers have no gap");
            if frame.stream == Stream::Step {
                let record: StepRecord = serde_json::from_slice(frame.text).unwrap();
                seen.all.push(format!("> {}", words(&record)));
                seen.records.push(record);
            } else {
                let text = String::from_utf8_lossy(frame.text);
                seen.text.push_str(&text);
                if !frame.partial {
                    seen.text.push('\n');
                }
                seen.all.push(text.into_owned());
            }
        }
        assert_eq!(sink.totals().lines, seen.all.len() as u64);
        seen
    }
}
