//! Answers that a caller may have already (RFC 9110, section 13). The tag is made from the bytes of the answer, so it
//! changes with whatever is shown. It is a weak one, because what is sent may be compressed.

use std::fmt::Write as _;

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

/// An answer, before it is known whether it has to be sent.
pub(super) struct Tagged {
    body: Vec<u8>,
    tag: String,
}

impl Tagged {
    /// The JSON of a value.
    pub(super) fn json<T: Serialize>(value: &T) -> Self {
        // Strings, numbers and maps with string keys always serialise.
        Self::bytes(serde_json::to_vec(value).unwrap_or_default())
    }

    /// JSON that is there already.
    pub(super) fn bytes(body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        let mut tag = "W/\"".to_owned();
        for byte in &Sha256::digest(&body)[..12] {
            // Writing to a String can't fail.
            let _ = write!(tag, "{byte:02x}");
        }
        tag.push('"');
        Self { body, tag }
    }

    /// Whether the caller says that it has this very answer.
    pub(super) fn is_known(&self, headers: &HeaderMap) -> bool {
        headers
            .get_all(header::IF_NONE_MATCH)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|list| matches(list, &self.tag))
    }

    /// The answer, or 304 when the caller has it.
    pub(super) fn respond(self, headers: &HeaderMap) -> Response {
        let mut response = if self.is_known(headers) {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            let json = HeaderValue::from_static("application/json");
            ([(header::CONTENT_TYPE, json)], Body::from(self.body)).into_response()
        };
        let answer = response.headers_mut();
        // Digits, letters and quotes.
        if let Ok(tag) = HeaderValue::from_str(&self.tag) {
            answer.insert(header::ETAG, tag);
        }
        answer.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
        response
    }
}

/// The JSON of a value, or 304 when the caller has it.
pub(super) fn json<T: Serialize>(headers: &HeaderMap, value: &T) -> Response {
    Tagged::json(value).respond(headers)
}

/// Whether a list of tags holds this one, by the weak comparison (RFC 9110, section 13.1.2).
fn matches(list: &str, tag: &str) -> bool {
    let opaque = |tag: &str| tag.strip_prefix("W/").unwrap_or(tag).to_owned();
    list.split(',')
        .map(str::trim)
        .any(|given| given == "*" || opaque(given) == opaque(tag))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_compared_weakly() {
        assert!(matches("\"7\"", "W/\"7\""));
        assert!(matches("\"1\", W/\"7\"", "W/\"7\""));
        assert!(matches("*", "W/\"7\""));
        assert!(!matches("\"77\", 7", "W/\"7\""));
    }

    #[test]
    fn another_answer_has_another_tag() {
        let tag = |value: i32| Tagged::json(&value).tag;
        assert_eq!(tag(1), tag(1));
        assert_ne!(tag(1), tag(2));
    }
}
