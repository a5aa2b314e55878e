//! The entries of a build's journal, in the form in which they are stored and streamed. An entry's sequence number
//! isn't part of it: the store gives it out, in commit order.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{failure::Failure, id::BuildId, project::ProjectName, spec::Digest, state::StateName};

/// One journal entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The build's state changed.
    Status(Status),
    /// A step began or ended.
    Step(Step),
    /// Output of a step.
    Log(Log),
    /// Output that is missing, and why.
    Gap(Gap),
    /// The build is over; always the last entry.
    End(End),
}

impl Event {
    /// The name of the kind: the `event` field of a server-sent event.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Status(_) => "status",
            Self::Step(_) => "step",
            Self::Log(_) => "log",
            Self::Gap(_) => "gap",
            Self::End(_) => "end",
        }
    }
}

/// The build's public state after a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// The state that was entered.
    pub state: StateName,
    /// When.
    pub at: DateTime<Utc>,
    /// The attempt in hand, or the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// Why the attempt or the build failed, when that is what changed the state. With `state` `queued` the build is
    /// tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// The newer build of its group for which the build is cancelled, when that is what changed the state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Uuid>)]
    pub superseded_by: Option<BuildId>,
}

/// A build has entered another state: what readers of many builds see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = BuildChange)]
pub struct Change {
    /// Grows with every change of any build. Numbers of changes that a reader may not see are left out.
    pub seq: i64,
    /// The build.
    pub build: Uuid,
    /// The project that owns it.
    pub project: ProjectName,
    /// The state that was entered.
    pub state: StateName,
    /// When.
    pub at: DateTime<Utc>,
    /// The attempt in hand, or the last one; null before the first.
    pub attempt: Option<u32>,
    /// Why the build failed, when it did.
    pub failure: Option<Failure>,
    /// The image's digest, when the build succeeded.
    pub digest: Option<Digest>,
}

/// The containers of a build pod that do the user's work, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StepName {
    /// Fetching the source.
    Source,
    /// Building and pushing the image.
    Build,
}

impl StepName {
    /// Both steps, in order.
    pub const ALL: [Self; 2] = [Self::Source, Self::Build];

    /// The name, which is also the container's.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Build => "build",
        }
    }
}

/// A step began or ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Step {
    /// The step.
    pub step: StepName,
    /// The attempt it belongs to.
    pub attempt: u32,
    /// What happened to it.
    pub phase: StepPhase,
    /// When.
    pub at: DateTime<Utc>,
    /// Where this is about a step of the builder's own within `step`: its number, in the order in which they began.
    /// One that ended may begin again; the last end counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vertex: Option<u32>,
    /// The builder's name for it, such as `[2/3] RUN make`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// At its end: whether its result was in the cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached: Option<bool>,
    /// At its end: how long it took, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// After its failure: what the builder says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Step {
    /// What happened to a step as a whole.
    pub const fn whole(step: StepName, attempt: u32, phase: StepPhase, at: DateTime<Utc>) -> Self {
        Self {
            step,
            attempt,
            phase,
            at,
            vertex: None,
            name: None,
            cached: None,
            duration_ms: None,
            error: None,
        }
    }
}

/// What can happen to a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StepPhase {
    /// It began.
    Started,
    /// It ended well.
    Succeeded,
    /// It ended badly.
    Failed,
}

/// One or more whole lines of a step's output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Log {
    /// The step that printed them.
    pub step: StepName,
    /// Where they were printed to.
    pub stream: LogStream,
    /// When the first of them was read from the process.
    pub at: DateTime<Utc>,
    /// The lines, each with its newline; a partial one has none.
    pub text: String,
    /// Whether the text is a piece of a line over 64 KiB that goes on in the next entry.
    #[serde(default, skip_serializing_if = "is_false")]
    pub partial: bool,
    /// How many invalid UTF-8 sequences were replaced by U+FFFD.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub replaced: u64,
}

/// Output streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Output that is missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Gap {
    /// The step whose output it is.
    pub step: StepName,
    /// How many lines are missing; absent when that can't be known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lines: Option<u64>,
    /// Why, in a sentence.
    pub reason: String,
    /// When it was found.
    pub at: DateTime<Utc>,
}

/// The build is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct End {
    /// The final state.
    pub state: StateName,
    /// The image's digest.
    pub digest: Option<Digest>,
    /// Why the build failed, if it did.
    pub failure: Option<Failure>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
const fn is_false(value: &bool) -> bool {
    !*value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
const fn is_zero(value: &u64) -> bool {
    *value == 0
}
