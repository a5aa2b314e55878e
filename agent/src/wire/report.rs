//! What a step leaves behind when it ends, as JSON: in a pod it is the termination message, on the host a file.

use serde::{Deserialize, Serialize};

use super::step::clip_middle;

/// Longest report, in bytes of JSON. Kubernetes cuts a termination message at 4096 bytes *and* at 12 KiB divided by
/// the number of the pod's containers, init containers and injected sidecars included (the kubelet's
/// `normalizeStatus`); this leaves room for five containers.
pub const MAX_REPORT: usize = 2400;

/// Longest `tail`, in bytes; shorter where its escaped form would not fit [`MAX_REPORT`].
pub const MAX_TAIL: usize = 1536;

/// Longest message of a problem, in bytes of its escaped form.
const MAX_MESSAGE: usize = 768;

/// Longest name and error of a failed step, in bytes of their escaped form.
const MAX_FAILED_NAME: usize = 128;
const MAX_FAILED_ERROR: usize = 512;

/// The end of one step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// How the step ended.
    pub exit: Exit,
    /// Number of the last frame written: a reader that got this far has the whole log.
    pub lines: u64,
    /// Bytes of output before framing: the text of all frames, with a newline for each that isn't partial.
    pub bytes: u64,
    /// Source step: the commit that was checked out, for sources that have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Build step: the image's digest as the builder reported it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// What the agent itself found wrong, when it knows better than the exit status tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
    /// Build step: the first of the builder's own steps that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<FailedStep>,
    /// The last lines of output, for telling failures apart; at most [`MAX_TAIL`] bytes, empty after a success.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tail: String,
}

impl Report {
    /// The report as JSON of at most [`MAX_REPORT`] bytes: what doesn't fit is cut off the end of the problem's
    /// message and off the front of the tail.
    pub fn to_json(&self) -> String {
        let mut report = self.clone();
        if let Some(problem) = &mut report.problem {
            problem.message = clip_end(&problem.message, MAX_MESSAGE);
        }
        if let Some(failed) = &mut report.failed {
            failed.name = clip_escaped(&failed.name, MAX_FAILED_NAME);
            failed.error = clip_escaped(&failed.error, MAX_FAILED_ERROR);
        }
        report.tail = String::new();
        let room = MAX_REPORT.saturating_sub(render(&report).len() + r#","tail":"""#.len());
        clip_front(&self.tail, MAX_TAIL, room).clone_into(&mut report.tail);
        render(&report)
    }
}

/// Both ends of `text`, so that what is left takes at most `room` escaped bytes.
fn clip_escaped(text: &str, room: usize) -> String {
    let mut max = text.len().min(room);
    loop {
        let clipped = clip_middle(text, max);
        if max == 0 || clipped.chars().map(escaped_len).sum::<usize>() <= room {
            return clipped;
        }
        max = max * 3 / 4;
    }
}

/// A report holds only strings and numbers, which can't fail to serialise.
fn render(report: &Report) -> String {
    serde_json::to_string(report).unwrap_or_default()
}

/// Bytes of a character inside a JSON string.
const fn escaped_len(c: char) -> usize {
    match c {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        c if c < ' ' => 6,
        c => c.len_utf8(),
    }
}

/// The beginning of `text`, with an ellipsis where the whole of it would take more than `room` escaped bytes.
fn clip_end(text: &str, room: usize) -> String {
    if text.chars().map(escaped_len).sum::<usize>() <= room {
        return text.to_owned();
    }
    let mut left = room.saturating_sub('…'.len_utf8());
    let mut clipped: String = text
        .chars()
        .take_while(|&c| {
            let fits = escaped_len(c) <= left;
            left = left.saturating_sub(escaped_len(c));
            fits
        })
        .collect();
    clipped.push('…');
    clipped
}

/// The last whole lines of `text` that take at most `bytes` bytes and `room` escaped bytes; where not even the last
/// line fits, the end of it.
fn clip_front(text: &str, bytes: usize, room: usize) -> &str {
    let (mut plain, mut escaped, mut start) = (0, 0, text.len());
    for (at, c) in text.char_indices().rev() {
        plain += c.len_utf8();
        escaped += escaped_len(c);
        if plain > bytes || escaped > room {
            break;
        }
        start = at;
    }
    let clipped = &text[start..];
    if start == 0 || text[..start].ends_with('\n') {
        return clipped;
    }
    match clipped.split_once('\n') {
        Some((_, whole)) if !whole.is_empty() => whole,
        _ => clipped,
    }
}

/// A builder's step that failed, in the builder's words; long ones lose their middle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedStep {
    /// Such as `[2/3] RUN make`.
    pub name: String,
    /// Such as `process "/bin/sh -c make" did not complete successfully: exit code: 2`.
    pub error: String,
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// The command that decided the step exited with this status; 0 is success.
    Code(i32),
    /// The command that decided the step was killed by this signal.
    Signal(i32),
    /// The step was told to stop and did.
    Stopped,
}

