//! `/v1/projects`.

pub(super) mod create;
pub(super) mod get;
pub(super) mod hooks;
pub(super) mod list;
pub(super) mod secrets;
pub(super) mod tokens;
pub(super) mod update;

use chrono::{DateTime, Utc};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    error::{ApiError, Missing},
    state::App,
};
use crate::{
    domain::{
        project::ProjectName,
        queue::{ProjectLimits, Weight},
        spec::{
            Cache,
            reader::{Field, Object, Reported},
        },
    },
    store::{self, projects::Change},
};

/// The project, which must be there. Whether the caller may know of it is asked before.
pub(super) async fn existing(app: &App, name: &ProjectName) -> Result<store::projects::Project, ApiError> {
    let project = store::projects::get(&app.pool, name).await?;
    project.ok_or(ApiError::NotFound(Missing::Project))
}

/// A project.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Project)]
pub(in crate::http) struct ProjectView {
    /// Its name.
    name: ProjectName,
    /// When it was made.
    created_at: DateTime<Utc>,
    /// The cache of builds that say nothing about theirs.
    cache: Option<Cache>,
    /// Share of the installation while several projects wait, in proportion to the weights of the others.
    weight: Weight,
    /// Limits of its own; null is what the installation sets for projects without their own.
    limits: ProjectLimits,
}

/// Reads `weight` and `limits`, as far as they are named.
fn queue_settings(root: &Object<'_>) -> Result<Change, Reported> {
    /// What is to be set, with null for nothing.
    #[expect(clippy::option_option, reason = "what isn't named stays, and null is no limit")]
    fn limit(object: Option<&Object<'_>>, name: &'static str, min: i64) -> Result<Option<Option<u32>>, Reported> {
        let Some(object) = object else { return Ok(None) };
        let Some(field) = object.named(name) else {
            return Ok(None);
        };
        let limit = field.integer(min, ProjectLimits::MAX.into())?;
        Ok(Some(limit.and_then(|limit| u32::try_from(limit).ok())))
    }
    let weight = root.field("weight").integer(1, Weight::MAX.into());
    let field: Field<'_> = root.field("limits");
    let limits = field.value().map(|_| field.object()).transpose();
    let (limits, unread) = match limits {
        Ok(limits) => (limits, None),
        Err(reported) => (None, Some(reported)),
    };
    let object = limits.as_ref();
    let concurrency = limit(object, "concurrency", 0);
    let starts_per_minute = limit(object, "starts_per_minute", 1);
    let queued = limit(object, "queued", 0);
    if let Some(limits) = limits {
        limits.finish();
    }
    if let Some(reported) = unread {
        return Err(reported);
    }
    Ok(Change {
        cache: None,
        weight: weight?
            .and_then(|weight| u16::try_from(weight).ok())
            .and_then(|weight| Weight::new(weight).ok()),
        concurrency: concurrency?,
        starts_per_minute: starts_per_minute?,
        queued: queued?,
    })
}

impl From<store::projects::Project> for ProjectView {
    fn from(project: store::projects::Project) -> Self {
        Self {
            name: project.name,
            created_at: project.created_at,
            cache: project.cache,
            weight: project.weight,
            limits: project.limits,
        }
    }
}
