//! `GET /v1/projects/{project}/tokens`.

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::TokenView;
use crate::{
    domain::project::Scope,
    http::{
        auth::Caller,
        error::{ApiError, Missing},
        path::ProjectPath,
        problem::Problem,
        state::App,
    },
    store::{projects, tokens},
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
        (status = 200, description = "Its tokens, without what makes them work", body = TokenList),
        (status = 404, description = "No such project for this token", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn list(
    State(app): State<App>,
    caller: Caller,
    ProjectPath(project): ProjectPath,
) -> Result<Json<TokenList>, ApiError> {
    caller.require_in(&project, Scope::ProjectAdmin)?;
    projects::get(&app.pool, &project)
        .await?
        .ok_or(ApiError::NotFound(Missing::Project))?;
    let tokens = tokens::list(&app.pool, &project).await?;
    Ok(Json(TokenList {
        items: tokens.into_iter().map(TokenView::from).collect(),
    }))
}
