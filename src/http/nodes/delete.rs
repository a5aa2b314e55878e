//! `DELETE /v1/nodes/{node}`.

use axum::{extract::State, http::StatusCode};

use crate::{
    domain::project::Scope,
    http::{
        auth::Caller,
        error::{ApiError, Missing},
        path::NodePath,
        problem::Problem,
        state::App,
    },
    store,
};

/// Forget what a node has done, so that builds go there again. Needs the scope `admin`.
#[utoipa::path(
    delete, path = "/v1/nodes/{node}", tag = "operations", operation_id = "forgetNode",
    params(("node" = String, Path, description = "Its name")),
    responses(
        (status = 204, description = "Nothing is known of it any more"),
        (status = 403, description = "The token lacks the scope `admin`", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "Nothing was known of it", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn delete(
    State(app): State<App>,
    caller: Caller,
    NodePath(name): NodePath,
) -> Result<StatusCode, ApiError> {
    caller.require(Scope::Admin)?;
    if store::nodes::forget(&app.pool, &name).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(ApiError::NotFound(Missing::Node))
    }
}
