//! `/internal/v1/attempts/{attempt}`: what running attempts get from the service. Not part of the API for callers; each
//! attempt has a token of its own, which is good for as long as the attempt is live.

pub(super) mod log;
mod pushes;
pub(super) mod upload;

use axum::{
    extract::FromRequestParts,
    http::{header, request::Parts},
};

use super::{
    error::{ApiError, Missing, TokenProblem},
    path::AttemptPath,
    state::App,
};
use crate::domain::{attempt_token::Purpose, id::AttemptId};

pub use self::pushes::{PushMetrics, Pushes};

/// The attempt that the path names, calling with its token for getting its upload. Whether it is live is still to be
/// asked.
pub(super) struct FetchingAttempt(pub(super) AttemptId);

impl FromRequestParts<App> for FetchingAttempt {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        calling(parts, app, Purpose::Upload).await.map(Self)
    }
}

/// The attempt that the path names, calling with its token for handing in its log. Whether it is live is still to be
/// asked.
pub(super) struct LoggingAttempt(pub(super) AttemptId);

impl FromRequestParts<App> for LoggingAttempt {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        calling(parts, app, Purpose::Log).await.map(Self)
    }
}

async fn calling(parts: &mut Parts, app: &App, purpose: Purpose) -> Result<AttemptId, ApiError> {
    let AttemptPath(attempt) = AttemptPath::from_request_parts(parts, app).await?;
    let token = parts
        .headers
        .get(header::AUTHORIZATION)
        .ok_or(ApiError::Unauthenticated(TokenProblem::Missing))?
        .to_str()
        .ok()
        .and_then(|text| text.strip_prefix("Bearer "))
        .ok_or(ApiError::Unauthenticated(TokenProblem::Malformed))?;
    if app.attempt_keys.get(&app.pool).await?.verifies(attempt, purpose, token) {
        Ok(attempt)
    } else {
        // Whoever has no token of it doesn't learn whether there is such an attempt.
        Err(ApiError::NotFound(Missing::Route))
    }
}
