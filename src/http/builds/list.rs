//! `GET /v1/builds`.

use std::str::FromStr;

use axum::{Json, extract::State};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::view::BuildView;
use crate::{
    domain::{
        id::BuildId,
        project::{ProjectName, Scope},
        spec::{
            Invalid,
            reader::{Object, Reported},
        },
        state::StateName,
    },
    http::{
        auth::Caller,
        error::{ApiError, Missing},
        problem::Problem,
        query::{Number, Parameters, Query},
        state::App,
    },
    store::builds::{self, Filter},
};

const DEFAULT_LIMIT: u32 = 50;
const MAX_LIMIT: i64 = 200;

pub(in crate::http) struct Params {
    project: Option<ProjectName>,
    state: Option<StateName>,
    cursor: Option<Cursor>,
    limit: u32,
}

impl Parameters for Params {
    fn read(query: &Object<'_>) -> Result<Self, Reported> {
        let project = query.field("project").parse();
        let state = query
            .field("state")
            .one_of(&StateName::ALL.map(|state| (state.as_str(), state)));
        let cursor = query.field("cursor").parse();
        let limit = query.field("limit").parse::<Number<1, MAX_LIMIT>>();
        Ok(Self {
            project: project?,
            state: state?,
            cursor: cursor?,
            limit: limit?
                .and_then(|Number(limit)| u32::try_from(limit).ok())
                .unwrap_or(DEFAULT_LIMIT),
        })
    }
}

/// A place in the list: everything before this build. Callers get it as a text that means nothing to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cursor(BuildId);

impl Cursor {
    fn encode(self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(self.0.0.as_bytes())
    }
}

impl FromStr for Cursor {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        BASE64_URL_SAFE_NO_PAD
            .decode(text)
            .ok()
            .and_then(|bytes| Uuid::from_slice(&bytes).ok())
            .map(|id| Self(BuildId(id)))
            .ok_or_else(|| Invalid::new("expected the `next` of an earlier answer"))
    }
}

/// A page of builds.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct BuildList {
    /// The builds, newest first.
    items: Vec<BuildView>,
    /// The `cursor` of the next page; null on the last one.
    next: Option<String>,
}

/// List builds, newest first.
///
/// A token sees its own project; one with the scope `admin` sees all. Pages are cut by a cursor, so that builds which
/// arrive in between neither repeat nor hide others.
#[utoipa::path(
    get, path = "/v1/builds", tag = "builds", operation_id = "listBuilds",
    params(
        ("project" = Option<String>, Query, description = "Only of this project"),
        ("state" = Option<StateName>, Query, description = "Only in this state"),
        ("cursor" = Option<String>, Query, description = "The `next` of the page before"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 200, description = "Builds on a page; 50 when absent"),
    ),
    responses(
        (status = 200, description = "A page of builds", body = BuildList),
        (status = 400, description = "A parameter is invalid", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(params): Query<Params>,
) -> Result<Json<BuildList>, ApiError> {
    caller.require(Scope::BuildsRead)?;
    let project = match params.project {
        Some(project) if !caller.sees(&project) => return Err(ApiError::NotFound(Missing::Project)),
        Some(project) => Some(project),
        None if caller.is_admin() => None,
        None => Some(caller.project().clone()),
    };
    let filter = Filter {
        project,
        state: params.state,
    };
    // One more than fits tells whether there is a next page.
    let mut found = builds::list(&app.pool, &filter, params.cursor.map(|Cursor(id)| id), params.limit + 1).await?;
    let page = usize::try_from(params.limit).unwrap_or(usize::MAX);
    let more = found.len() > page;
    found.truncate(page);
    let next = found.last().filter(|_| more).map(|last| Cursor(last.id).encode());
    Ok(Json(BuildList {
        items: found.into_iter().map(|build| BuildView::new(build, &app)).collect(),
        next,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_read_back() {
        let cursor = Cursor(BuildId::new());
        assert_eq!(cursor.encode().parse(), Ok(cursor));
        for bad in ["", "x", "AAAA", &cursor.0.to_string()] {
            assert!(bad.parse::<Cursor>().is_err(), "{bad}");
        }
    }
}
