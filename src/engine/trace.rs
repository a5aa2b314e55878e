//! The traces that attempts belong to: those of the requests that their builds came by.

use std::collections::HashMap;

use opentelemetry::global;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::domain::trace_parent::TraceParent;

/// Makes an attempt's span part of its request's trace.
pub(super) fn join(span: &Span, parent: &TraceParent) {
    let headers = HashMap::from([("traceparent".to_owned(), parent.as_str().to_owned())]);
    let context = global::get_text_map_propagator(|propagator| propagator.extract(&headers));
    // Refused only where nothing is traced.
    let _ = span.set_parent(context);
}
