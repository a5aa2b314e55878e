//! Errors as problem documents (RFC 9457). One exhaustive match decides status, code and words. What caused an error
//! is logged here, once, and never sent.

use std::{error::Error as _, fmt::Write as _, sync::Arc};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderName, HeaderValue, StatusCode, header},
    middleware::Next,
    response::Response,
};
use chrono::SecondsFormat;
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    error::{ApiError, Missing, TokenProblem},
    metrics::Metrics,
    request_id::RequestId,
};
use crate::{
    domain::spec::reader::FieldError,
    journal::archive::ArchiveError,
    store::{self, secrets::seal::SealError},
};

/// Most invalid fields listed in one answer.
const MAX_ERRORS: usize = 256;

/// An error, as callers see it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem, example = json!({
    "type": "urn:kiln:problem:invalid_request", "title": "The request is not valid", "status": 422,
    "code": "invalid_request", "detail": "1 field is invalid", "request_id": "0198c0de-5eed-7000-8000-000000000000",
    "errors": [{"pointer": "/images/0", "detail": "expected an image reference such as `registry.example/team/app:1`"}]
}))]
pub(super) struct Problem {
    /// A name for the kind of problem; `urn:kiln:problem:` and the code.
    r#type: String,
    /// The kind of problem in words.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// The kind of problem, for programs; stable.
    code: &'static str,
    /// What happened, and what to do.
    detail: String,
    /// Every invalid field or parameter.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<ProblemField>,
    /// With `log_offset`, which only attempts meet: where the next push has to begin.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(ignore)]
    offset: Option<u64>,
    /// Also in the header `x-request-id` and in the server's log.
    request_id: String,
}

/// One invalid field or parameter.
#[derive(Debug, Serialize, ToSchema)]
struct ProblemField {
    /// Place in the body, as a JSON pointer (RFC 6901).
    #[serde(skip_serializing_if = "Option::is_none")]
    pointer: Option<String>,
    /// Name of the query parameter.
    #[serde(skip_serializing_if = "Option::is_none")]
    parameter: Option<String>,
    /// What is wrong, and what would be right.
    detail: String,
}

/// How an error is told.
struct Answer {
    status: StatusCode,
    code: &'static str,
    title: &'static str,
    detail: String,
    errors: Vec<ProblemField>,
    offset: Option<u64>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Answer {
    fn new(status: StatusCode, code: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            code,
            title,
            detail: detail.into(),
            errors: Vec::new(),
            offset: None,
            headers: Vec::new(),
        }
    }

    fn header(mut self, name: HeaderName, value: impl TryInto<HeaderValue>) -> Self {
        // Values are made here of plain ASCII; one that isn't is only left out.
        if let Ok(value) = value.try_into() {
            self.headers.push((name, value));
        }
        self
    }

    fn errors(mut self, errors: &[FieldError], place: fn(&FieldError) -> (Option<String>, Option<String>)) -> Self {
        self.errors = errors
            .iter()
            .take(MAX_ERRORS)
            .map(|error| {
                let (pointer, parameter) = place(error);
                ProblemField {
                    pointer,
                    parameter,
                    detail: error.detail.clone(),
                }
            })
            .collect();
        self
    }
}

fn count(errors: &[FieldError], one: &str, many: &str) -> String {
    match errors {
        [error] => format!("1 {one} is invalid: {}", error.detail),
        errors if errors.len() > MAX_ERRORS => {
            format!("{} {many} are invalid; the first {MAX_ERRORS} are listed", errors.len())
        }
        errors => format!("{} {many} are invalid", errors.len()),
    }
}

fn in_body(error: &FieldError) -> (Option<String>, Option<String>) {
    (Some(error.pointer.clone()), None)
}

fn in_query(error: &FieldError) -> (Option<String>, Option<String>) {
    // The name; behind it stands which of several values it is.
    let name = error.pointer.trim_start_matches('/').split('/').next();
    (None, Some(name.unwrap_or_default().to_owned()))
}

fn internal() -> Answer {
    Answer::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "internal",
        "Kiln failed",
        "this is a fault of the service, not of the request; tell its operator the request_id",
    )
}

