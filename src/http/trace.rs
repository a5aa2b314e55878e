//! The traces that requests belong to (W3C Trace Context). Without a collector none of this does anything.

use std::collections::HashMap;

use axum::{
    extract::{MatchedPath, Request},
    http::StatusCode,
};
use opentelemetry::{
    global,
    trace::{Status, TraceContextExt as _},
};
use opentelemetry_http::HeaderExtractor;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::domain::trace_parent::TraceParent;

/// Makes a request's span part of the trace that its caller has begun, and says which operation it is.
pub(super) fn join(span: &Span, request: &Request) {
    let context = global::get_text_map_propagator(|propagator| propagator.extract(&HeaderExtractor(request.headers())));
    if context.span().span_context().is_valid() {
        // Refused only where nothing is traced.
        let _ = span.set_parent(context);
    }
    if let Some(route) = request.extensions().get::<MatchedPath>() {
        span.set_attribute("http.route", route.as_str().to_owned());
    }
}

/// The span of the request that is being answered, for what goes on when it is over. `None` where nothing is traced.
pub(super) fn parent() -> Option<TraceParent> {
    let mut headers = HashMap::new();
    let context = Span::current().context();
    global::get_text_map_propagator(|propagator| propagator.inject_context(&context, &mut headers));
    headers.get("traceparent")?.parse().ok()
}

/// Says how a request was answered.
pub(super) fn answered(span: &Span, status: StatusCode) {
    span.set_attribute("http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        span.set_status(Status::error(status.as_str().to_owned()));
    }
}
