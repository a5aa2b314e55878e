//! Builds and their attempts, as they are stored and shown.

use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    failure::Failure,
    hook::Origin,
    id::{AttemptId, BuildId},
    node::AvoidedNodes,
    project::ProjectName,
    secret::Credentials,
    spec::{BuildSpec, CommitId, Resources},
    state::{BuildState, StateName},
};

/// A request that was accepted, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Build {
    /// Its id.
    pub id: BuildId,
    /// Who owns it.
    pub project: ProjectName,
    /// What was asked for.
    pub spec: BuildSpec,
    /// Where it stands.
    pub state: BuildState,
    /// The commit that is being built, once known. Later attempts build the same one.
    pub commit: Option<CommitId>,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// Sequence number of the last journal entry; changes with every change of the build.
    pub journal_head: i64,
    /// The build that this one repeats at a caller's wish.
    pub retry_of: Option<BuildId>,
    /// The latest build that repeats this one.
    pub retried_by: Option<BuildId>,
    /// The newer build of its group for which it was cancelled, or told to stop.
    pub superseded_by: Option<BuildId>,
    /// The event of a hook that it was made for.
    pub origin: Option<Origin>,
    /// What was tried, in order.
    pub attempts: Vec<Attempt>,
    /// Bytes of log text in its journal.
    pub log_bytes: u64,
}

/// One try at a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Counts from 1.
    pub number: u32,
    /// Where it stands. An attempt is never queued.
    pub state: StateName,
    /// Name of the pod, or of the folder with the local runner.
    pub pod: String,
    /// The node that the pod ran on.
    pub node: Option<String>,
    /// Why it failed, if it did.
    pub failure: Option<Failure>,
    /// What it was given.
    pub resources: Resources,
    /// When it was claimed.
    pub created_at: DateTime<Utc>,
    /// When its pod was seen running.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
    /// How its log arrives; absent before anything has.
    pub log: Option<AttemptLog>,
}

/// How the log of an attempt arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
pub struct AttemptLog {
    /// What carries it. Where only a part could be pushed, this is what carried the rest.
    pub via: LogVia,
    /// Whether all of it has arrived, by the size and the checksum that the steps that have begun gave at their ends.
    pub sealed: bool,
}

/// What carries logs out of attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogVia {
    /// The attempt sends it to Kiln.
    Push,
    /// Kiln follows the log API of Kubernetes, because the attempt doesn't reach Kiln.
    Kubernetes,
    /// Kiln reads the files that the attempt writes on its own host.
    Host,
}

/// What keeps an attempt from running, in the cluster's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// What it is.
    pub kind: PendingKind,
    /// What the scheduler or the kubelet says.
    pub message: String,
}

/// Kinds of things that keep an attempt from running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PendingKind {
    /// No node takes it.
    Unscheduled,
    /// An image can't be pulled.
    ImagePull,
    /// Its containers can't be made.
    Starting,
}

impl PendingKind {
    const ALL: [Self; 3] = [Self::Unscheduled, Self::ImagePull, Self::Starting];

    /// The kind as it stands in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unscheduled => "unscheduled",
            Self::ImagePull => "image_pull",
            Self::Starting => "starting",
        }
    }
}

impl FromStr for PendingKind {
    type Err = UnknownPendingKind;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or(UnknownPendingKind)
    }
}

/// The text names nothing that an attempt waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a reason to wait")]
pub struct UnknownPendingKind;

/// All that a runner needs to know to carry out an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The attempt.
    pub attempt: AttemptId,
    /// Who owns the build.
    pub project: ProjectName,
    /// What was asked for; its resources are those of this attempt.
    pub spec: BuildSpec,
    /// The commit that an earlier attempt found; wins over the spec's ref.
    pub commit: Option<CommitId>,
    /// The secrets that the specification names, decrypted.
    pub credentials: Credentials,
    /// Where it is better not carried out.
    pub avoid: AvoidedNodes,
}
