//! `POST /v1/builds/{id}/cancel`.

use axum::{Json, extract::State, http::StatusCode};

use super::view::BuildView;
use crate::{
    domain::{project::Scope, state::StateName},
    http::{
        auth::Caller,
        body::NoBody,
        error::{ApiError, Missing},
        path::BuildPath,
        problem::Problem,
        state::App,
    },
    store::builds::{self, CancelOutcome},
};

/// Stop a build.
///
/// One that is queued is cancelled at once. One that runs is told to stop and is `cancelling` until it has. Asking
/// again changes nothing. The request takes no fields: a body is refused unless it is empty or `{}`.
#[utoipa::path(
    post, path = "/v1/builds/{id}/cancel", tag = "builds", operation_id = "cancelBuild",
    params(("id" = Uuid, Path, description = "The build")),
    responses(
        (status = 202, description = "The build, cancelled or about to be", body = BuildView),
        (status = 404, description = "No such build for this token", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "The body has fields", body = Problem, content_type = "application/problem+json"),
        (status = 410, description = "The build was deleted, because it had been kept for long enough", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The build is over", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn cancel(
    State(app): State<App>,
    caller: Caller,
    BuildPath(id): BuildPath,
    NoBody: NoBody,
) -> Result<(StatusCode, Json<BuildView>), ApiError> {
    let before = caller.build(&app, id).await?;
    caller.require(Scope::BuildsWrite)?;
    // Asking a second time, after it is done, isn't a mistake.
    let build = if before.state.name() == StateName::Cancelled {
        before
    } else {
        match builds::cancel(&app.pool, id, app.clock.now()).await? {
            CancelOutcome::Accepted { build, changed } => {
                if changed {
                    app.announce(id, build.journal_head);
                }
                if build.state.name() == StateName::Cancelling {
                    app.signals.cancel(id);
                }
                build
            }
            CancelOutcome::Refused(refused) => return Err(refused.into()),
            CancelOutcome::NotFound => return Err(ApiError::NotFound(Missing::Build)),
        }
    };
    Ok((StatusCode::ACCEPTED, Json(BuildView::new(build, &app))))
}