/// How each error is told.
#[expect(clippy::too_many_lines, reason = "one table")]
fn answer(error: &ApiError) -> Answer {
    use StatusCode as S;
    match error {
        ApiError::Unauthenticated(problem) => {
            let (what, challenge) = match problem {
                TokenProblem::Missing => ("no token was sent", r#"Bearer realm="kiln""#),
                TokenProblem::Malformed => (
                    "the Authorization header holds no token of Kiln",
                    r#"Bearer realm="kiln", error="invalid_token""#,
                ),
                TokenProblem::Unknown => (
                    "the token is not known: it was deleted, or belongs to another installation",
                    r#"Bearer realm="kiln", error="invalid_token""#,
                ),
                TokenProblem::Ticket => (
                    "the ticket is not known, or its time is over: make another by `POST /v1/stream-tickets`",
                    r#"Bearer realm="kiln", error="invalid_token""#,
                ),
                TokenProblem::Expired => (
                    "the token has expired",
                    r#"Bearer realm="kiln", error="invalid_token", error_description="expired""#,
                ),
            };
            Answer::new(
                S::UNAUTHORIZED,
                "unauthenticated",
                "A valid token is needed",
                format!(
                    "{what}; send the header `Authorization: Bearer kiln_…` with a token from `kiln token create` or from your project's administrator"
                ),
            )
            .header(header::WWW_AUTHENTICATE, challenge)
        }
        ApiError::Forbidden(needed) => Answer::new(
            S::FORBIDDEN,
            "insufficient_scope",
            "The token does not allow this",
            format!("this needs a token with the scope `{needed}`; your project's administrator can make one"),
        )
        .header(
            header::WWW_AUTHENTICATE,
            format!(r#"Bearer realm="kiln", error="insufficient_scope", scope="{needed}""#),
        ),
        ApiError::ScopesBeyondOwn(errors) => Answer::new(
            S::FORBIDDEN,
            "insufficient_scope",
            "The token does not allow this",
            "a token can only be given scopes that its maker's token covers",
        )
        .errors(errors, in_body),
        ApiError::NotFound(Missing::Route) => Answer::new(
            S::NOT_FOUND,
            "not_found",
            "There is nothing here",
            "no operation has this path; /docs shows all of them, and /openapi.json lists them for programs",
        ),
        ApiError::NotFound(Missing::Build) => Answer::new(
            S::NOT_FOUND,
            "build_not_found",
            "There is no such build",
            "no build with this id is there for this token; `GET /v1/builds` lists those that are",
        ),
        ApiError::NotFound(Missing::Project) => Answer::new(
            S::NOT_FOUND,
            "project_not_found",
            "There is no such project",
            "no project of this name is there for this token; `GET /v1/projects` lists those that are",
        ),
        ApiError::NotFound(Missing::Token) => Answer::new(
            S::NOT_FOUND,
            "token_not_found",
            "There is no such token",
            "the project has no token with this id; it may have been deleted already",
        ),
        ApiError::NotFound(Missing::Upload) => Answer::new(
            S::NOT_FOUND,
            "upload_not_found",
            "There is no such upload",
            "no upload with this id is there for this token: it may have expired; send the archive again",
        ),
        ApiError::NotFound(Missing::Secret) => Answer::new(
            S::NOT_FOUND,
            "secret_not_found",
            "There is no such secret",
            "the project has no secret of this name; names hold lower-case letters, digits, `-`, `_` and `.`, at most 63",
        ),
        ApiError::NotFound(Missing::Node) => Answer::new(
            S::NOT_FOUND,
            "node_not_found",
            "Nothing is known of this node",
            "no node of this name has failed builds lately; `GET /v1/nodes` lists those that have",
        ),
        ApiError::NotFound(Missing::Hook) => Answer::new(
            S::NOT_FOUND,
            "hook_not_found",
            "There is no such hook",
            "no hook has this id: it was deleted, or the address was copied incompletely",
        ),
        ApiError::NotFound(Missing::Delivery) => Answer::new(
            S::NOT_FOUND,
            "delivery_not_found",
            "There is no such delivery",
            "nothing with this id came to the hook, or not lately: deliveries are kept for a limited time",
        ),
        ApiError::DeliveryRefused => Answer::new(
            S::UNAUTHORIZED,
            "delivery_refused",
            "The delivery is refused",
            "it doesn't show that it comes from somebody who knows the hook's secret",
        ),
        ApiError::DeliveryMalformed(detail) => Answer::new(
            S::BAD_REQUEST,
            "malformed_delivery",
            "The delivery can't be read",
            detail.clone(),
        ),
        ApiError::DeliveryUnread => Answer::new(
            S::CONFLICT,
            "delivery_unread",
            "The delivery can't be sent again",
            "it was refused or says nothing, so there is no event to decide about: have the sender send it again",
        ),
        ApiError::HooksFull(limit) => Answer::new(
            S::CONFLICT,
            "hooks_full",
            "The project has too many hooks",
            format!("a project has at most {limit} hooks: delete some, or let one take the events of several repositories"),
        ),
        ApiError::Seal(SealError::NoKey) => Answer::new(
            S::SERVICE_UNAVAILABLE,
            "secrets_not_configured",
            "This installation can't keep secrets",
            "its operator has to configure a key to encrypt them with: `secrets.key_file`, or KILN_SECRETS_KEY",
        ),
        ApiError::MethodNotAllowed => Answer::new(
            S::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "The path does not take this method",
            "the header `Allow` lists the methods that it takes",
        ),
        ApiError::NotAcceptable(offered) => Answer::new(
            S::NOT_ACCEPTABLE,
            "not_acceptable",
            "The answer can't be had in this form",
            format!("the header `Accept` must allow one of {}", offered.join(", ")),
        ),
        ApiError::BodyTimeout => Answer::new(
            S::REQUEST_TIMEOUT,
            "request_timeout",
            "The body did not arrive in time",
            "send the request again",
        ),
        ApiError::BodyIncomplete => Answer::new(
            S::BAD_REQUEST,
            "body_incomplete",
            "The body ended early",
            "send the request again, with a body as long as its Content-Length says",
        ),
        ApiError::BodyTooLarge(limit) => Answer::new(
            S::PAYLOAD_TOO_LARGE,
            "body_too_large",
            "The body is too large",
            format!("at most {limit} bytes are accepted; to build from more, use a git source"),
        ),
        ApiError::UploadTooLarge(limit) => Answer::new(
            S::PAYLOAD_TOO_LARGE,
            "upload_too_large",
            "The archive is too large",
            format!(
                "at most {limit} bytes are accepted: leave out what the build doesn't need, or compress it by gzip"
            ),
        ),
        ApiError::UploadTooSlow(least) => Answer::new(
            S::REQUEST_TIMEOUT,
            "upload_too_slow",
            "The archive arrives too slowly",
            format!(
                "archives must arrive at {least} bytes per second on average: send it over a faster connection, or                  leave out what the build doesn't need"
            ),
        ),
        ApiError::UploadsBusy => Answer::new(
            S::SERVICE_UNAVAILABLE,
            "uploads_busy",
            "Too many archives arrive at the moment",
            "only so many are taken at the same time, and fewer of one project; send it again in a moment",
        )
        .header(header::RETRY_AFTER, HeaderValue::from_static("5")),
        ApiError::InvalidArchive(error) => Answer::new(
            S::UNPROCESSABLE_ENTITY,
            "invalid_archive",
            "The archive is not accepted",
            format!("the archive {error}"),
        ),
        ApiError::DigestMismatch(actual) => Answer::new(
            S::UNPROCESSABLE_ENTITY,
            "digest_mismatch",
            "The archive is not the one that was announced",
            format!("what arrived has the SHA-256 {actual}: send it again, or correct the digest"),
        ),
        ApiError::UploadsFull(limit) => Answer::new(
            S::CONFLICT,
            "uploads_full",
            "The project's uploads take too much together",
            format!("at most {limit} bytes are kept for a project: delete uploads, or wait until they expire"),
        ),
        ApiError::QueueFull(limit) => Answer::new(
            S::TOO_MANY_REQUESTS,
            "queue_full",
            "The project's queue is full",
            format!("at most {limit} builds of the project may wait: send it again once some have started, or cancel some"),
        )
        .header(header::RETRY_AFTER, HeaderValue::from_static("15")),
        ApiError::UploadInUse => Answer::new(
            S::CONFLICT,
            "upload_in_use",
            "A build needs the upload",
            "wait until the build is over, or cancel it",
        ),
        ApiError::UnsupportedMediaType => Answer::new(
            S::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "The body must be JSON",
            "send the header `Content-Type: application/json`",
        ),
        ApiError::MalformedJson(error) => Answer::new(
            S::BAD_REQUEST,
            "malformed_json",
            "The body is not JSON",
            error.to_string(),
        ),
        ApiError::InvalidBody(errors) => Answer::new(
            S::UNPROCESSABLE_ENTITY,
            "invalid_request",
            "The request is not valid",
            count(errors, "field", "fields"),
        )
        .errors(errors, in_body),
        ApiError::InvalidQuery(errors) => Answer::new(
            S::BAD_REQUEST,
            "invalid_query",
            "The query is not valid",
            count(errors, "parameter", "parameters"),
        )
        .errors(errors, in_query),
        ApiError::InvalidHeader { name, detail } => Answer::new(
            S::BAD_REQUEST,
            "invalid_header",
            "A header is not valid",
            format!("the header `{name}`: {detail}"),
        ),
        ApiError::UnsupportedEncoding => Answer::new(
            S::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_encoding",
            "The body's encoding is not taken",
            "send the body as it is, or with the header `Content-Encoding: zstd`",
        ),
        ApiError::MalformedEncoding(_) => Answer::new(
            S::BAD_REQUEST,
            "malformed_encoding",
            "The body can't be decompressed",
            "the header `Content-Encoding` says zstd, and the body isn't that",
        ),
        ApiError::InvalidFrames { offset, problem } => Answer::new(
            S::UNPROCESSABLE_ENTITY,
            "invalid_frames",
            "The body does not consist of frames",
            format!("at offset {offset} of the step's spool: {problem}"),
        ),
        ApiError::LogOffset(offset) => Answer {
            offset: Some(*offset),
            ..Answer::new(
                S::CONFLICT,
                "log_offset",
                "Bytes of the log are missing before these",
                format!("the bytes below {offset} are held: send those from there on"),
            )
        },
        ApiError::AttemptOver => Answer::new(
            S::GONE,
            "attempt_over",
            "The attempt is over",
            "nothing of it is taken any more",
        ),
        ApiError::PushesFull => Answer::new(
            S::SERVICE_UNAVAILABLE,
            "log_busy",
            "Too many logs arrive at the same time",
            "send it again after `Retry-After` seconds, here or at another replica",
        )
        .header(header::RETRY_AFTER, HeaderValue::from_static("1")),
        ApiError::Journal => Answer::new(
            S::SERVICE_UNAVAILABLE,
            "journal_unavailable",
            "The log can't be written",
            "send it again after `Retry-After` seconds, here or at another replica",
        )
        .header(header::RETRY_AFTER, HeaderValue::from_static("2")),
        ApiError::RangeNotSatisfiable(length) => Answer::new(
            S::RANGE_NOT_SATISFIABLE,
            "range_not_satisfiable",
            "The range lies outside of the text",
            format!("the text has {length} bytes"),
        )
        .header(header::CONTENT_RANGE, format!("bytes */{length}")),
        ApiError::IdempotencyKeyReused => Answer::new(
            S::UNPROCESSABLE_ENTITY,
            "idempotency_key_reused",
            "The Idempotency-Key was used for another request",
            "send another key for another request; a key stands for one request only",
        ),
        ApiError::IdempotencyKeyInFlight => Answer::new(
            S::CONFLICT,
            "idempotency_key_in_flight",
            "A request with this Idempotency-Key is being carried out",
            "send the request again in a second to get its result",
        )
        .header(header::RETRY_AFTER, HeaderValue::from_static("1")),
        ApiError::BuildFinished(state) => Answer::new(
            S::CONFLICT,
            "build_finished",
            "The build is over",
            format!("the build is {state} and can't change any more"),
        ),
        ApiError::BuildNotFinished(state) => Answer::new(
            S::CONFLICT,
            "build_not_finished",
            "The build is not over",
            format!("the build is {state}; wait for its end, or cancel it, before it is built again"),
        ),
        ApiError::BuildDeleted(deleted_at) => Answer::new(
            S::GONE,
            "build_deleted",
            "The build was deleted",
            format!(
                "builds and their logs are kept for a limited time after their end; this one was deleted at {}",
                deleted_at.to_rfc3339_opts(SecondsFormat::Secs, true),
            ),
        ),
        ApiError::ProjectExists => Answer::new(
            S::CONFLICT,
            "project_exists",
            "There is a project of this name",
            "choose another name, or use the project that is there",
        ),
        ApiError::Store(store::Error::Unavailable(_)) => Answer::new(
            S::SERVICE_UNAVAILABLE,
            "database_unavailable",
            "The database can't be reached",
            "send the request again in a moment; with an Idempotency-Key it is safe to repeat a POST",
        )
        .header(header::RETRY_AFTER, HeaderValue::from_static("2")),
        ApiError::Archive(
            ArchiveError::NotConfigured
            | ArchiveError::Unavailable(_)
            | ArchiveError::Slow
            | ArchiveError::Address(_),
        ) => Answer::new(
            S::SERVICE_UNAVAILABLE,
            "archive_unavailable",
            "The archive can't be reached",
            "logs of builds that ended a while ago are in an archive that gives none at present: send the request again later",
        )
        .header(header::RETRY_AFTER, HeaderValue::from_static("30")),
        ApiError::Archive(ArchiveError::Damaged { .. }) => Answer::new(
            S::INTERNAL_SERVER_ERROR,
            "log_damaged",
            "The log can't be read any more",
            "what the archive holds of this log isn't what was written; tell the service's operator the request_id",
        ),
        ApiError::Store(store::Error::Conflict) => Answer::new(
            S::CONFLICT,
            "conflict",
            "The build changed at the same moment",
            "send the request again",
        ),
        ApiError::Store(store::Error::Database(_) | store::Error::Inconsistent { .. })
        | ApiError::Seal(SealError::UnknownKey(_) | SealError::Broken)
        | ApiError::Metrics(_)
        | ApiError::Spool(_)
        | ApiError::Panic(_) => internal(),
    }
}

/// The error and what caused it, for the log.
fn causes(error: &ApiError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        // Writing to a String can't fail.
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}

/// Middleware: writes the problem document of an [`ApiError`] that a handler, an extractor or a fallback left.
pub(super) async fn render(State(metrics): State<Metrics>, request: Request, next: Next) -> Response {
    let request_id = request.extensions().get::<RequestId>().cloned().unwrap_or_default();
    let mut response = next.run(request).await;
    let Some(error) = response.extensions_mut().remove::<Arc<ApiError>>() else {
        return response;
    };
    let Answer {
        status,
        code,
        title,
        detail,
        errors,
        offset,
        headers,
    } = answer(&error);
    metrics.problem(code);
    if status.is_server_error() {
        tracing::error!(code, error = causes(&error), "a request failed");
    } else {
        tracing::debug!(code, error = causes(&error), "a request was refused");
    }
    let problem = Problem {
        r#type: format!("urn:kiln:problem:{code}"),
        title,
        status: status.as_u16(),
        code,
        detail,
        errors,
        offset,
        request_id: request_id.into(),
    };
    *response.status_mut() = status;
    let answer = response.headers_mut();
    answer.remove(header::CONTENT_LENGTH);
    answer.extend(headers);
    answer.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/problem+json"),
    );
    answer.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Strings and numbers always serialise.
    *response.body_mut() = Body::from(serde_json::to_vec(&problem).unwrap_or_default());
    response
}
