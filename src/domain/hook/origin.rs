//! Where a build comes from, for whoever wants to tell the sender about it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Event, EventKind, Forge, HookId};
use crate::domain::spec::CommitId;

/// The event that a build was made for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = BuildOrigin)]
pub struct Origin {
    /// The hook.
    #[schema(value_type = Uuid)]
    pub hook: HookId,
    /// The delivery.
    pub delivery: Uuid,
    /// Who sent it.
    pub forge: Forge,
    /// The repository's full name.
    pub repository: String,
    /// The commit, where the delivery says it.
    pub sha: Option<CommitId>,
    /// What happened.
    pub event: EventKind,
    /// The ref.
    #[serde(rename = "ref")]
    pub reference: Option<String>,
    /// The number of the pull request.
    pub pr: Option<u64>,
}

impl Origin {
    /// The origin of a build that is made for this event.
    pub fn new(hook: HookId, delivery: Uuid, forge: Forge, event: &Event) -> Self {
        Self {
            hook,
            delivery,
            forge,
            repository: event.repository.clone(),
            sha: event.commit.clone(),
            event: event.kind,
            reference: event.reference.clone(),
            pr: event.pull_request,
        }
    }
}
