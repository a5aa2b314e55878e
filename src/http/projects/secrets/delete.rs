//! `DELETE /v1/projects/{project}/secrets/{secret}`.

use axum::{extract::State, http::StatusCode};

use crate::{
    http::{
        auth::ManagedProject,
        error::{ApiError, Missing},
        path::SecretPath,
        problem::Problem,
        state::App,
    },
    store::secrets,
};

/// Delete a secret. Needs the scope `project:admin`.
///
/// Builds that have begun keep what they were given. One that is still queued and names the secret fails when its turn
/// comes: `source_failed`, `push_failed` or `build_failed` by what it wanted the secret for.
#[utoipa::path(
    delete, path = "/v1/projects/{project}/secrets/{secret}", tag = "projects", operation_id = "deleteSecret",
    params(
        ("project" = String, Path, description = "The project"),
        ("secret" = String, Path, description = "The secret's name"),
    ),
    responses(
        (status = 204, description = "It is gone"),
        (status = 404, description = "No such secret", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn delete(
    State(app): State<App>,
    ManagedProject(project): ManagedProject,
    SecretPath(name): SecretPath,
) -> Result<StatusCode, ApiError> {
    if !secrets::delete(&app.pool, &project, &name).await? {
        return Err(ApiError::NotFound(Missing::Secret));
    }
    tracing::info!(project = %project, secret = %name, "a secret was deleted");
    Ok(StatusCode::NO_CONTENT)
}
