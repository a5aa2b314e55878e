//! What a step leaves behind when it ends, as JSON: in a pod it is the termination message, which Kubernetes limits
//! to 4096 bytes; on the host a file.

use serde::{Deserialize, Serialize};

/// Longest `tail`, in bytes, so that a whole report fits a termination message even when every byte of the tail
/// needs escaping.
pub const MAX_TAIL: usize = 1536;

/// The end of one step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// How the step ended.
    pub exit: Exit,
    /// Number of the last frame written: a reader that got this far has the whole log.
    pub lines: u64,
    /// Bytes of output before framing.
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
    /// The last lines of output, for telling failures apart; at most [`MAX_TAIL`] bytes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tail: String,
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
