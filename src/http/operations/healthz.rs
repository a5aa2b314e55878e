//! `GET /healthz`.

use axum::Json;
use serde::Serialize;
use utoipa::ToSchema;

/// The process lives.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::http) struct Alive {
    /// Always true.
    ok: bool,
}

/// Whether the process lives. Asks nothing else of anybody; for that there is `/readyz`.
#[utoipa::path(
    get, path = "/healthz", tag = "operations", operation_id = "healthz", security(()),
    responses((status = 200, description = "It does", body = Alive)),
)]
pub(in crate::http) async fn healthz() -> Json<Alive> {
    Json(Alive { ok: true })
}
