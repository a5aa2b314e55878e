//! `GET /v1/projects`.

use axum::{extract::State, http::HeaderMap, response::Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::ProjectView;
use crate::{
    domain::{
        project::{ProjectName, Scope},
        spec::reader::{Object, Reported},
    },
    http::{
        auth::Caller,
        conditional,
        error::ApiError,
        problem::Problem,
        query::{Number, Parameters, Query},
        state::App,
    },
    store::projects,
};

const DEFAULT_LIMIT: u32 = 50;
const MAX_LIMIT: i64 = 200;

pub(in crate::http) struct Params {
    cursor: Option<ProjectName>,
    limit: u32,
}

impl Parameters for Params {
    fn read(query: &Object<'_>) -> Result<Self, Reported> {
        let cursor = query.field("cursor").parse();
        let limit = query.field("limit").parse::<Number<1, MAX_LIMIT>>();
        Ok(Self {
            cursor: cursor?,
            limit: limit?
                .and_then(|Number(limit)| u32::try_from(limit).ok())
                .unwrap_or(DEFAULT_LIMIT),
        })
    }
}

/// A page of projects.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct ProjectList {
    /// The projects by name.
    items: Vec<ProjectView>,
    /// The `cursor` of the next page; null on the last one.
    next: Option<String>,
}

/// List the projects that the token may know of: its own, or all with the scope `admin`.
#[utoipa::path(
    get, path = "/v1/projects", tag = "projects", operation_id = "listProjects",
    params(
        ("cursor" = Option<String>, Query, description = "The `next` of the page before"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 200, description = "Projects on a page; 50 when absent"),
    ),
    responses(
        (status = 200, description = "A page of projects", body = ProjectList, headers(("ETag", description = "For `If-None-Match`"))),
        (status = 304, description = "Unchanged"),
        (status = 400, description = "A parameter is invalid", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(params): Query<Params>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    caller.require(Scope::BuildsRead)?;
    if !caller.is_admin() {
        let own = projects::get(&app.pool, caller.project()).await?;
        let items = own
            .into_iter()
            .filter(|project| params.cursor.as_ref().is_none_or(|cursor| project.name > *cursor))
            .map(ProjectView::from)
            .collect();
        return Ok(conditional::json(&headers, &ProjectList { items, next: None }));
    }
    // One more than fits tells whether there is a next page.
    let mut found = projects::list(&app.pool, params.cursor.as_ref(), params.limit + 1).await?;
    let page = usize::try_from(params.limit).unwrap_or(usize::MAX);
    let more = found.len() > page;
    found.truncate(page);
    let next = found.last().filter(|_| more).map(|last| last.name.to_string());
    let list = ProjectList {
        items: found.into_iter().map(ProjectView::from).collect(),
        next,
    };
    Ok(conditional::json(&headers, &list))
}
