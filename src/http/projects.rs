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
    domain::{project::ProjectName, spec::Cache},
    store,
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
}

impl From<store::projects::Project> for ProjectView {
    fn from(project: store::projects::Project) -> Self {
        Self {
            name: project.name,
            created_at: project.created_at,
            cache: project.cache,
        }
    }
}
