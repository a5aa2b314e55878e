//! `GET /v1/builds/{id}`.

use std::time::Duration;

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};

use super::view::BuildView;
use crate::{
    domain::{
        build::Build,
        id::BuildId,
        project::Scope,
        spec::reader::{Object, Reported},
    },
    http::{
        auth::Caller,
        error::ApiError,
        path::BuildPath,
        problem::Problem,
        query::{Number, Parameters, Query},
        state::App,
    },
    store,
};

/// Longest wait, in seconds.
const MAX_WAIT: i64 = 60;

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
/// an earlier answer in `If-None-Match` the answer is 304 when nothing has changed since.
#[utoipa::path(
    get, path = "/v1/builds/{id}", tag = "builds", operation_id = "getBuild",
    params(
        ("id" = Uuid, Path, description = "The build"),
        ("wait" = Option<u32>, Query, minimum = 0, maximum = 60, description = "Wait up to this many seconds for the build to end"),
        ("If-None-Match" = Option<String>, Header, description = "The `ETag` of an earlier answer"),
    ),
    responses(
        (status = 200, description = "The build", body = BuildView, headers(("ETag", description = "Changes with every change of the build"))),
        (status = 304, description = "Unchanged"),
        (status = 404, description = "No such build for this token", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn get(
    State(app): State<App>,
    caller: Caller,
    BuildPath(id): BuildPath,
    Query(params): Query<Params>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    caller.require(Scope::BuildsRead)?;
    let mut build = caller.own(store::builds::get(&app.pool, id).await?)?;
    if let Some(wait) = params.wait
        && !build.state.name().is_terminal()
    {
        wait_for_end(&app, id, wait).await?;
        build = caller.own(store::builds::get(&app.pool, id).await?)?;
    }
    let etag = etag(&build);
    let unchanged = headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| matches(value, &etag));
    let mut response = if unchanged {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        Json(BuildView::new(build, &app)).into_response()
    };
    // Digits and quotes.
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        response.headers_mut().insert(header::ETAG, etag);
    }
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    Ok(response)
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

fn etag(build: &Build) -> String {
    format!("\"{}\"", build.journal_head)
}

/// Whether a list of tags holds this one, by the weak comparison (RFC 9110, section 13.1.2).
fn matches(list: &str, etag: &str) -> bool {
    list.split(',')
        .map(str::trim)
        .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_compared_weakly() {
        assert!(matches("\"7\"", "\"7\""));
        assert!(matches("\"1\", W/\"7\"", "\"7\""));
        assert!(matches("*", "\"7\""));
        assert!(!matches("\"77\", 7", "\"7\""));
    }
}
