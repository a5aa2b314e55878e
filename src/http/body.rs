//! JSON bodies, as values that haven't been judged yet.

use std::time::Duration;

use axum::{
    body::Bytes,
    extract::{FromRequest, Request},
    http::header,
};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde_json::Value;

use super::error::ApiError;
use crate::domain::spec::reader::{Errors, Object};

/// Largest accepted body, in bytes.
pub(super) const MAX_BODY: usize = 1 << 20;
/// How long a body may take to arrive.
pub(super) const TIMEOUT: Duration = Duration::from_secs(30);

/// The JSON value of a request's body.
pub(super) struct JsonBody(pub(super) Value);

impl<S: Send + Sync> FromRequest<S> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        if !is_json(&request) {
            return Err(ApiError::UnsupportedMediaType);
        }
        let bytes = tokio::time::timeout(TIMEOUT, read(request, MAX_BODY))
            .await
            .map_err(|_| ApiError::BodyTimeout)??;
        serde_json::from_slice(&bytes)
            .map(Self)
            .map_err(ApiError::MalformedJson)
    }
}

/// No body, or the JSON `{}`: what an operation without fields takes. Anything else would be ignored, and its sender
/// would never know.
pub(super) struct NoBody;

impl<S: Send + Sync> FromRequest<S> for NoBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let declared = is_json(&request);
        let bytes = tokio::time::timeout(TIMEOUT, read(request, MAX_BODY))
            .await
            .map_err(|_| ApiError::BodyTimeout)??;
        if bytes.trim_ascii().is_empty() {
            return Ok(Self);
        }
        if !declared {
            return Err(ApiError::UnsupportedMediaType);
        }
        let document = serde_json::from_slice(&bytes).map_err(ApiError::MalformedJson)?;
        let errors = Errors::default();
        let nothing = Object::document(&document, &errors).map(Object::finish);
        errors.finish(nothing).map(|()| Self).map_err(ApiError::InvalidBody)
    }
}

/// Whether the body is declared as JSON, or not declared at all.
fn is_json(request: &Request) -> bool {
    let Some(value) = request.headers().get(header::CONTENT_TYPE) else {
        return true;
    };
    let Ok(text) = value.to_str() else { return false };
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// The bytes of a body, of a limited number and within the time that a body has.
pub(super) async fn bytes(request: Request, limit: usize) -> Result<Bytes, ApiError> {
    let read = tokio::time::timeout(TIMEOUT, read(request, limit));
    read.await.map_err(|_| ApiError::BodyTimeout)?
}

async fn read(request: Request, limit: usize) -> Result<Bytes, ApiError> {
    match Limited::new(request.into_body(), limit).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ApiError::BodyTooLarge(limit)),
        Err(_) => Err(ApiError::BodyIncomplete),
    }
}
