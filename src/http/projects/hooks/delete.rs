//! `DELETE /v1/projects/{project}/hooks/{hook}`.

use axum::{extract::State, http::StatusCode};

use crate::{
    http::{
        auth::ManagedProject,
        error::{ApiError, Missing},
        path::HookPath,
        problem::Problem,
        state::App,
    },
    store::hooks,
};

/// Delete a hook, with the list of what came to it. Its builds stay. Needs the scope `project:admin`.
#[utoipa::path(
    delete, path = "/v1/projects/{project}/hooks/{hook}", tag = "hooks", operation_id = "deleteHook",
    params(
        ("project" = String, Path, description = "The project"),
        ("hook" = Uuid, Path, description = "The hook's id"),
    ),
    responses(
        (status = 204, description = "It is gone"),
        (status = 404, description = "No such hook", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn delete(
    State(app): State<App>,
    ManagedProject(project): ManagedProject,
    HookPath(id): HookPath,
) -> Result<StatusCode, ApiError> {
    if !hooks::delete(&app.pool, &project, id).await? {
        return Err(ApiError::NotFound(Missing::Hook));
    }
    tracing::info!(project = %project, hook.id = %id, "a hook was deleted");
    Ok(StatusCode::NO_CONTENT)
}
