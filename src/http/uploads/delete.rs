//! `DELETE /v1/uploads/{id}`.

use axum::{extract::State, http::StatusCode};

use crate::{
    domain::project::Scope,
    http::{
        auth::Caller,
        error::{ApiError, Missing},
        path::UploadPath,
        problem::Problem,
        state::App,
    },
    store::uploads::{self, DeleteOutcome},
};

/// Delete an upload before its time.
#[utoipa::path(
    delete, path = "/v1/uploads/{id}", tag = "uploads", operation_id = "deleteUpload",
    params(("id" = Uuid, Path, description = "The upload")),
    responses(
        (status = 204, description = "It is gone"),
        (status = 404, description = "No such upload for this token, or its time is over", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "A build that is not over needs it", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn delete(
    State(app): State<App>,
    caller: Caller,
    UploadPath(id): UploadPath,
) -> Result<StatusCode, ApiError> {
    super::own(&caller, uploads::get(&app.pool, id).await?)?;
    caller.require(Scope::BuildsWrite)?;
    match uploads::delete(&app.pool, id).await? {
        DeleteOutcome::Deleted => Ok(StatusCode::NO_CONTENT),
        DeleteOutcome::InUse => Err(ApiError::UploadInUse),
        DeleteOutcome::Missing => Err(ApiError::NotFound(Missing::Upload)),
    }
}
