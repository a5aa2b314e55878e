//! `POST /v1/projects/{project}/hooks/{hook}/deliveries/{delivery}/redeliver`.

use axum::{Json, extract::State, http::StatusCode};

use super::DeliveryView;
use crate::{
    http::{
        auth::ManagedProject,
        body::NoBody,
        error::{ApiError, Missing},
        hooks::carry_out::{carry_out, delivery},
        path::{DeliveryPath, HookPath},
        problem::Problem,
        projects::hooks::existing,
        state::App,
    },
    store::hooks::deliveries,
};

/// Decide about a delivery once more, by the hook's rules as they are now. Needs the scope `project:admin`.
///
/// What was built of it stays built: then the answer has the same builds. To build the same again, retry the build.
#[utoipa::path(
    post, path = "/v1/projects/{project}/hooks/{hook}/deliveries/{delivery}/redeliver", tag = "hooks", operation_id = "redeliver",
    params(
        ("project" = String, Path, description = "The project"),
        ("hook" = Uuid, Path, description = "The hook's id"),
        ("delivery" = Uuid, Path, description = "The delivery's id"),
    ),
    responses(
        (status = 201, description = "Builds were made", body = DeliveryView),
        (status = 200, description = "Nothing new was built", body = DeliveryView),
        (status = 404, description = "No such delivery", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It was refused, or says nothing that could be built", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "The hook's request can't be built any more", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn redeliver(
    State(app): State<App>,
    ManagedProject(project): ManagedProject,
    HookPath(id): HookPath,
    DeliveryPath(earlier): DeliveryPath,
    NoBody: NoBody,
) -> Result<(StatusCode, Json<DeliveryView>), ApiError> {
    let hook = existing(&app, &project, id).await?;
    let earlier = deliveries::get(&app.pool, hook.id, earlier)
        .await?
        .ok_or(ApiError::NotFound(Missing::Delivery))?;
    if earlier.events.is_empty() {
        return Err(ApiError::DeliveryUnread);
    }
    let again = delivery(&app, &hook, earlier.sent_id, earlier.events, Some(earlier.id));
    let (status, stored) = carry_out(&app, &hook, again).await?;
    Ok((status, Json(DeliveryView::new(&app, stored))))
}
