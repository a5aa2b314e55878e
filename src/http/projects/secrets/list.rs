//! `GET /v1/projects/{project}/secrets`.

use axum::{extract::State, http::HeaderMap, response::Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::SecretView;
use crate::{
    http::{auth::ManagedProject, conditional, error::ApiError, problem::Problem, projects, state::App},
    store::secrets,
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
        (status = 200, description = "Its secrets, without what they hold", body = SecretList, headers(("ETag", description = "For `If-None-Match`"))),
        (status = 304, description = "Unchanged"),
        (status = 404, description = "No such project for this token", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn list(
    State(app): State<App>,
    ManagedProject(project): ManagedProject,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    projects::existing(&app, &project).await?;
    let secrets = secrets::list(&app.pool, &project).await?;
    let list = SecretList {
        items: secrets.into_iter().map(SecretView::from).collect(),
    };
    Ok(conditional::json(&headers, &list))
}
