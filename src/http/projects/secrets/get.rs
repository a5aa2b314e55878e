//! `GET /v1/projects/{project}/secrets/{secret}`.

use axum::{Json, extract::State};

use super::SecretView;
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

/// Look at a secret; what it holds is not shown. Needs the scope `project:admin`.
#[utoipa::path(
    get, path = "/v1/projects/{project}/secrets/{secret}", tag = "projects", operation_id = "getSecret",
    params(
        ("project" = String, Path, description = "The project"),
        ("secret" = String, Path, description = "The secret's name"),
    ),
    responses(
        (status = 200, description = "The secret, without what it holds", body = SecretView),
        (status = 404, description = "No such secret", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn get(
    State(app): State<App>,
    ManagedProject(project): ManagedProject,
    SecretPath(name): SecretPath,
) -> Result<Json<SecretView>, ApiError> {
    let secret = secrets::get(&app.pool, &project, &name)
        .await?
        .ok_or(ApiError::NotFound(Missing::Secret))?;
    Ok(Json(secret.into()))
}
