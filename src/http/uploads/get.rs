//! `GET /v1/uploads/{id}`.

use axum::{Json, extract::State};

use super::UploadView;
use crate::{
    domain::project::Scope,
    http::{auth::Caller, error::ApiError, path::UploadPath, problem::Problem, state::App},
    store::uploads,
};

/// Look at an upload.
#[utoipa::path(
    get, path = "/v1/uploads/{id}", tag = "uploads", operation_id = "getUpload",
    params(("id" = Uuid, Path, description = "The upload")),
    responses(
        (status = 200, description = "The upload", body = UploadView),
        (status = 404, description = "No such upload for this token, or its time is over", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn get(
    State(app): State<App>,
    caller: Caller,
    UploadPath(id): UploadPath,
) -> Result<Json<UploadView>, ApiError> {
    let upload = super::own(&caller, uploads::get(&app.pool, id).await?)?;
    caller.require(Scope::BuildsRead)?;
    Ok(Json(upload.into()))
}
