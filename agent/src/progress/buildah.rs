//! buildah's steps: lines of its standard output, which also holds what the commands print. A command that prints
//! such a line is taken for a step; that spoils the list of steps, nothing else.

use std::time::Instant;

use kiln_agent::wire::step::{StepPhase, StepRecord};

use crate::capture::{lines::Lines, sink::Batch};

/// Finds steps.
#[derive(Default)]
pub(crate) struct Buildah {
    lines: Lines,
    steps: Steps,
}

#[derive(Default)]
struct Steps {
    count: u32,
    open: Option<Open>,
    /// Whether the line goes on that was begun.
    within: bool,
    /// The last line is an image's id, the last word of a build that went well.
    id: bool,
    now: Option<Instant>,
}

struct Open {
    record: StepRecord,
    since: Option<Instant>,
}

impl Buildah {
    pub(super) fn take(&mut self, bytes: &[u8], now: Instant, batch: &mut Batch<'_>) {
        self.steps.now = Some(now);
        let steps = &mut self.steps;
        self.lines.push(bytes, |text, partial| steps.line(text, partial, batch));
    }

    pub(super) fn finish(mut self, batch: &mut Batch<'_>) {
        let steps = &mut self.steps;
        self.lines.finish(|text, partial| steps.line(text, partial, batch));
        let phase = if self.steps.id {
            StepPhase::Succeeded
        } else {
            StepPhase::Failed
        };
        self.steps.end(phase, batch);
    }
}

impl Steps {
    fn line(&mut self, text: &[u8], partial: bool, batch: &mut Batch<'_>) {
        let whole = !partial && !self.within;
        self.within = partial;
        if whole && let Some(name) = name_of(text) {
            self.end(StepPhase::Succeeded, batch);
            self.begin(name, batch);
        } else if whole
            && text.starts_with(b"--> Using cache ")
            && let Some(open) = &mut self.open
        {
            open.record.cached = true;
        }
        self.id = whole && text.len() == 64 && text.iter().all(u8::is_ascii_hexdigit);
        batch.line(text, partial);
    }

    fn begin(&mut self, name: String, batch: &mut Batch<'_>) {
        self.count += 1;
        let record = StepRecord {
            vertex: self.count,
            name,
            phase: StepPhase::Started,
            cached: false,
            duration_ms: None,
            error: None,
        };
        batch.step(&record);
        self.open = Some(Open {
            record,
            since: self.now,
        });
    }

    fn end(&mut self, phase: StepPhase, batch: &mut Batch<'_>) {
        let Some(Open { mut record, since }) = self.open.take() else {
            return;
        };
        record.phase = phase;
        record.duration_ms = self
            .now
            .zip(since)
            .and_then(|(now, since)| u64::try_from(now.saturating_duration_since(since).as_millis()).ok());
        batch.step(&record);
    }
}

/// The name in `STEP 2/3: RUN make` or `[1/2] STEP 2/3: RUN make`, as `[2/3] RUN make`; in `COMMIT name`, all of it.
fn name_of(text: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(text);
    let (stage, rest) = match text.split_once("] ") {
        Some((stage, rest)) if stage.starts_with('[') && is_fraction(&stage[1..]) => (Some(&stage[1..]), rest),
        _ => (None, &*text),
    };
    if rest.starts_with("COMMIT ") {
        return Some(rest.to_owned());
    }
    let (number, instruction) = rest.strip_prefix("STEP ")?.split_once(": ")?;
    is_fraction(number).then_some(())?;
    let stage = stage.map_or_else(String::new, |stage| format!("stage {stage}, "));
    Some(format!("[{stage}{number}] {instruction}"))
}

/// Such as `2/3`.
fn is_fraction(text: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.split_once('/').is_some_and(|(n, m)| is_number(n) && is_number(m))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::tests::{Seen, seen};
    use kiln_agent::wire::plan::Progress;

    const BUILD: &str = "STEP 1/3: FROM busybox\nSTEP 2/3: RUN make\n--> Using cache 5add56625b1\n--> 5add56625b1\n\
                         STEP 3/3: RUN printf STEP\nSTEPCOMMIT localhost/x\nout\n";

    #[test]
    fn a_build_that_goes_well() {
        let text = format!("{BUILD}COMMIT localhost/x\n--> 69c266ed446\n{}\n", "0a".repeat(32));
        let found = seen(Progress::Buildah, &[text.as_bytes()]);
        assert_eq!(found.text, text);
        assert_eq!(
            found.steps(),
            [
                "1 started [1/3] FROM busybox",
                "1 succeeded [1/3] FROM busybox",
                "2 started [2/3] RUN make",
                "2 succeeded cached [2/3] RUN make",
                "3 started [3/3] RUN printf STEP",
                "3 succeeded [3/3] RUN printf STEP",
                "4 started COMMIT localhost/x",
                "4 succeeded COMMIT localhost/x",
            ]
        );
    }

    #[test]
    fn the_step_that_was_open_at_the_end_failed() {
        let Seen { records, .. } = seen(
            Progress::Buildah,
            &[b"[2/2] STEP 1/2: FROM x\n[2/2] STEP 2/2: RUN make\nbad\n"],
        );
        let last = records.last().unwrap();
        assert_eq!((last.vertex, last.phase), (2, StepPhase::Failed));
        assert_eq!(last.name, "[stage 2/2, 2/2] RUN make");
    }
}
