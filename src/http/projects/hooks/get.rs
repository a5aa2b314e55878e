//! `GET /v1/projects/{project}/hooks/{hook}`.

use axum::{Json, extract::State};

use super::HookView;
use crate::http::{auth::ManagedProject, error::ApiError, path::HookPath, problem::Problem, state::App};

/// Look at a hook; its secret is not shown. Needs the scope `project:admin`.
#[utoipa::path(
    get, path = "/v1/projects/{project}/hooks/{hook}", tag = "hooks", operation_id = "getHook",
    params(
        ("project" = String, Path, description = "The project"),
        ("hook" = Uuid, Path, description = "The hook's id"),
    ),
    responses(
        (status = 200, description = "The hook", body = HookView),
        (status = 404, description = "No such hook", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn get(
    State(app): State<App>,
    ManagedProject(project): ManagedProject,
    HookPath(id): HookPath,
) -> Result<Json<HookView>, ApiError> {
    let hook = super::existing(&app, &project, id).await?;
    Ok(Json(HookView::new(&app, hook)))
}
