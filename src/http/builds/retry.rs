//! `POST /v1/builds/{id}/retry`.

use axum::{extract::State, http::HeaderMap, response::Response};
use sha2::{Digest as _, Sha256};

use super::{accept, view::BuildView};
use crate::{
    domain::{id::BuildId, project::Scope},
    http::{auth::Caller, body::NoBody, error::ApiError, path::BuildPath, problem::Problem, state::App, trace},
    store::builds::{IdempotencyKey, NewBuild, Retry},
};

/// Build the same again.
///
/// Makes a new build with the specification of one that is over, whatever its end was. Where the old build got as far
/// as knowing its commit, the new one builds that same commit, even if its ref has moved on since; to build what the
/// ref means now, create a build. The two name each other in `retry_of` and `retried_by`; a build can be retried more
/// than once, and then names the latest. The request takes no fields: a body is refused unless it is empty or `{}`.
#[utoipa::path(
    post, path = "/v1/builds/{id}/retry", tag = "builds", operation_id = "retryBuild",
    params(
        ("id" = Uuid, Path, description = "The build to repeat"),
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters that stand for this request within the project"),
    ),
    responses(
        (status = 201, description = "The new build, queued", body = BuildView, headers(("Location", description = "The new build"))),
        (status = 200, description = "The key was used for the same request before: that build, with `Idempotency-Replayed: true`", body = BuildView),
        (status = 404, description = "No such build for this token", body = Problem, content_type = "application/problem+json"),
        (status = 410, description = "The build was deleted, because it had been kept for long enough", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The build is not over, or a request with the same key is being carried out", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "As many builds of the project wait as it may have", body = Problem, content_type = "application/problem+json", headers(("Retry-After", description = "Seconds after which it may be worth trying again"))),
        (status = 422, description = "What the build needs is no longer there (a secret, an upload; `pointer` is its place in `spec`), the body has fields, or the key was used for another request", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn retry(
    State(app): State<App>,
    caller: Caller,
    BuildPath(id): BuildPath,
    headers: HeaderMap,
    NoBody: NoBody,
) -> Result<Response, ApiError> {
    let old = caller.build(&app, id).await?;
    caller.require(Scope::BuildsWrite)?;
    let key = accept::idempotency_key(&headers)?.map(|key| IdempotencyKey {
        key,
        body_hash: fingerprint(id),
    });
    if !old.state.name().is_terminal() {
        return Err(ApiError::BuildNotFinished(old.state.name()));
    }
    accept::can_be_fetched(&old.spec.source, &app)?;
    accept::has_room(&app, &old.project, key.as_ref()).await?;
    accept::check_secrets(&app, &old.project, &old.spec, true, key.as_ref()).await?;
    let now = app.clock.now();
    let new = NewBuild {
        id: BuildId::at(now),
        project: old.project,
        spec: old.spec,
        queue: app.queue,
        created_at: now,
        retry: Some(Retry {
            of: id,
            commit: old.commit,
        }),
        coalesce: false,
        trace: trace::parent(),
        origin: old.origin,
    };
    accept::store(&app, new, key).await
}

/// What makes two requests the same: the build that is to be repeated. No body of `POST /v1/builds` gives this hash.
fn fingerprint(id: BuildId) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update("retry");
    hash.update([0]);
    hash.update(id.0);
    hash.finalize().into()
}
