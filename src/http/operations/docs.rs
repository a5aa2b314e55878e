//! `GET /docs`.

use std::sync::LazyLock;

use axum::{
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use sha2::{Digest as _, Sha256};

/// One file with its style and its script, which draws `openapi.json`. It needs nothing from anywhere else.
const PAGE: &str = include_str!("docs/page.html");

/// Only the page's own style and script may run, named by their hashes, and only this server may be asked.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    format!(
        "default-src 'none'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
         script-src '{}'; style-src '{}'",
        hash("script"),
        hash("style"),
    )
});

/// The hash of what stands in an element of the page (CSP, section 6.7.2).
fn hash(element: &str) -> String {
    let content = PAGE
        .split_once(&format!("<{element}>"))
        .and_then(|(_, rest)| rest.split_once(&format!("</{element}>")))
        .map_or("", |(content, _)| content);
    format!("sha256-{}", BASE64_STANDARD.encode(Sha256::digest(content)))
}

/// The API as a page for people. Works without the internet.
#[utoipa::path(
    get, path = "/docs", tag = "operations", operation_id = "docs", security(()),
    responses((status = 200, description = "The page", content_type = "text/html", body = String)),
)]
pub(in crate::http) async fn docs() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY.as_str()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ]
    // Plain ASCII.
    .map(|(name, value)| {
        (
            name,
            HeaderValue::from_str(value).unwrap_or_else(|_| HeaderValue::from_static("")),
        )
    });
    (headers, PAGE).into_response()
}
