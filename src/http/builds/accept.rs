//! What creating a build and building one again have in common: the caller's key, storing, and the answer.

mod secrets;

use axum::{
    Json,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};

use super::view::BuildView;
use crate::{
    domain::{
        build::Build,
        project::ProjectName,
        spec::{BuildSpec, Source, reader::FieldError, request::BuildRequest},
        state::StateName,
    },
    http::{error::ApiError, state::App},
    store::{
        self,
        builds::{self, CreateOutcome, IdempotencyKey, NewBuild},
        groups::Superseded,
        projects::NewBuilds,
    },
};

const IDEMPOTENCY_KEY: &str = "idempotency-key";
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
const COALESCED: HeaderName = HeaderName::from_static("kiln-coalesced");

/// Stores a build and tells the rest of the installation: 201 with the build, or 200 when there is one that
/// the key was used for, or that is shared.
pub(super) async fn store(app: &App, new: NewBuild, key: Option<IdempotencyKey>) -> Result<Response, ApiError> {
    let project = new.project.clone();
    let again = new.retry.is_some();
    match app.intake.create(new, key).await? {
        CreateOutcome::Created { build, superseded } => {
            tell(app, &build, &superseded);
            Ok(answer(StatusCode::CREATED, build, app))
        }
        CreateOutcome::Coalesced(build) => Ok(marked(answer(StatusCode::OK, build, app), COALESCED)),
        CreateOutcome::Replayed { build, coalesced } => {
            let response = marked(answer(StatusCode::OK, build, app), REPLAYED);
            Ok(if coalesced {
                marked(response, COALESCED)
            } else {
                response
            })
        }
        refused => Err(refusal(&refused, &project, again)),
    }
}

/// Tells the rest of the installation, after a commit, of a new build and of those whose place it takes.
pub(in crate::http) fn tell(app: &App, build: &Build, superseded: &[Superseded]) {
    app.signals.queued();
    app.announce(build.id, build.journal_head);
    for older in superseded {
        app.announce(older.build, older.head);
        if older.state == StateName::Cancelling {
            app.signals.cancel(older.build);
        }
    }
}

/// Why a build wasn't stored. `again` tells whether it was to repeat another.
pub(in crate::http) fn refusal(outcome: &CreateOutcome, project: &ProjectName, again: bool) -> ApiError {
    match outcome {
        // What was stored is no refusal.
        CreateOutcome::Created { .. } | CreateOutcome::Coalesced(_) | CreateOutcome::Replayed { .. } => {
            ApiError::Store(store::Error::Conflict)
        }
        CreateOutcome::KeyReused => ApiError::IdempotencyKeyReused,
        CreateOutcome::InFlight => ApiError::IdempotencyKeyInFlight,
        CreateOutcome::UnknownProject => unknown_project(project),
        CreateOutcome::UnknownUpload => ApiError::InvalidBody(vec![FieldError {
            pointer: "/source/id".to_owned(),
            detail: if again {
                "the upload that the build was made of is gone, because its time was over or because it was deleted: send the archive again to `POST /v1/uploads`, and create a build of the new `id`".to_owned()
            } else {
                format!(
                    "the project `{project}` has no upload with this id, or its time is over: send the archive again to `POST /v1/uploads` and use the new `id`"
                )
            },
        }]),
    }
}

/// What the project says of a new build, if it may have one more that waits.
async fn room(app: &App, project: &ProjectName, key: Option<&IdempotencyKey>) -> Result<NewBuilds, ApiError> {
    let said = app
        .intake
        .project(project.clone(), app.queue.project_limits.queued)
        .await?;
    match said.full_at {
        // A request that was accepted once is answered the same again.
        Some(limit) if !builds::is_used(&app.pool, project, key).await? => Err(ApiError::QueueFull(limit)),
        _ => Ok(said),
    }
}

/// Whether the project may have one more build that waits.
pub(super) async fn has_room(app: &App, project: &ProjectName, key: Option<&IdempotencyKey>) -> Result<(), ApiError> {
    room(app, project, key).await.map(|_| ())
}

/// What a request asks for, with what its project has where the request is silent.
pub(in crate::http) async fn spec(
    app: &App,
    project: &ProjectName,
    request: BuildRequest,
    key: Option<&IdempotencyKey>,
) -> Result<BuildSpec, ApiError> {
    let mut spec = request.spec;
    let said = room(app, project, key).await?;
    if request.projects_cache {
        let cache = said.cache;
        // What the builder can't use it does without: the request didn't ask for it.
        spec.cache = cache.filter(|cache| cache.unsupported(spec.builder).is_none());
    }
    Ok(spec)
}

/// Whether builds of this installation can get such a source.
pub(in crate::http) fn can_be_fetched(source: &Source, app: &App) -> Result<(), ApiError> {
    if source.upload().is_none() || app.uploads.reachable() {
        return Ok(());
    }
    Err(ApiError::InvalidBody(vec![FieldError {
        pointer: "/source/type".to_owned(),
        detail: "builds of this installation can't fetch uploads: its operator has to set `agent_url` (KILN_AGENT_URL), the address at which pods reach Kiln; use a git or archive source meanwhile".to_owned(),
    }]))
}

/// Whether the secrets that a specification names are there and fit. `listed` says how the caller wrote
/// `registry_credentials`, for the places of errors.
pub(in crate::http) async fn check_secrets(
    app: &App,
    project: &ProjectName,
    spec: &BuildSpec,
    listed: bool,
    key: Option<&IdempotencyKey>,
) -> Result<(), ApiError> {
    let unfit = secrets::check(&app.pool, project, spec, listed).await?;
    // A request that was accepted once is answered the same again, whatever became of its secrets.
    if unfit.is_empty() || builds::is_used(&app.pool, project, key).await? {
        Ok(())
    } else {
        Err(ApiError::InvalidBody(unfit))
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

fn marked(mut response: Response, header: HeaderName) -> Response {
    response.headers_mut().insert(header, HeaderValue::from_static("true"));
    response
}

/// A project that isn't there and one that is another's look the same.
pub(super) fn unknown_project(project: &ProjectName) -> ApiError {
    ApiError::InvalidBody(vec![FieldError {
        pointer: "/project".to_owned(),
        detail: format!(
            "there is no project `{project}` for this token: leave it out for the token's own, or see `GET /v1/projects`"
        ),
    }])
}

/// The caller's promise that requests under the same key are the same request.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
