//! Every request has an id: the caller's own, where it is sane, or a new one. It is in the answer, in problem
//! documents and in the log.

use axum::{
    extract::Request,
    http::{HeaderName, HeaderValue},
    middleware::Next,
    response::Response,
};
use uuid::Uuid;

pub(super) const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// The id of a request.
#[derive(Clone, Debug, Default)]
pub(super) struct RequestId(String);

impl RequestId {
    fn of(request: &Request) -> Self {
        let sent = request.headers().get(&HEADER).and_then(|value| value.to_str().ok());
        let sane = |text: &&str| {
            (1..=128).contains(&text.len())
                && text
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':' | b'/' | b'+' | b'='))
        };
        Self(
            sent.filter(sane)
                .map_or_else(|| Uuid::now_v7().to_string(), str::to_owned),
        )
    }

    /// The id as text.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<RequestId> for String {
    fn from(id: RequestId) -> Self {
        id.0
    }
}

/// Middleware: gives the request its id.
pub(super) async fn assign(mut request: Request, next: Next) -> Response {
    let id = RequestId::of(&request);
    let value = HeaderValue::from_str(id.as_str());
    request.extensions_mut().insert(id);
    let mut response = next.run(request).await;
    // Only checked ASCII gets into an id.
    if let Ok(value) = value {
        response.headers_mut().insert(HEADER, value);
    }
    response
}
