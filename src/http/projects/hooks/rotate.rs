//! `POST /v1/projects/{project}/hooks/{hook}/rotate`.

use axum::{Json, extract::State, http::StatusCode};
use serde::Serialize;
use utoipa::ToSchema;

use super::{HookView, HookWithSecret};
use crate::{
    domain::spec::reader::{Errors, Object},
    http::{auth::ManagedProject, body::JsonBody, error::ApiError, path::HookPath, problem::Problem, state::App},
    store::{self, hooks::secrets},
};

/// How long the old secret stays good unless the request says otherwise, in seconds.
const KEEP: u32 = 24 * 3600;
/// The longest that it can stay good, in seconds.
const MAX_KEEP: u32 = 30 * 24 * 3600;

/// How to change a hook's secret.
#[derive(Serialize, ToSchema)]
struct RotateHookSecret {
    /// Seconds that the old secret stays good, at most 30 days; a day when absent, 0 ends it at once.
    keep_old_seconds: Option<u32>,
}

/// Give a hook another secret. Needs the scope `project:admin`.
///
/// The old one stays good for a while, so that there is time to enter the new one at the forge. One that is older than
/// that ends at once: at most two are good.
#[utoipa::path(
    post, path = "/v1/projects/{project}/hooks/{hook}/rotate", tag = "hooks", operation_id = "rotateHookSecret",
    params(
        ("project" = String, Path, description = "The project"),
        ("hook" = Uuid, Path, description = "The hook's id"),
    ),
    request_body = RotateHookSecret,
    responses(
        (status = 201, description = "The hook, with its new secret", body = HookWithSecret),
        (status = 404, description = "No such hook", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "Somebody else changed the secret at the same moment", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Fields are invalid", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn rotate(
    State(app): State<App>,
    ManagedProject(project): ManagedProject,
    HookPath(id): HookPath,
    JsonBody(document): JsonBody,
) -> Result<(StatusCode, Json<HookWithSecret>), ApiError> {
    let errors = Errors::default();
    let keep = Object::document(&document, &errors).and_then(|root| {
        let keep = root.field("keep_old_seconds").integer(0, MAX_KEEP.into());
        root.finish();
        keep
    });
    let keep = errors.finish(keep).map_err(ApiError::InvalidBody)?;
    // The range was checked.
    let keep = keep.map_or(KEEP, |keep| u32::try_from(keep).unwrap_or(KEEP));
    let hook = super::existing(&app, &project, id).await?;
    let newest = hook.secrets.first().map_or(0, |shared| shared.place.number);
    let (secret, sealed) = super::new_secret(&app, id, newest + 1)?;
    if !secrets::rotate(&app.pool, id, newest, &sealed, keep).await? {
        return Err(ApiError::Store(store::Error::Conflict));
    }
    tracing::info!(project = %project, hook.id = %id, "a hook's secret was changed");
    let hook = super::existing(&app, &project, id).await?;
    let rotated = HookWithSecret {
        hook: HookView::new(&app, hook),
        secret: secret.expose().to_owned(),
    };
    Ok((StatusCode::CREATED, Json(rotated)))
}
