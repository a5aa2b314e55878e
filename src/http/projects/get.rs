//! `GET /v1/projects/{project}`.

use axum::{Json, extract::State};

use super::ProjectView;
use crate::{
    domain::project::Scope,
    http::{auth::Caller, error::ApiError, path::ProjectPath, problem::Problem, projects, state::App},
};

/// Look at a project.
#[utoipa::path(
    get, path = "/v1/projects/{project}", tag = "projects", operation_id = "getProject",
    params(("project" = String, Path, description = "Its name")),
    responses(
        (status = 200, description = "The project", body = ProjectView),
        (status = 404, description = "No such project for this token", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn get(
    State(app): State<App>,
    caller: Caller,
    ProjectPath(name): ProjectPath,
) -> Result<Json<ProjectView>, ApiError> {
    caller.require_in(&name, Scope::BuildsRead)?;
    Ok(Json(projects::existing(&app, &name).await?.into()))
}
