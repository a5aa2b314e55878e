//! `GET /v1/projects/{project}/secrets`.

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::SecretView;
use crate::{
    domain::project::Scope,
    http::{
        auth::Caller,
        error::{ApiError, Missing},
        path::ProjectPath,
        problem::Problem,
        state::App,
    },
    store::{projects, secrets},
};

/// A project's secrets.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct SecretList {
    /// All of them, by name.
    items: Vec<SecretView>,
}

/// List a project's secrets; what they hold is not shown. Needs the scope `project:admin`.
#[utoipa::path(
    get, path = "/v1/projects/{project}/secrets", tag = "projects", operation_id = "listSecrets",
    params(("project" = String, Path, description = "The project")),
    responses(
        (status = 200, description = "Its secrets, without what they hold", body = SecretList),
        (status = 404, description = "No such project for this token", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn list(
    State(app): State<App>,
    caller: Caller,
    ProjectPath(project): ProjectPath,
) -> Result<Json<SecretList>, ApiError> {
    caller.require_in(&project, Scope::ProjectAdmin)?;
    projects::get(&app.pool, &project)
        .await?
        .ok_or(ApiError::NotFound(Missing::Project))?;
    let secrets = secrets::list(&app.pool, &project).await?;
    Ok(Json(SecretList {
        items: secrets.into_iter().map(SecretView::from).collect(),
    }))
}
