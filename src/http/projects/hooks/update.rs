//! `PATCH /v1/projects/{project}/hooks/{hook}`.

use axum::{Json, extract::State};
use serde_json::{Map, Value, json};

use super::{HookRequest, HookView};
use crate::{
    domain::spec::reader::FieldError,
    http::{auth::ManagedProject, body::JsonBody, error::ApiError, path::HookPath, problem::Problem, state::App},
    store::{
        self,
        hooks::{self, Hook},
    },
};

/// Change a hook. Needs the scope `project:admin`.
///
/// Fields that are left out stay; one that is null is as by default. The whole is checked as when a hook is made.
#[utoipa::path(
    patch, path = "/v1/projects/{project}/hooks/{hook}", tag = "hooks", operation_id = "updateHook",
    params(
        ("project" = String, Path, description = "The project"),
        ("hook" = Uuid, Path, description = "The hook's id"),
    ),
    request_body = HookRequest,
    responses(
        (status = 200, description = "The hook as it is now", body = HookView),
        (status = 404, description = "No such hook", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "Somebody else changed the hook at the same moment", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "Fields are invalid", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn update(
    State(app): State<App>,
    ManagedProject(project): ManagedProject,
    HookPath(id): HookPath,
    JsonBody(document): JsonBody,
) -> Result<Json<HookView>, ApiError> {
    let hook = super::existing(&app, &project, id).await?;
    let Value::Object(changes) = document else {
        return Err(invalid("", "expected an object with the fields to change"));
    };
    if changes
        .get("forge")
        .is_some_and(|forge| *forge != json!(hook.definition.forge))
    {
        return Err(invalid(
            "/forge",
            "the sender of a hook can't be changed: make another hook",
        ));
    }
    let definition = super::definition(&app, &project, &merged(&hook, changes)).await?;
    if !hooks::update(&app.pool, &hook, &definition).await? {
        return Err(ApiError::Store(store::Error::Conflict));
    }
    tracing::info!(project = %project, hook.id = %id, "a hook was changed");
    let hook = super::existing(&app, &project, id).await?;
    Ok(Json(HookView::new(&app, hook)))
}

fn invalid(pointer: &str, detail: &str) -> ApiError {
    ApiError::InvalidBody(vec![FieldError {
        pointer: pointer.to_owned(),
        detail: detail.to_owned(),
    }])
}

/// The hook as it would be, as a document.
fn merged(hook: &Hook, changes: Map<String, Value>) -> Value {
    // Unwrap: strings, lists and maps with string keys serialise.
    let mut document = serde_json::to_value(&hook.definition.rules).unwrap_or_default();
    document["name"] = json!(hook.definition.name);
    document["forge"] = json!(hook.definition.forge);
    for (name, value) in changes {
        document[name] = value;
    }
    document
}
