//! `POST /v1/uploads`.

use std::io;

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use kiln_agent::archive;
use tokio::io::AsyncSeekExt as _;

use super::{UploadView, digest, spool};
use crate::{
    domain::{
        id::UploadId,
        project::{ProjectName, Scope},
        spec::{
            Sha256Hex,
            reader::{FieldError, Object, Reported},
        },
    },
    http::{
        auth::Caller,
        error::ApiError,
        problem::Problem,
        query::{Parameters, Query},
        state::App,
    },
    store::uploads::{self, NewUpload, StoreError, StoreOutcome},
};

/// Send an archive to be built from.
///
/// The body is the archive itself: tar, plain or compressed by gzip; its `Content-Type` doesn't matter. Files, folders
/// and symbolic links that stay inside are accepted; absolute paths, `..`, hard links, devices and links that lead out
/// are refused. The answer's `id` goes into a build's `{"source": {"type": "upload", "id": "…"}}`, any number of times
/// until it expires.
#[utoipa::path(
    post, path = "/v1/uploads", tag = "uploads", operation_id = "createUpload",
    request_body(content = Vec<u8>, content_type = "application/x-tar", description = "tar or tar.gz"),
    params(
        ("project" = Option<String>, Query, description = "Who is to own it; the token's own project when absent"),
        ("sha256" = Option<String>, Query, description = "What the archive's SHA-256 must be, in hexadecimal digits"),
        ("Content-Digest" = Option<String>, Header, description = "The same, as `sha-256=:<base64>:` (RFC 9530); `Repr-Digest` and `Digest` are understood, too"),
    ),
    responses(
        (status = 201, description = "Stored", body = UploadView, headers(("Location", description = "The upload"))),
        (status = 408, description = "The archive arrives too slowly", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The project's uploads take too much together", body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The archive is too large", body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "It is no archive that is accepted, or not the one that was announced", body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "Too many archives arrive at the moment; `Retry-After` says when to try again", body = Problem, content_type = "application/problem+json"),
    ),
)]
pub(in crate::http) async fn create(
    State(app): State<App>,
    caller: Caller,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    caller.require(Scope::BuildsWrite)?;
    let project = asked.project.unwrap_or_else(|| caller.project().clone());
    if !caller.sees(&project) {
        return Err(unknown_project(&project));
    }
    let mut announced = digest::told(&headers)?;
    let named = asked.sha256.and_then(|digest| hex::decode(digest.as_str()).ok());
    announced.extend(named.and_then(|digest| digest::Sha256Bytes::try_from(digest).ok()));
    let config = &app.uploads.config;
    if declared_length(&headers).is_some_and(|length| length > config.max_bytes.0) {
        return Err(ApiError::UploadTooLarge(config.max_bytes.0));
    }
    // Nothing of the body is read before it is this request's turn.
    let _turn = app.uploads.turns.take(&project).await.ok_or(ApiError::UploadsBusy)?;
    let spooled = spool::spool(
        body,
        config.spool_dir.as_deref(),
        config.max_bytes.0,
        app.uploads.pace(),
    )
    .await?;
    if announced.iter().any(|digest| *digest != spooled.sha256) {
        return Err(ApiError::DigestMismatch(hex::encode(spooled.sha256)));
    }
    let (file, limits) = (spooled.file.into_std().await, app.uploads.limits());
    let (file, checked) = tokio::task::spawn_blocking(move || {
        let checked = archive::check(&file, &limits);
        (file, checked)
    })
    .await
    .map_err(|error| ApiError::Spool(io::Error::other(error)))?;
    checked.map_err(|error| match error {
        archive::Error::Read(error) => ApiError::Spool(error),
        error => ApiError::InvalidArchive(error),
    })?;
    let mut file = tokio::fs::File::from_std(file);
    file.rewind().await.map_err(ApiError::Spool)?;
    let new = NewUpload {
        id: UploadId::new(),
        project: project.clone(),
        sha256: sha256(&spooled.sha256)?,
        bytes: spooled.bytes,
        keep_seconds: config.keep_seconds,
        max_project_bytes: config.max_project_bytes.0,
    };
    let outcome = uploads::create(&app.pool, new, file)
        .await
        .map_err(|error| match error {
            StoreError::Store(error) => ApiError::Store(error),
            StoreError::Read(error) => ApiError::Spool(error),
        })?;
    match outcome {
        StoreOutcome::Stored(upload) => {
            app.metrics.uploaded(upload.bytes);
            let location = HeaderValue::from_str(&app.link(&format!("/v1/uploads/{}", upload.id)));
            let mut response = (StatusCode::CREATED, Json(UploadView::from(upload))).into_response();
            // A URL is ASCII.
            if let Ok(location) = location {
                response.headers_mut().insert(header::LOCATION, location);
            }
            Ok(response)
        }
        StoreOutcome::NoRoom => Err(ApiError::UploadsFull(config.max_project_bytes.0)),
        StoreOutcome::UnknownProject => Err(unknown_project(&project)),
    }
}

fn sha256(digest: &digest::Sha256Bytes) -> Result<Sha256Hex, ApiError> {
    // 64 digits, so this can't fail.
    hex::encode(digest)
        .parse()
        .map_err(|error| ApiError::Spool(io::Error::other(error)))
}

fn declared_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// A project that isn't there and one that is another's look the same.
fn unknown_project(project: &ProjectName) -> ApiError {
    ApiError::InvalidQuery(vec![FieldError {
        pointer: "/project".to_owned(),
        detail: format!(
            "there is no project `{project}` for this token: leave it out for the token's own, or see `GET /v1/projects`"
        ),
    }])
}

/// What the query may say.
pub(in crate::http) struct Asked {
    project: Option<ProjectName>,
    sha256: Option<Sha256Hex>,
}

impl Parameters for Asked {
    fn read(query: &Object<'_>) -> Result<Self, Reported> {
        let project = query.field("project").parse();
        let sha256 = query.field("sha256").parse();
        Ok(Self {
            project: project?,
            sha256: sha256?,
        })
    }
}
