//! `GET /v1/builds/{id}/logs`.

use axum::{
    extract::State,
    http::{HeaderMap, HeaderValue, header},
    response::Response,
};

use crate::{
    domain::{
        event::StepName,
        spec::reader::{Object, Reported},
    },
    http::{
        accept::{self, EVENT_STREAM, NDJSON, TEXT},
        auth::{self, StreamableBuild},
        error::{ApiError, Missing},
        problem::Problem,
        query::{Number, Parameters, Query, Switch},
        state::App,
        stream::{Selection, document, ranged, sse},
    },
    journal::Reader,
};

pub(in crate::http) struct Params {
    step: Option<StepName>,
    from: i64,
    follow: bool,
}

impl Parameters for Params {
    fn read(query: &Object<'_>) -> Result<Self, Reported> {
        let step = query
            .field("step")
            .one_of(&StepName::ALL.map(|step| (step.as_str(), step)));
        let from = query.field("from").parse::<Number<0, { i64::MAX }>>();
        let ticket = auth::ticket(query);
        let follow = query.field("follow").parse::<Switch>();
        ticket?;
        Ok(Self {
            step: step?,
            from: from?.map_or(0, |Number(from)| from),
            follow: follow?.is_some_and(|Switch(follow)| follow),
        })
    }
}

/// Read or follow a build's output.
///
/// By `Accept`: `text/plain` (the default) is the output as it was printed; `application/x-ndjson` is one JSON object a
/// line; `text/event-stream` follows to the end, as `/events` does, with `log`, `gap` and `end` only. The first two end
/// where the output is now, or with `follow=1` when the build is over. Output that was lost shows as a line (or object)
/// that says how much and why. Of the text of a finished build any `Range` of bytes can be had.
#[utoipa::path(
    get, path = "/v1/builds/{id}/logs", tag = "builds", operation_id = "getLogs",
    params(
        ("id" = Uuid, Path, description = "The build"),
        ("step" = Option<StepName>, Query, description = "Only this step's output"),
        ("from" = Option<i64>, Query, minimum = 0, description = "Begin after this sequence number; 0 when absent"),
        ("follow" = Option<bool>, Query, description = "Stay until the build is over"),
        ("ticket" = Option<String>, Query, description = "A stream ticket, for those who can't send a token in a header"),
        ("Last-Event-ID" = Option<i64>, Header, description = "With text/event-stream: as `from`, and wins over it"),
        ("Range" = Option<String>, Header, description = "With text/plain of a finished build: one range of bytes"),
    ),
    responses(
        (status = 200, description = "The output", content(
            (String = "text/plain"), (String = "application/x-ndjson"), (String = "text/event-stream"),
        )),
        (status = 204, description = "text/event-stream: the build is over and all of it was sent before"),
        (status = 206, description = "The range of the text", content_type = "text/plain", body = String),
        (status = 404, description = "No such build for this token", body = Problem, content_type = "application/problem+json"),
        (status = 410, description = "The build was deleted, because it had been kept for long enough", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "The log is in an archive that can't be reached", body = Problem, content_type = "application/problem+json"),
        (status = 406, description = "`Accept` allows none of the forms", body = Problem, content_type = "application/problem+json"),
        (status = 416, description = "The range lies outside of the text", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn logs(
    State(app): State<App>,
    StreamableBuild(build): StreamableBuild,
    Query(params): Query<Params>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let id = build.id;
    let form = accept::choose(&headers, &[TEXT, NDJSON, EVENT_STREAM])?;
    let after = match form {
        EVENT_STREAM => sse::last_event_id(&headers)?.unwrap_or(params.from),
        _ => params.from,
    };
    let opened = Reader::open(&app.history, &app.signals, id, after)
        .await?
        .ok_or(ApiError::NotFound(Missing::Build))?;
    let selection = Selection::Output(params.step);
    let mut response = match form {
        EVENT_STREAM => sse::respond(&app, opened, selection),
        NDJSON => document::respond(&app, opened, document::Form::JsonLines, selection, params.follow),
        _ if opened.progress.state.is_terminal() => ranged::respond(&app, &headers, id, opened, selection).await?,
        _ => document::respond(&app, opened, document::Form::Text, selection, params.follow),
    };
    response
        .headers_mut()
        .insert(header::VARY, HeaderValue::from_static("accept"));
    Ok(response)
}
