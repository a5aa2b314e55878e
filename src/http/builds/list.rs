//! `GET /v1/builds`.

use std::str::FromStr;

use axum::{extract::State, http::HeaderMap, response::Response};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
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
            reader::{Field, Object, Reported},
        },
        state::StateName,
        term::{ImageTerm, LabelTerm, RefTerm, Term},
    },
    http::{
        auth::Caller,
        conditional,
        error::ApiError,
        problem::Problem,
        projects,
        query::{Number, Parameters, Query, Time, each},
        state::App,
    },
    store::listing::{self, Filter},
};

const DEFAULT_LIMIT: u32 = 50;
const MAX_LIMIT: i64 = 200;

/// Most labels that one request may ask for.
const MAX_LABELS: usize = 16;

pub(in crate::http) struct Params {
    project: Option<ProjectName>,
    states: Vec<StateName>,
    terms: Vec<Term>,
    created_after: Option<DateTime<Utc>>,
    created_before: Option<DateTime<Utc>>,
    cursor: Option<Cursor>,
    limit: u32,
}

impl Parameters for Params {
    const REPEATABLE: &'static [&'static str] = &["state", "label"];

    fn read(query: &Object<'_>) -> Result<Self, Reported> {
        let project = query.field("project").parse();
        let states = each(&query.field("state"), |state| {
            state.one_of(&StateName::ALL.map(|state| (state.as_str(), state)))
        });
        let reference = query.field("ref").parse::<RefTerm>();
        let image = query.field("image").parse::<ImageTerm>();
        let labels_field = query.field("label");
        let labels = each(&labels_field, Field::parse::<LabelTerm>).and_then(|labels| {
            if labels.len() > MAX_LABELS {
                return Err(labels_field.report(format!("expected at most {MAX_LABELS} labels")));
            }
            Ok(labels)
        });
        let created_after = query.field("created_after").parse::<Time>();
        let created_before = query.field("created_before").parse::<Time>();
        let cursor = query.field("cursor").parse();
        let limit = query.field("limit").parse::<Number<1, MAX_LIMIT>>();
        let (image, labels, reference) = (image?, labels?, reference?);
        // The first one is searched by: those that fewer builds have come first.
        let image = image.map(|ImageTerm(term)| term);
        let labels = labels.into_iter().map(|LabelTerm(term)| term);
        let reference = reference.map(|RefTerm(term)| term);
        Ok(Self {
            project: project?,
            states: states?,
            terms: image.into_iter().chain(labels).chain(reference).collect(),
            created_after: created_after?.map(|Time(time)| time),
            created_before: created_before?.map(|Time(time)| time),
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
/// A token sees its own project; one with the scope `admin` sees all. What is listed fits every filter that is given.
/// Pages are cut by a cursor, so that builds which arrive in between neither repeat nor hide others.
#[utoipa::path(
    get, path = "/v1/builds", tag = "builds", operation_id = "listBuilds",
    params(
        ("project" = Option<String>, Query, description = "Only of this project"),
        ("state" = Option<Vec<StateName>>, Query, description = "Only in this state; give it several times for several"),
        ("ref" = Option<String>, Query, description = "Only of this git ref, as the request named it"),
        ("image" = Option<String>, Query, description = "Only for this image; without a tag, for any tag of it"),
        ("label" = Option<Vec<String>>, Query, description = "Only with this label: `key=value`, or `key` for any value. Given several times, with all of them"),
        ("created_after" = Option<DateTime<Utc>>, Query, description = "Only accepted after this time"),
        ("created_before" = Option<DateTime<Utc>>, Query, description = "Only accepted before this time"),
        ("cursor" = Option<String>, Query, description = "The `next` of the page before"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 200, description = "Builds on a page; 50 when absent"),
    ),
    responses(
        (status = 200, description = "A page of builds", body = BuildList, headers(("ETag", description = "For `If-None-Match`"))),
        (status = 304, description = "Unchanged"),
        (status = 400, description = "A parameter is invalid", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such project for this token", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn list(
    State(app): State<App>,
    caller: Caller,
    Query(params): Query<Params>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    caller.require(Scope::BuildsRead)?;
    let project = match params.project {
        Some(project) => {
            caller.require_in(&project, Scope::BuildsRead)?;
            projects::existing(&app, &project).await?;
            Some(project)
        }
        None if caller.is_admin() => None,
        None => Some(caller.project().clone()),
    };
    let filter = Filter {
        project,
        states: params.states,
        terms: params.terms,
        created_after: params.created_after,
        created_before: params.created_before,
    };
    // One more than fits tells whether there is a next page.
    let mut found = listing::list(&app.pool, &filter, params.cursor.map(|Cursor(id)| id), params.limit + 1).await?;
    let page = usize::try_from(params.limit).unwrap_or(usize::MAX);
    let more = found.len() > page;
    found.truncate(page);
    let next = found.last().filter(|_| more).map(|last| Cursor(last.id).encode());
    let list = BuildList {
        items: found.into_iter().map(|build| BuildView::new(build, &app)).collect(),
        next,
    };
    Ok(conditional::json(&headers, &list))
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
