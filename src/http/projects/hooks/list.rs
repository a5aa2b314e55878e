//! `GET /v1/projects/{project}/hooks`.

use axum::{extract::State, http::HeaderMap, response::Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::HookView;
use crate::{
    http::{auth::ManagedProject, conditional, error::ApiError, problem::Problem, projects, state::App},
    store::hooks,
};

/// A project's hooks.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct HookList {
    /// All of them, oldest first.
    items: Vec<HookView>,
}

/// List a project's hooks; their secrets are not shown. Needs the scope `project:admin`.
#[utoipa::path(
    get, path = "/v1/projects/{project}/hooks", tag = "hooks", operation_id = "listHooks",
    params(("project" = String, Path, description = "The project")),
    responses(
        (status = 200, description = "Its hooks", body = HookList, headers(("ETag", description = "For `If-None-Match`"))),
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
    let hooks = hooks::list(&app.pool, &project).await?;
    let items = hooks.into_iter().map(|hook| HookView::new(&app, hook)).collect();
    Ok(conditional::json(&headers, &HookList { items }))
}
