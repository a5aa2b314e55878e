//! What happened at the sender, in the same words for all senders.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use utoipa::ToSchema;

use super::payload::{Pushed, pushed};
use crate::domain::spec::{CommitId, Invalid};

/// The kinds of events that builds can be made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = HookEventKind)]
pub enum EventKind {
    /// A branch got commits.
    Push,
    /// A tag was made or moved.
    Tag,
    /// A pull or merge request was opened, reopened or got commits.
    PullRequest,
    /// A release was published.
    Release,
    /// Somebody asked for it by the API.
    Manual,
    /// An image was pushed to a registry.
    Image,
}

impl EventKind {
    /// Every kind.
    pub const ALL: [Self; 6] = [
        Self::Push,
        Self::Tag,
        Self::PullRequest,
        Self::Release,
        Self::Manual,
        Self::Image,
    ];

    /// The name as in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Push => "push",
            Self::Tag => "tag",
            Self::PullRequest => "pull_request",
            Self::Release => "release",
            Self::Manual => "manual",
            Self::Image => "image",
        }
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for EventKind {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == text).ok_or_else(|| {
            let names = Self::ALL.map(|kind| format!("`{kind}`"));
            Invalid::new(format!("expected one of {}", names.join(", ")))
        })
    }
}

/// Something that happened. It holds nothing of a payload that is secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = HookEvent)]
pub struct Event {
    /// What kind of thing.
    pub kind: EventKind,
    /// The repository's full name, such as `team/app`; of an image, its name without a tag.
    pub repository: String,
    /// Where the repository is cloned from.
    pub clone_url: Option<String>,
    /// The full name of the ref to build.
    #[serde(rename = "ref")]
    pub reference: Option<String>,
    /// The commit to build, where the sender says it in full.
    pub commit: Option<CommitId>,
    /// The branch that was pushed.
    pub branch: Option<String>,
    /// The tag, of git or of an image.
    pub tag: Option<String>,
    /// The number of the pull or merge request.
    pub pull_request: Option<u64>,
    /// The branch that the pull request wants to be merged.
    pub source_branch: Option<String>,
    /// The branch that it wants to be merged into.
    pub target_branch: Option<String>,
    /// Whether the pull request comes from another repository.
    pub from_fork: bool,
    /// The message of the newest commit, or the title of the pull request.
    pub message: Option<String>,
    /// The files that changed; null where the sender doesn't say, or not all.
    pub files: Option<Vec<String>>,
    /// The digest of the image.
    pub digest: Option<String>,
    /// What else tells it from other events of the same ref and commit: where the ref stood before.
    #[serde(default)]
    pub previous: Option<String>,
}

impl Event {
    /// An event about which no more is known.
    pub fn new(kind: EventKind, repository: String) -> Self {
        Self {
            kind,
            repository,
            clone_url: None,
            reference: None,
            commit: None,
            branch: None,
            tag: None,
            pull_request: None,
            source_branch: None,
            target_branch: None,
            from_fork: false,
            message: None,
            files: None,
            digest: None,
            previous: None,
        }
    }

    /// The push of a branch or a tag; the reason why it is neither, or is gone.
    pub(super) fn of_push(
        repository: String,
        reference: String,
        commit: Option<CommitId>,
        deleted: bool,
    ) -> Result<Self, String> {
        if deleted {
            return Err(format!("`{reference}` was deleted"));
        }
        let mut event = match pushed(&reference) {
            Pushed::Branch(branch) => Self {
                branch: Some(branch.to_owned()),
                ..Self::new(EventKind::Push, repository)
            },
            Pushed::Tag(tag) => Self {
                tag: Some(tag.to_owned()),
                ..Self::new(EventKind::Tag, repository)
            },
            Pushed::Other => return Err(format!("`{reference}` is neither a branch nor a tag")),
        };
        event.reference = Some(reference);
        event.commit = commit;
        Ok(event)
    }

    /// The same for every delivery of the same event, whatever the sender calls it. `None` where the event doesn't say
    /// what was pushed, so that the next one looks just like it.
    pub fn semantic_key(&self) -> Option<[u8; 32]> {
        if self.kind == EventKind::Manual || (self.commit.is_none() && self.digest.is_none() && self.previous.is_none())
        {
            return None;
        }
        let parts = [
            Some(self.kind.as_str()),
            Some(&*self.repository),
            self.reference.as_deref(),
            self.tag.as_deref(),
            self.commit.as_ref().map(CommitId::as_str),
            self.digest.as_deref(),
            self.previous.as_deref(),
        ];
        let mut hash = Sha256::new();
        for part in parts {
            // Each with its length, so that no two lists look the same.
            let part = part.unwrap_or_default();
            hash.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            hash.update(part);
        }
        Some(hash.finalize().into())
    }
}
