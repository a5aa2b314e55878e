//! `GET /metrics`.

use axum::{
    extract::State,
    http::{HeaderName, header},
};

use crate::http::{error::ApiError, state::App};

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The metrics of this process, as `OpenMetrics` text.
#[utoipa::path(
    get, path = "/metrics", tag = "operations", operation_id = "metrics", security(()),
    responses((status = 200, description = "The metrics", content_type = "application/openmetrics-text", body = String)),
)]
pub(in crate::http) async fn metrics(
    State(app): State<App>,
) -> Result<([(HeaderName, &'static str); 1], String), ApiError> {
    app.metrics.read_installation(&app.pool).await;
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &app.registry)?;
    Ok(([(header::CONTENT_TYPE, OPENMETRICS)], text))
}
