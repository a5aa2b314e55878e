//! `GET /openapi.json`.

use std::sync::LazyLock;

use axum::{http::HeaderMap, response::Response};

use crate::http::{conditional::Tagged, router};

// Strings, numbers and maps with string keys always serialise.
static DOCUMENT: LazyLock<String> = LazyLock::new(|| router::openapi().to_pretty_json().unwrap_or_default());

/// This description of the API.
#[utoipa::path(
    get, path = "/openapi.json", tag = "operations", operation_id = "openapi", security(()),
    responses(
        (status = 200, description = "An OpenAPI 3.1 document", content_type = "application/json", body = Object),
        (status = 304, description = "Unchanged: the `ETag` is in `If-None-Match`"),
    ),
)]
pub(in crate::http) async fn openapi(headers: HeaderMap) -> Response {
    Tagged::bytes(DOCUMENT.as_str()).respond(&headers)
}
