//! `POST /v1/projects/{project}/hooks`.

use axum::{Json, extract::State, http::StatusCode};
use uuid::Uuid;

use super::{HookRequest, HookView, HookWithSecret};
use crate::{
    domain::hook::HookId,
    http::{
        auth::ManagedProject,
        body::JsonBody,
        error::{ApiError, Missing},
        problem::Problem,
        state::App,
    },
    store::hooks::{self, CreateOutcome, secrets::FIRST},
};

/// Make a hook. Needs the scope `project:admin`.
///
/// The answer has the address and the secret to enter at the forge; the secret is shown this once. The requests for
/// builds are tried out, so that what is wrong with them is told now.
#[utoipa::path(
    post, path = "/v1/projects/{project}/hooks", tag = "hooks", operation_id = "createHook",
    params(("project" = String, Path, description = "The project")),
    request_body = HookRequest,
    responses(
        (status = 201, description = "The hook, with its secret", body = HookWithSecret),
        (status = 404, description = "No such project for this token", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The project has as many hooks as it may have", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Fields are invalid", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "This installation has no key to encrypt secrets with", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn create(
    State(app): State<App>,
    ManagedProject(project): ManagedProject,
    JsonBody(document): JsonBody,
) -> Result<(StatusCode, Json<HookWithSecret>), ApiError> {
    let definition = super::definition(&app, &project, &document).await?;
    // Part of an address that others can send to, so not to be guessed.
    let id = HookId(Uuid::new_v4());
    let (secret, sealed) = super::new_secret(&app, id, FIRST)?;
    match hooks::create(&app.pool, id, &project, &definition, &sealed).await? {
        CreateOutcome::Created(hook) => {
            tracing::info!(project = %project, hook.id = %id, "a hook was made");
            let made = HookWithSecret {
                hook: HookView::new(&app, *hook),
                secret: secret.expose().to_owned(),
            };
            Ok((StatusCode::CREATED, Json(made)))
        }
        CreateOutcome::UnknownProject => Err(ApiError::NotFound(Missing::Project)),
        CreateOutcome::Full(limit) => Err(ApiError::HooksFull(limit)),
    }
}
