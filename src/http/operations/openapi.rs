//! `GET /openapi.json`.

use std::sync::LazyLock;

use axum::http::{HeaderName, header};

use crate::http::router;

// Strings, numbers and maps with string keys always serialise.
static DOCUMENT: LazyLock<String> = LazyLock::new(|| router::openapi().to_pretty_json().unwrap_or_default());

/// This description of the API.
#[utoipa::path(
    get, path = "/openapi.json", tag = "operations", operation_id = "openapi", security(()),
    responses((status = 200, description = "An OpenAPI 3.1 document", content_type = "application/json", body = Object)),
)]
pub(in crate::http) async fn openapi() -> ([(HeaderName, &'static str); 1], &'static str) {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT.as_str())
}
