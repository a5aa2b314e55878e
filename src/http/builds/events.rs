//! `GET /v1/builds/{id}/events`.

use axum::{extract::State, http::HeaderMap, response::Response};

use crate::{
    domain::spec::reader::{Object, Reported},
    http::{
        accept::{self, EVENT_STREAM},
        auth::{self, StreamableBuild},
        error::{ApiError, Missing},
        problem::Problem,
        query::{Number, Parameters, Query},
        state::App,
        stream::{Selection, sse},
    },
    journal::Reader,
};

pub(in crate::http) struct Params {
    from: i64,
}

impl Parameters for Params {
    fn read(query: &Object<'_>) -> Result<Self, Reported> {
        let from = query.field("from").parse::<Number<0, { i64::MAX }>>()?;
        auth::ticket(query)?;
        Ok(Self {
            from: from.map_or(0, |Number(from)| from),
        })
    }
}

/// Follow everything that happens to a build, as server-sent events.
///
/// `id` is the sequence number, `event` the kind (`status`, `step`, `log`, `gap`, `end`), `data` one JSON object whose
/// first field is `seq`. `end` comes once, last. A stream can be resumed after any event, on any replica, by
/// `Last-Event-ID` or `from`; once there is nothing left to send, the answer is 204 and the client is to stop asking.
#[utoipa::path(
    get, path = "/v1/builds/{id}/events", tag = "builds", operation_id = "streamEvents",
    params(
        ("id" = Uuid, Path, description = "The build"),
        ("from" = Option<i64>, Query, minimum = 0, description = "Begin after this sequence number; 0 when absent"),
        ("ticket" = Option<String>, Query, description = "A stream ticket, for those who can't send a token in a header"),
        ("Last-Event-ID" = Option<i64>, Header, description = "As `from`, and wins over it"),
    ),
    responses(
        (status = 200, description = "The events", content_type = "text/event-stream", body = String),
        (status = 204, description = "The build is over and all its events were sent before"),
        (status = 404, description = "No such build for this token", body = Problem, content_type = "application/problem+json"),
        (status = 410, description = "The build was deleted, because it had been kept for long enough", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The log is in an archive that can't be reached", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn events(
    State(app): State<App>,
    StreamableBuild(build): StreamableBuild,
    Query(params): Query<Params>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    accept::choose(&headers, &[EVENT_STREAM])?;
    let after = sse::last_event_id(&headers)?.unwrap_or(params.from);
    let opened = Reader::open(&app.history, &app.signals, build.id, after)
        .await?
        .ok_or(ApiError::NotFound(Missing::Build))?;
    Ok(sse::respond(&app, opened, Selection::Everything))
}
