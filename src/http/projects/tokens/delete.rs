//! `DELETE /v1/projects/{project}/tokens/{token}`.

use axum::{extract::State, http::StatusCode};

use crate::{
    http::{
        auth::ManagedProject,
        error::{ApiError, Missing},
        path::TokenPath,
        problem::Problem,
        state::App,
    },
    store::tokens,
};

/// Delete a token; it stops working at once. Needs the scope `project:admin`.
#[utoipa::path(
    delete, path = "/v1/projects/{project}/tokens/{token}", tag = "projects", operation_id = "deleteToken",
    params(
        ("project" = String, Path, description = "The project"),
        ("token" = Uuid, Path, description = "The token's id"),
    ),
    responses(
        (status = 204, description = "It is gone"),
        (status = 404, description = "No such token", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn delete(
    State(app): State<App>,
    ManagedProject(project): ManagedProject,
    TokenPath(token): TokenPath,
) -> Result<StatusCode, ApiError> {
    if tokens::delete(&app.pool, &project, token).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(ApiError::NotFound(Missing::Token))
    }
}
