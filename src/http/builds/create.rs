//! `POST /v1/builds`.

mod schema;

use axum::{extract::State, http::HeaderMap, response::Response};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use self::schema::CreateBuild;
use super::{accept, view::BuildView};
use crate::{
    domain::{
        id::BuildId,
        project::{ProjectName, Scope},
        spec::request::BuildRequest,
    },
    http::{auth::Caller, body::JsonBody, error::ApiError, problem::Problem, state::App, trace},
    store::builds::{IdempotencyKey, NewBuild},
};

/// Ask for a build.
///
/// Only `source` and `images` (or `"push": false`) are required. Every mistake is reported at once. With an
/// `Idempotency-Key` the call can be repeated safely: the same key with the same body gives the same build. With
/// `coalesce`, identical requests of several callers share one build while it is in flight.
#[utoipa::path(
    post, path = "/v1/builds", tag = "builds", operation_id = "createBuild",
    request_body = CreateBuild,
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters that stand for this request within the project")),
    responses(
        (status = 201, description = "Accepted and queued", body = BuildView, headers(("Location", description = "The build"))),
        (status = 200, description = "The key was used for the same request before: that build, with `Idempotency-Replayed: true`; or, with `coalesce`, the build of an identical request in flight, with `Kiln-Coalesced: true`", body = BuildView),
        (status = 409, description = "A request with the same key is being carried out", body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "As many builds of the project wait as it may have", body = Problem, content_type = "application/problem+json", headers(("Retry-After", description = "Seconds after which it may be worth trying again"))),
        (status = 422, description = "Fields are invalid, or the key was used for another request", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn create(
    State(app): State<App>,
    caller: Caller,
    headers: HeaderMap,
    JsonBody(document): JsonBody,
) -> Result<Response, ApiError> {
    caller.require(Scope::BuildsWrite)?;
    let key = accept::idempotency_key(&headers)?;
    let request = BuildRequest::read(&document, &app.limits).map_err(ApiError::InvalidBody)?;
    accept::can_be_fetched(&request.spec.source, &app)?;
    let coalesce = request.coalesce;
    let project = request.project.clone().unwrap_or_else(|| caller.project().clone());
    if !caller.sees(&project) {
        return Err(accept::unknown_project(&project));
    }
    let key = key.map(|key| IdempotencyKey {
        key,
        body_hash: fingerprint(&project, &document),
    });
    let spec = accept::spec(&app, &project, request, key.as_ref()).await?;
    let listed = document["registry_credentials"].is_array();
    accept::check_secrets(&app, &project, &spec, listed, key.as_ref()).await?;
    let now = app.clock.now();
    let new = NewBuild {
        id: BuildId::at(now),
        project: project.clone(),
        spec,
        queue: app.queue,
        created_at: now,
        retry: None,
        coalesce,
        trace: trace::parent(),
        origin: None,
    };
    accept::store(&app, new, key).await
}

/// What makes two requests the same: the project and the JSON value of the body, however it was written. The defaults
/// aren't part of it, so that changing them between a request and its repetition doesn't turn it into another.
fn fingerprint(project: &ProjectName, document: &Value) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(project.as_str());
    hash.update([0]);
    // serde_json keeps the keys of objects in order.
    hash.update(document.to_string());
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_fingerprint_depends_on_the_value_and_the_project() {
        let project = |name: &str| name.parse::<ProjectName>().expect("a name");
        let parse = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
        let one = fingerprint(&project("a"), &parse(r#"{"x": 1, "y": {"b": 1, "a": 2}}"#));
        assert_eq!(one, fingerprint(&project("a"), &parse(r#"{"y":{"a":2,"b":1},"x":1}"#)));
        assert_ne!(
            one,
            fingerprint(&project("b"), &parse(r#"{"x": 1, "y": {"b": 1, "a": 2}}"#))
        );
        assert_ne!(one, fingerprint(&project("a"), &json!({"x": 1})));
    }
}
