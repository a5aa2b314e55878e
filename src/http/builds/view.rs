//! A build as callers see it.

use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::{
    domain::{
        build::{Attempt, AttemptLog, Build},
        failure::{Failure, FailureCode},
        hook::Origin,
        id::BuildId,
        project::ProjectName,
        spec::{BuildSpec, CommitId, Digest, ImageRef, Resources},
        state::{BuildState, StateName},
    },
    http::state::App,
};

/// A build.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Build)]
pub(in crate::http) struct BuildView {
    /// A UUID of version 7: ids sort by creation time.
    id: Uuid,
    /// The project that owns it.
    project: ProjectName,
    /// Where it stands.
    state: StateName,
    /// Why it failed; null unless `state` is `failed`.
    failure: Option<FailureView>,
    /// What was asked for, defaults filled in.
    spec: BuildSpec,
    /// The git commit, once it is known.
    commit: Option<CommitId>,
    /// The image's digest, once it is known.
    digest: Option<Digest>,
    /// The image's names.
    #[schema(value_type = Vec<String>, example = json!(["registry.example/team/app:1"]))]
    images: Vec<ImageRef>,
    /// The build that this one repeats, made by `POST /v1/builds/{id}/retry`.
    retry_of: Option<Uuid>,
    /// The latest build that repeats this one.
    retried_by: Option<Uuid>,
    /// The newer build of its group for which this one was cancelled, or told to stop.
    superseded_by: Option<Uuid>,
    /// The event of a hook that it was made for; null when a caller asked for it.
    origin: Option<Origin>,
    /// What was tried, in order.
    attempts: Vec<AttemptView>,
    /// Bytes of output that are kept, of all attempts together.
    log_bytes: u64,
    /// When it was accepted.
    created_at: DateTime<Utc>,
    /// When the last attempt began to run.
    started_at: Option<DateTime<Utc>>,
    /// When it ended.
    finished_at: Option<DateTime<Utc>>,
    /// What can be done with it.
    links: Links,
}

/// Why a build failed.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BuildFailure)]
struct FailureView {
    /// The kind.
    code: FailureCode,
    /// What happened and what to do.
    message: String,
    /// Whether Kiln tried the build more than once.
    retried: bool,
}

/// One try at a build.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Attempt)]
struct AttemptView {
    /// Counts from 1.
    number: u32,
    /// Where it stands; never `queued`.
    state: StateName,
    /// Name of its pod, or of its folder where builds run on the host.
    pod: String,
    /// The node that it ran on.
    node: Option<String>,
    /// Why it failed.
    failure: Option<Failure>,
    /// When it was claimed.
    created_at: DateTime<Utc>,
    /// When it began to run.
    started_at: Option<DateTime<Utc>>,
    /// When it ended.
    finished_at: Option<DateTime<Utc>>,
    /// What it was given.
    resources: Resources,
    /// How its log arrives; null before anything has.
    log: Option<AttemptLog>,
}

/// Where to go on from a build.
#[derive(Debug, Serialize, ToSchema)]
struct Links {
    /// The build itself.
    #[serde(rename = "self")]
    this: String,
    /// Everything that happens to it, as server-sent events.
    events: String,
    /// Its output.
    logs: String,
    /// Stops it.
    cancel: String,
    /// Builds the same again, once it is over.
    retry: String,
    /// What it waits for.
    queue: String,
}

impl BuildView {
    /// The build, with links as this installation wants them.
    pub(super) fn new(build: Build, app: &App) -> Self {
        let (started_at, finished_at, digest, failure) = match &build.state {
            BuildState::Queued { .. } | BuildState::Starting { .. } => (None, None, None, None),
            BuildState::Running { started_at, .. } => (Some(*started_at), None, None, None),
            BuildState::Cancelling { started_at, .. } => (*started_at, None, None, None),
            BuildState::Succeeded {
                started_at,
                finished_at,
                digest,
            } => (Some(*started_at), Some(*finished_at), digest.clone(), None),
            BuildState::Failed {
                started_at,
                finished_at,
                failure,
            } => (*started_at, Some(*finished_at), None, Some(failure.clone())),
            BuildState::Cancelled {
                started_at,
                finished_at,
            } => (*started_at, Some(*finished_at), None, None),
        };
        let retried = build.attempts.len() > 1;
        let this = app.link(&format!("/v1/builds/{}", build.id));
        Self {
            id: build.id.0,
            project: build.project,
            state: build.state.name(),
            failure: failure.map(|Failure { code, message, .. }| FailureView { code, message, retried }),
            images: build.spec.images.clone(),
            spec: build.spec,
            commit: build.commit,
            digest,
            retry_of: build.retry_of.map(|BuildId(id)| id),
            retried_by: build.retried_by.map(|BuildId(id)| id),
            superseded_by: build.superseded_by.map(|BuildId(id)| id),
            origin: build.origin,
            attempts: build.attempts.into_iter().map(AttemptView::from).collect(),
            log_bytes: build.log_bytes,
            created_at: build.created_at,
            started_at,
            finished_at,
            links: Links {
                events: format!("{this}/events"),
                logs: format!("{this}/logs"),
                cancel: format!("{this}/cancel"),
                retry: format!("{this}/retry"),
                queue: format!("{this}/queue"),
                this,
            },
        }
    }

    /// The build's own address.
    pub(super) fn location(&self) -> &str {
        &self.links.this
    }
}

impl From<Attempt> for AttemptView {
    fn from(attempt: Attempt) -> Self {
        Self {
            number: attempt.number,
            state: attempt.state,
            pod: attempt.pod,
            node: attempt.node,
            failure: attempt.failure,
            created_at: attempt.created_at,
            started_at: attempt.started_at,
            finished_at: attempt.finished_at,
            resources: attempt.resources,
            log: attempt.log,
        }
    }
}
