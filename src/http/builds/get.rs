//! `GET /v1/builds/{id}`.

use std::time::Duration;

use axum::{
    extract::State,
    http::{HeaderMap, header},
    response::Response,
};
use tokio::time::Instant;

use super::view::BuildView;
use crate::{
    domain::{
        build::Build,
        id::BuildId,
        spec::reader::{Object, Reported},
    },
    http::{
        auth::ReadableBuild,
        conditional::Tagged,
        error::{ApiError, Missing},
        problem::Problem,
        query::{Number, Parameters, Query},
        state::App,
    },
    journal::Subscription,
    store,
};

/// Longest wait, in seconds.
const MAX_WAIT: i64 = 60;
/// Time between two looks at a build that has news.
const BETWEEN_LOOKS: Duration = Duration::from_millis(200);

pub(in crate::http) struct Params {
    wait: Option<Duration>,
}

impl Parameters for Params {
    fn read(query: &Object<'_>) -> Result<Self, Reported> {
        let wait = query.field("wait").parse::<Number<0, MAX_WAIT>>()?;
        Ok(Self {
            wait: wait
                .and_then(|Number(seconds)| u64::try_from(seconds).ok())
                .map(Duration::from_secs),
        })
    }
}

/// Look at a build.
///
/// With `wait` the answer comes when the build is over, or when the time is up, whichever is first. With the `ETag` of
/// an earlier answer in `If-None-Match` the answer is 304 when nothing has changed since; with both, the answer comes as
/// soon as something has.
#[utoipa::path(
    get, path = "/v1/builds/{id}", tag = "builds", operation_id = "getBuild",
    params(
        ("id" = Uuid, Path, description = "The build"),
        ("wait" = Option<u32>, Query, minimum = 0, maximum = 60, description = "Wait up to this many seconds for the build to end, or with `If-None-Match` to change"),
        ("If-None-Match" = Option<String>, Header, description = "The `ETag` of an earlier answer"),
    ),
    responses(
        (status = 200, description = "The build", body = BuildView, headers(("ETag", description = "Changes with what is shown of the build"))),
        (status = 304, description = "Unchanged"),
        (status = 404, description = "No such build for this token", body = Problem, content_type = "application/problem+json"),
        (status = 410, description = "The build was deleted, because it had been kept for long enough", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn get(
    State(app): State<App>,
    ReadableBuild(build): ReadableBuild,
    Query(params): Query<Params>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let id = build.id;
    let mut over = build.state.name().is_terminal();
    let mut answer = Tagged::json(&BuildView::new(build, &app));
    let Some(wait) = params.wait.filter(|_| !over) else {
        return Ok(answer.respond(&headers));
    };
    let until = Instant::now() + wait;
    if headers.contains_key(header::IF_NONE_MATCH) {
        let mut news = app.signals.heads().subscribe(id);
        while !over && answer.is_known(&headers) && pause(&app, &mut news, until).await {
            let build = read(&app, id).await?;
            over = build.state.name().is_terminal();
            answer = Tagged::json(&BuildView::new(build, &app));
        }
    } else {
        wait_for_end(&app, id, wait).await?;
        answer = Tagged::json(&BuildView::new(read(&app, id).await?, &app));
    }
    Ok(answer.respond(&headers))
}

async fn read(app: &App, id: BuildId) -> Result<Build, ApiError> {
    store::builds::get(&app.pool, id)
        .await?
        .ok_or(ApiError::NotFound(Missing::Build))
}

/// Waits for news of the build, or until it is time to look without any. False when the time is up or the server
/// stops. Output is news, too, so a build that prints much is looked at now and then only.
async fn pause(app: &App, news: &mut Subscription, until: Instant) -> bool {
    let news = async {
        tokio::time::sleep(BETWEEN_LOOKS).await;
        let _ = tokio::time::timeout(app.signals.poll_interval(), news.changed()).await;
    };
    tokio::select! {
        () = news => true,
        () = tokio::time::sleep_until(until) => false,
        () = app.stopping.cancelled() => false,
    }
}

/// Returns when the build is over, the time is up or the server stops.
async fn wait_for_end(app: &App, id: BuildId, wait: Duration) -> Result<(), ApiError> {
    let ended = async {
        let mut news = app.signals.heads().subscribe(id);
        while let Some(progress) = store::builds::progress(&app.pool, id).await? {
            if progress.state.is_terminal() {
                break;
            }
            // Whether it is news or time to look again makes no difference here.
            let _ = tokio::time::timeout(app.signals.poll_interval(), news.changed()).await;
        }
        Ok(())
    };
    tokio::select! {
        ended = ended => ended,
        () = tokio::time::sleep(wait) => Ok(()),
        () = app.stopping.cancelled() => Ok(()),
    }
}
