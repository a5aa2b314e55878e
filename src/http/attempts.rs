//! `/internal/v1/attempts/{attempt}`: what running attempts get from the service. Not part of the API for callers; each
//! attempt has a token of its own, which is good for as long as the attempt is live.

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
use crate::domain::id::AttemptId;

/// The attempt that the path names, calling with its token. Whether it is live is still to be asked.
pub(super) struct CallingAttempt(pub(super) AttemptId);

impl FromRequestParts<App> for CallingAttempt {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let AttemptPath(attempt) = AttemptPath::from_request_parts(parts, app).await?;
        let token = parts
            .headers
            .get(header::AUTHORIZATION)
            .ok_or(ApiError::Unauthenticated(TokenProblem::Missing))?
            .to_str()
            .ok()
            .and_then(|text| text.strip_prefix("Bearer "))
            .ok_or(ApiError::Unauthenticated(TokenProblem::Malformed))?;
        if app.attempt_keys.get(&app.pool).await?.verifies(attempt, token) {
            Ok(Self(attempt))
        } else {
            // Whoever has no token of it doesn't learn whether there is such an attempt.
            Err(ApiError::NotFound(Missing::Route))
        }
    }
}