/// A failure with a name, found by the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What kind of failure it is.
    pub kind: ProblemKind,
    /// One or two sentences for the person who asked for the build, with what to do.
    pub message: String,
}

/// The kinds of failure that an agent can tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemKind {
    /// The source could not be fetched.
    Source,
    /// The Dockerfile isn't where the request says.
    Dockerfile,
    /// The plan could not be carried out for a reason that isn't the user's.
    Internal,
}

#[cfg(test)]
mod tests {
    use proptest::{option, prelude::*};

    use super::*;

    fn report(message: &str, tail: &str) -> Report {
        Report {
            exit: Exit::Code(1),
            lines: 3,
            bytes: 40,
            commit: None,
            digest: None,
            problem: Some(Problem {
                kind: ProblemKind::Source,
                message: message.to_owned(),
            }),
            failed: None,
            tail: tail.to_owned(),
        }
    }

    #[test]
    fn a_short_report_is_written_whole() {
        let report = report("say \"what\" to do", "one\ntwo\n");
        assert_eq!(serde_json::from_str::<Report>(&report.to_json()).unwrap(), report);
    }

    #[test]
    fn a_long_tail_loses_whole_lines_at_its_front() {
        let tail = (0..1000).map(|n| format!("line {n}\n")).collect::<Vec<_>>().concat();
        let read: Report = serde_json::from_str(&report("short", &tail).to_json()).unwrap();
        assert!(read.tail.len() > MAX_TAIL - 10 && tail.ends_with(&read.tail));
        assert!(read.tail.starts_with("line "), "{:?}", read.tail);
    }

    #[test]
    fn of_one_endless_line_the_end_is_kept() {
        let tail = "é".repeat(4000);
        let read: Report = serde_json::from_str(&report("short", &tail).to_json()).unwrap();
        assert_eq!(read.tail, "é".repeat(MAX_TAIL / 2));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]
        #[test]
        fn whatever_it_holds_it_fits_and_parses(
            exit in prop_oneof![any::<i32>().prop_map(Exit::Code), any::<i32>().prop_map(Exit::Signal), Just(Exit::Stopped)],
            lines: u64,
            bytes: u64,
            commit in option::of("[0-9a-f]{64}"),
            digest in option::of("sha256:[0-9a-f]{64}"),
            message in option::of(any_text()),
            failed in option::of((any_text(), any_text())),
            tail in any_text(),
        ) {
            let problem = message.map(|message| Problem { kind: ProblemKind::Dockerfile, message });
            let failed = failed.map(|(name, error)| FailedStep { name, error });
            let report = Report { exit, lines, bytes, commit, digest, problem, failed, tail };
            let json = report.to_json();
            prop_assert!(json.len() <= MAX_REPORT, "{} bytes", json.len());
            let read: Report = serde_json::from_str(&json).unwrap();
            prop_assert!(report.tail.ends_with(&read.tail) && read.tail.len() <= MAX_TAIL);
            prop_assert_eq!(read.tail.is_empty(), report.tail.is_empty());
            let rest = |report: Report| Report { problem: None, failed: None, tail: String::new(), ..report };
            prop_assert_eq!(read.failed.is_some(), report.failed.is_some());
            prop_assert_eq!(rest(read), rest(report));
        }
    }

    /// Text of up to a few thousand characters, heavy on what JSON escapes.
    fn any_text() -> impl Strategy<Value = String> {
        let piece = prop_oneof![any::<char>(), Just('\u{1b}'), Just('"'), Just('\n'), Just('a')];
        proptest::collection::vec(piece, 0..1200).prop_map(String::from_iter)
    }
}
