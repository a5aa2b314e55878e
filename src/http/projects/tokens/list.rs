//! `GET /v1/projects/{project}/tokens`.

use axum::{extract::State, http::HeaderMap, response::Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::TokenView;
use crate::{
    http::{auth::ManagedProject, conditional, error::ApiError, problem::Problem, projects, state::App},
    store::tokens,
};

/// A project's tokens.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct TokenList {
    /// All of them, oldest first.
    items: Vec<TokenView>,
}

/// List a project's tokens. Needs the scope `project:admin`.
#[utoipa::path(
    get, path = "/v1/projects/{project}/tokens", tag = "projects", operation_id = "listTokens",
    params(("project" = String, Path, description = "The project")),
    responses(
        (status = 200, description = "Its tokens, without what makes them work", body = TokenList, headers(("ETag", description = "For `If-None-Match`"))),
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
    let tokens = tokens::list(&app.pool, &project).await?;
    let list = TokenList {
        items: tokens.into_iter().map(TokenView::from).collect(),
    };
    Ok(conditional::json(&headers, &list))
}
