//! How builds fail. Every failure has a code from the API's contract and a message that tells its reader what to do.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The kinds of failure, as callers see them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// A command of the Dockerfile failed.
    BuildFailed,
    /// The source could not be fetched.
    SourceFailed,
    /// The Dockerfile is missing or not valid.
    DockerfileInvalid,
    /// The registry refused the image, or doesn't hold what the builder says it pushed.
    PushFailed,
    /// An image that the pod itself needs could not be pulled.
    ImagePullFailed,
    /// The build used more memory than it may.
    OutOfMemory,
    /// The build took longer than its `timeout_seconds`.
    Timeout,
    /// The pod did not start in time.
    PendingTimeout,
    /// No node has room for the pod, or none matches.
    Unschedulable,
    /// The node evicted the pod.
    Evicted,
    /// The node went away with the pod.
    NodeLost,
    /// The log could not be secured.
    LogLost,
    /// Something in Kiln or the cluster failed.
    Internal,
}

impl FailureCode {
    /// Every code, in the contract's order.
    pub const ALL: [Self; 13] = [
        Self::BuildFailed,
        Self::SourceFailed,
        Self::DockerfileInvalid,
        Self::PushFailed,
        Self::ImagePullFailed,
        Self::OutOfMemory,
        Self::Timeout,
        Self::PendingTimeout,
        Self::Unschedulable,
        Self::Evicted,
        Self::NodeLost,
        Self::LogLost,
        Self::Internal,
    ];

    /// The code as it stands in JSON, in the database and in metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BuildFailed => "build_failed",
            Self::SourceFailed => "source_failed",
            Self::DockerfileInvalid => "dockerfile_invalid",
            Self::PushFailed => "push_failed",
            Self::ImagePullFailed => "image_pull_failed",
            Self::OutOfMemory => "out_of_memory",
            Self::Timeout => "timeout",
            Self::PendingTimeout => "pending_timeout",
            Self::Unschedulable => "unschedulable",
            Self::Evicted => "evicted",
            Self::NodeLost => "node_lost",
            Self::LogLost => "log_lost",
            Self::Internal => "internal",
        }
    }

    /// Whether another try on the same input can be expected to end otherwise: the cluster failed, not the user.
    pub const fn is_infrastructure(self) -> bool {
        match self {
            Self::ImagePullFailed | Self::Evicted | Self::NodeLost | Self::LogLost | Self::Internal => true,
            Self::BuildFailed
            | Self::SourceFailed
            | Self::DockerfileInvalid
            | Self::PushFailed
            | Self::OutOfMemory
            | Self::Timeout
            | Self::PendingTimeout
            | Self::Unschedulable => false,
        }
    }
}

impl fmt::Display for FailureCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for FailureCode {
    type Err = UnknownFailureCode;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|code| code.as_str() == text)
            .ok_or(UnknownFailureCode)
    }
}

/// The text is none of the contract's failure codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a failure code")]
pub struct UnknownFailureCode;

/// Why a build or an attempt failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Failure {
    /// The kind.
    pub code: FailureCode,
    /// For the person who asked for the build: what happened and what to do.
    pub message: String,
    /// Where the cluster shows it; absent where the code rests on something else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Evidence>,
}

/// What a failure's code rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Evidence {
    /// The place, such as `status.reason` of the pod.
    #[schema(example = "status.reason")]
    pub at: String,
    /// What stands there.
    #[schema(example = "Evicted")]
    pub says: String,
}

impl Evidence {
    /// Longer words are cut.
    const MAX: usize = 300;

    /// What stands at a place.
    pub fn new(at: impl Into<String>, says: impl Into<String>) -> Self {
        let mut says = says.into().replace('\0', "\u{fffd}");
        says.truncate(says.floor_char_boundary(Self::MAX));
        Self { at: at.into(), says }
    }
}

impl Failure {
    /// Messages are cut to this many bytes, at a character's border.
    pub const MAX_MESSAGE: usize = 2000;

    /// A failure with its message, cut to [`Self::MAX_MESSAGE`].
    pub fn new(code: FailureCode, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > Self::MAX_MESSAGE {
            let end = message.floor_char_boundary(Self::MAX_MESSAGE - '…'.len_utf8());
            message.truncate(end);
            message.push('…');
        }
        // Postgres text can't hold NUL.
        if message.contains('\0') {
            message = message.replace('\0', "\u{fffd}");
        }
        Self {
            code,
            message,
            evidence: None,
        }
    }

    /// The failure with the place that shows it.
    #[must_use]
    pub fn shown_by(self, evidence: Evidence) -> Self {
        Self {
            evidence: Some(evidence),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_read_back_and_match_their_json() {
        for code in FailureCode::ALL {
            assert_eq!(code.as_str().parse(), Ok(code));
            assert_eq!(serde_json::to_value(code).expect("serializes"), code.as_str());
        }
    }

    #[test]
    fn long_messages_are_cut_between_characters() {
        let failure = Failure::new(FailureCode::Internal, "é".repeat(Failure::MAX_MESSAGE));
        assert!(failure.message.len() <= Failure::MAX_MESSAGE);
        assert!(failure.message.ends_with("é…"));
    }
}
