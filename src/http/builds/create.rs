//! `POST /v1/builds`.

mod schema;

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use self::schema::CreateBuild;
use super::view::BuildView;
use crate::{
    domain::{
        build::Build,
        id::BuildId,
        project::{ProjectName, Scope},
        spec::{reader::FieldError, request::BuildRequest},
    },
    http::{auth::Caller, body::JsonBody, error::ApiError, problem::Problem, state::App},
    store::builds::{self, CreateOutcome, IdempotencyKey, NewBuild},
};

const IDEMPOTENCY_KEY: &str = "idempotency-key";
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

/// Ask for a build.
///
/// Only `source` and `images` (or `"push": false`) are required. Every mistake is reported at once. With an
/// `Idempotency-Key` the call can be repeated safely: the same key with the same body gives the same build.
#[utoipa::path(
    post, path = "/v1/builds", tag = "builds", operation_id = "createBuild",
    request_body = CreateBuild,
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters that stand for this request within the project")),
    responses(
        (status = 201, description = "Accepted and queued", body = BuildView, headers(("Location", description = "The build"))),
        (status = 200, description = "The key was used for the same request before: that build, with `Idempotency-Replayed: true`", body = BuildView),
        (status = 409, description = "A request with the same key is being carried out", body = Problem, content_type = "application/problem+json"),
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
    let key = idempotency_key(&headers)?;
    let BuildRequest { project, spec } = BuildRequest::read(&document, &app.limits).map_err(ApiError::InvalidBody)?;
    let project = project.unwrap_or_else(|| caller.project().clone());
    if !caller.sees(&project) {
        return Err(unknown_project(&project));
    }
    let key = key.map(|key| IdempotencyKey {
        key,
        body_hash: fingerprint(&project, &document),
    });
    let new = NewBuild {
        id: BuildId::new(),
        project: project.clone(),
        spec,
        created_at: app.clock.now(),
    };
    match builds::create(&app.pool, new, key).await? {
        CreateOutcome::Created(build) => {
            app.signals.queued();
            app.announce(build.id, build.journal_head);
            Ok(answer(StatusCode::CREATED, build, &app))
        }
        CreateOutcome::Replayed(build) => {
            let mut response = answer(StatusCode::OK, build, &app);
            response
                .headers_mut()
                .insert(REPLAYED, HeaderValue::from_static("true"));
            Ok(response)
        }
        CreateOutcome::KeyReused => Err(ApiError::IdempotencyKeyReused),
        CreateOutcome::InFlight => Err(ApiError::IdempotencyKeyInFlight),
        CreateOutcome::UnknownProject => Err(unknown_project(&project)),
    }
}

fn answer(status: StatusCode, build: Build, app: &App) -> Response {
    let view = BuildView::new(build, app);
    let location = HeaderValue::from_str(view.location());
    let mut response = (status, Json(view)).into_response();
    // A URL is ASCII.
    if let Ok(location) = location {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// A project that isn't there and one that is another's look the same.
fn unknown_project(project: &ProjectName) -> ApiError {
    ApiError::InvalidBody(vec![FieldError {
        pointer: "/project".to_owned(),
        detail: format!(
            "there is no project `{project}` for this token: leave it out for the token's own, or see `GET /v1/projects`"
        ),
    }])
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let invalid = ApiError::InvalidHeader {
        name: "Idempotency-Key",
        detail: "expected 1 to 255 visible ASCII characters, once",
    };
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => match value.to_str() {
            Ok(key) if (1..=255).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic()) => {
                Ok(Some(key.to_owned()))
            }
            _ => Err(invalid),
        },
        (Some(_), Some(_)) => Err(invalid),
    }
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

    #[test]
    fn keys_are_short_and_plain() {
        let read = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(
                    IDEMPOTENCY_KEY,
                    HeaderValue::from_bytes(value.as_bytes()).expect("a header value"),
                );
            }
            idempotency_key(&headers).map_err(|error| error.to_string())
        };
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&["abc-1"]), Ok(Some("abc-1".to_owned())));
        for bad in [&[""][..], &["a b"], &["é"], &["a", "a"], &["x".repeat(256).as_str()]] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }
}
