//! How a step's spool gets to the service: pushes by offset, heartbeats, and the seal that ends it.
//!
//! A step's spool is its frames ([`super::frame`]) back to back; an offset counts its bytes from 0. A push carries whole
//! frames from some offset on, and the answer says below which offset everything is durable. Nothing else is agreed
//! on, so either side may be killed, and a push repeated or sent to another replica, at any time.
//!
//! Below `/internal/v1/attempts/{attempt}/log`, with the attempt's own bearer token:
//! - `POST ?step=…&offset=N`: frames, at most [`MAX_PUSH`] bytes of them, plain or with `Content-Encoding: zstd`; none
//!   at all for a heartbeat. Answered with [`PushAnswer`]. The header [`PRINTED`] ([`Printed`]) says how much there is to
//!   push, so that the service knows what it lacks when no more comes.
//! - `POST /seal?step=…`: a [`Seal`] as JSON. Answered with [`PushAnswer`].
//!
//! Either is answered by 409 with the problem [`LOG_OFFSET`] ([`OffsetProblem`]) where the service lacks bytes before the
//! offset, or before the seal.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Most bytes of frames in one push, before compression.
pub const MAX_PUSH: usize = 1 << 20;

/// Header of a push: [`Printed`].
pub const PRINTED: &str = "kiln-log-printed";

/// Code of the problem that tells the agent from where to go on.
pub const LOG_OFFSET: &str = "log_offset";

/// The steps that have a spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpoolStep {
    /// Fetching the source.
    Source,
    /// Running the builder.
    Build,
}

impl SpoolStep {
    /// Its name in queries, and of its folder in the spool.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Build => "build",
        }
    }
}

impl fmt::Display for SpoolStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// There is no such step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a step is `source` or `build`")]
pub struct UnknownStep;

impl FromStr for SpoolStep {
    type Err = UnknownStep;

    fn from_str(name: &str) -> Result<Self, UnknownStep> {
        [Self::Source, Self::Build]
            .into_iter()
            .find(|step| step.as_str() == name)
            .ok_or(UnknownStep)
    }
}

/// Where the frames from `offset` on are pushed to. `base` ends in `/log`.
pub fn push_url(base: &str, step: SpoolStep, offset: u64) -> String {
    format!("{}?step={step}&offset={offset}", base.trim_end_matches('/'))
}

/// Where a step's log is sealed. `base` ends in `/log`.
pub fn seal_url(base: &str, step: SpoolStep) -> String {
    format!("{}/seal?step={step}", base.trim_end_matches('/'))
}

/// How much a step has printed by the time of a push, as far as its spool shows: `17`, or `17 all`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Printed {
    /// Number of the last frame.
    pub lines: u64,
    /// Whether the step's agent has said that this is all.
    #[serde(default, skip_serializing_if = "is_false")]
    pub all: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
const fn is_false(value: &bool) -> bool {
    !*value
}

impl Printed {
    /// What is known after another word on the same step, whichever came first.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self.all, other.all) {
            (true, false) => self,
            (false, true) => other,
            _ => Self {
                lines: self.lines.max(other.lines),
                ..self
            },
        }
    }
}

impl fmt::Display for Printed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.lines, if self.all { " all" } else { "" })
    }
}

/// It isn't a number of lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a number of lines, such as `17` or `17 all`")]
pub struct InvalidPrinted;

impl FromStr for Printed {
    type Err = InvalidPrinted;

    fn from_str(text: &str) -> Result<Self, InvalidPrinted> {
        let (lines, all) = text.strip_suffix(" all").map_or((text, false), |lines| (lines, true));
        let lines = lines.parse().map_err(|_| InvalidPrinted)?;
        Ok(Self { lines, all })
    }
}

/// What the service says to a push and to a seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushAnswer {
    /// Every byte below it is durable. It may be beyond what was pushed: somebody else did that before.
    pub offset: u64,
    /// Whether the build is to end.
    #[serde(default)]
    pub cancel: bool,
}

/// What the agent reads of the problem document [`LOG_OFFSET`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OffsetProblem {
    /// [`LOG_OFFSET`].
    pub code: String,
    /// Where the next push has to begin.
    pub offset: u64,
}

/// The end of a step's spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seal {
    /// Number of the last frame.
    pub lines: u64,
    /// Length of the spool: the offset behind the last frame.
    pub bytes: u64,
    /// [`crc32`] of all of it.
    pub crc32: u32,
    /// Whether the step's own agent wrote this as the last thing it did. Otherwise it was killed, and whoever found the
    /// spool counted what is in it.
    #[serde(default = "yes")]
    pub complete: bool,
}

const fn yes() -> bool {
    true
}

/// Goes on with the checksum (CRC-32/ISO-HDLC, which zlib and PNG use) of what came before `bytes`; it begins with 0.
pub fn crc32(so_far: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(so_far);
    hasher.update(bytes);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_checksum_is_the_one_of_the_standard() {
        assert_eq!(crc32(0, b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(0, b""), 0);
    }

    #[test]
    fn urls_and_documents() {
        let base = "http://kiln/internal/v1/attempts/7/log";
        assert_eq!(
            push_url(base, SpoolStep::Build, 42),
            "http://kiln/internal/v1/attempts/7/log?step=build&offset=42"
        );
        assert_eq!(
            seal_url(&format!("{base}/"), SpoolStep::Source),
            "http://kiln/internal/v1/attempts/7/log/seal?step=source"
        );
        for step in [SpoolStep::Source, SpoolStep::Build] {
            assert_eq!(step.to_string().parse(), Ok(step));
            assert_eq!(serde_json::to_string(&step).unwrap(), format!("\"{step}\""));
        }
        assert_eq!("deploy".parse::<SpoolStep>(), Err(UnknownStep));
        let answer: PushAnswer = serde_json::from_str(r#"{"offset": 7, "news": 1}"#).unwrap();
        assert_eq!(
            answer,
            PushAnswer {
                offset: 7,
                cancel: false
            }
        );
        let problem = r#"{"code": "log_offset", "title": "x", "status": 409, "offset": 9}"#;
        let problem: OffsetProblem = serde_json::from_str(problem).unwrap();
        assert_eq!((problem.code.as_str(), problem.offset), (LOG_OFFSET, 9));
        for (text, lines, all) in [("17", 17, false), ("0 all", 0, true)] {
            let printed = Printed { lines, all };
            assert_eq!(printed.to_string(), text);
            assert_eq!(text.parse(), Ok(printed));
        }
        for text in ["", "all", "-1", "17 some", "17 all all"] {
            assert_eq!(text.parse::<Printed>(), Err(InvalidPrinted), "{text}");
        }
        let seal: Seal = serde_json::from_str(r#"{"lines": 1, "bytes": 2, "crc32": 3}"#).unwrap();
        assert!(seal.complete);
    }

    proptest! {
        #[test]
        fn the_checksum_runs_on(bytes: Vec<u8>, cut: prop::sample::Index) {
            let (head, tail) = bytes.split_at(cut.index(bytes.len() + 1));
            prop_assert_eq!(crc32(crc32(0, head), tail), crc32(0, &bytes));
        }
    }
}
