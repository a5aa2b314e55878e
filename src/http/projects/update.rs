//! `PATCH /v1/projects/{project}`.

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::ProjectView;
use crate::{
    domain::{
        project::Scope,
        queue::ProjectLimits,
        spec::{
            Cache, cache,
            reader::{Errors, Object},
        },
    },
    http::{
        auth::Caller,
        body::JsonBody,
        error::{ApiError, Missing},
        path::ProjectPath,
        problem::Problem,
        projects,
        state::App,
    },
    store::{self, projects::Change},
};

/// What to change of a project; what isn't named stays.
#[derive(Debug, Serialize, ToSchema)]
struct UpdateProject {
    /// The cache of builds that say nothing about theirs: an object, or a reference that stands for `from` and `to`;
    /// null for none.
    cache: Option<Cache>,
    /// Its share of the installation while several projects wait. Needs the scope `admin`, as `limits` does.
    #[schema(minimum = 1, maximum = 1000)]
    weight: Option<u16>,
    /// Limits of its own; null for one that isn't to be.
    limits: Option<ProjectLimits>,
}

/// Change a project. Needs the scope `project:admin`, and `admin` for `weight` and `limits`.
#[utoipa::path(
    patch, path = "/v1/projects/{project}", tag = "projects", operation_id = "updateProject",
    params(("project" = String, Path, description = "Its name")),
    request_body = UpdateProject,
    responses(
        (status = 200, description = "The project as it is now", body = ProjectView),
        (status = 404, description = "No such project for this token", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Fields are invalid", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn update(
    State(app): State<App>,
    caller: Caller,
    ProjectPath(name): ProjectPath,
    JsonBody(document): JsonBody,
) -> Result<Json<ProjectView>, ApiError> {
    caller.require_in(&name, Scope::ProjectAdmin)?;
    if ["weight", "limits"].iter().any(|field| document.get(field).is_some()) {
        caller.require(Scope::Admin)?;
    }
    let errors = Errors::default();
    let change = Object::document(&document, &errors).and_then(|root| {
        let field = root.field("cache");
        let named = document.get("cache").is_some();
        let cache = match field.value() {
            None => Ok(named.then_some(None)),
            Some(_) => cache::cache(&field).map(|cache| Some(Some(cache))),
        };
        let settings = projects::queue_settings(&root);
        root.finish();
        Ok(Change {
            cache: cache?,
            ..settings?
        })
    });
    let change = errors.finish(change).map_err(ApiError::InvalidBody)?;
    let project = store::projects::update(&app.pool, &name, &change)
        .await?
        .ok_or(ApiError::NotFound(Missing::Project))?;
    if change.concerns_queue() {
        // Builds that waited may be able to go on.
        app.signals.queued();
    }
    Ok(Json(project.into()))
}
