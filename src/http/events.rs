//! `GET /v1/events`.

use axum::{extract::State, http::HeaderMap, response::Response};

use super::{
    accept::{self, EVENT_STREAM},
    auth::{self, StreamCaller},
    error::{ApiError, Missing},
    problem::Problem,
    projects,
    query::{Number, Parameters, Query, each},
    state::App,
    stream::sse,
};
use crate::{
    domain::{
        project::{ProjectName, Scope},
        spec::reader::{Object, Reported},
        state::StateName,
    },
    journal::ChangeReader,
    store::tickets::Streams,
};

pub(super) struct Params {
    project: Option<ProjectName>,
    states: Vec<StateName>,
    from: Option<i64>,
}

impl Parameters for Params {
    const REPEATABLE: &'static [&'static str] = &["state"];

    fn read(query: &Object<'_>) -> Result<Self, Reported> {
        let project = query.field("project").parse();
        let states = each(&query.field("state"), |state| {
            state.one_of(&StateName::ALL.map(|state| (state.as_str(), state)))
        });
        let from = query.field("from").parse::<Number<0, { i64::MAX }>>();
        auth::ticket(query)?;
        Ok(Self {
            project: project?,
            states: states?,
            from: from?.map(|Number(from)| from),
        })
    }
}

/// Follow the states of all builds of a project, as server-sent events.
///
/// Every state that a build enters is one event of the kind `status`. A stream begins with what happens from now on,
/// or after the event that `Last-Event-ID` or `from` names (`from=0`: with the first that is kept), on any replica. A
/// build's events come in their order; the stream has no end.
#[utoipa::path(
    get, path = "/v1/events", tag = "builds", operation_id = "streamChanges",
    params(
        ("project" = Option<String>, Query, description = "Only of this project; when absent the token's own, or with the scope `admin` all"),
        ("state" = Option<Vec<StateName>>, Query, description = "Only about this state; give it several times for several"),
        ("from" = Option<i64>, Query, minimum = 0, description = "Begin after this event"),
        ("ticket" = Option<String>, Query, description = "A stream ticket, for those who can't send a token in a header"),
        ("Last-Event-ID" = Option<i64>, Header, description = "As `from`, and wins over it"),
    ),
    responses(
        (status = 200, description = "The events; `data` is a BuildChange", content_type = "text/event-stream", body = String),
        (status = 404, description = "No such project for this token", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn events(
    State(app): State<App>,
    StreamCaller { caller, ticket }: StreamCaller,
    Query(params): Query<Params>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    caller.require(Scope::BuildsRead)?;
    accept::choose(&headers, &[EVENT_STREAM])?;
    let project = match (ticket, params.project) {
        // What the ticket was made for, whether it is said again or not.
        (Some(Streams::Project(own)), None) => Some(own),
        (Some(Streams::Project(own)), Some(asked)) if own == asked => Some(own),
        (Some(Streams::Project(_) | Streams::Build(_)), _) => return Err(ApiError::NotFound(Missing::Project)),
        (None | Some(Streams::Everything), Some(project)) => {
            caller.require_in(&project, Scope::BuildsRead)?;
            Some(project)
        }
        (None | Some(Streams::Everything), None) if caller.is_admin() => None,
        (None | Some(Streams::Everything), None) => Some(caller.project().clone()),
    };
    if let Some(project) = &project {
        projects::existing(&app, project).await?;
    }
    let after = sse::last_event_id(&headers)?.or(params.from);
    let reader = ChangeReader::open(&app.pool, &app.signals, project, after).await?;
    Ok(sse::respond_changes(&app, reader, params.states))
}
