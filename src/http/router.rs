//! The table of operations, and what surrounds every one of them.

use std::any::Any;

use axum::{
    Router,
    extract::Request,
    http::{Extensions, HeaderMap, StatusCode, Version, header},
    middleware,
    response::{IntoResponse, Response},
};
use tower::ServiceBuilder;
use tower_http::{
    catch_panic::CatchPanicLayer,
    compression::{
        CompressionLayer,
        predicate::{Predicate as _, SizeAbove},
    },
    trace::TraceLayer,
};
use utoipa::{
    Modify, OpenApi,
    openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    attempts, builds,
    error::{ApiError, Missing},
    events, hooks, metrics, nodes, operations, problem, projects,
    request_id::{self, RequestId},
    state::App,
    stream_tickets, strict, trace, uploads,
};
use crate::domain::event;

#[derive(OpenApi)]
#[openapi(
    info(title = "Kiln", description = "A container-image build service: one pod per build, logs and status over SSE."),
    tags(
        (name = "builds", description = "Asking for images and following how they are made"),
        (name = "uploads", description = "Sending archives to be built from"),
        (name = "projects", description = "Who owns builds, and who may do what"),
        (name = "hooks", description = "Building what forges and registries tell of"),
        (name = "operations", description = "For operators and tools"),
    ),
    // What streams carry isn't reached from any answer.
    components(schemas(event::Change, event::Status, event::Step, event::Log, event::Gap, event::End)),
    modifiers(&Bearer),
)]
struct Description;

/// Every operation needs a bearer token unless it says otherwise.
struct Bearer;

impl Modify for Bearer {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("A token of Kiln, `kiln_…`"))
            .build();
        openapi
            .components
            .get_or_insert_default()
            .add_security_scheme("bearer", SecurityScheme::Http(scheme));
        openapi.security = Some(vec![SecurityRequirement::new("bearer", Vec::<String>::new())]);
    }
}

/// Below this many bytes compression costs more than it saves.
const COMPRESS_FROM: u64 = 1024;

/// Whether an answer may be compressed: documents, and not what is sent while it comes into being or by ranges.
fn compressible(_: StatusCode, _: Version, headers: &HeaderMap, _: &Extensions) -> bool {
    let form = headers.get(header::CONTENT_TYPE).and_then(|form| form.to_str().ok());
    let form = form.and_then(|form| form.split(';').next()).unwrap_or_default();
    matches!(
        form,
        "application/json" | "application/problem+json" | "application/openmetrics-text" | "text/html"
    )
}

fn table() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(builds::create::create, builds::list::list))
        .routes(routes!(builds::get::get))
        .routes(routes!(builds::cancel::cancel))
        .routes(routes!(builds::retry::retry))
        .routes(routes!(builds::queue::queue))
        .routes(routes!(builds::events::events))
        .routes(routes!(builds::logs::logs))
        .routes(routes!(events::events))
        .routes(routes!(stream_tickets::create))
        .routes(routes!(uploads::create::create))
        .routes(routes!(uploads::get::get, uploads::delete::delete))
        .routes(routes!(projects::create::create, projects::list::list))
        .routes(routes!(projects::get::get, projects::update::update))
        .routes(routes!(projects::tokens::create::create, projects::tokens::list::list))
        .routes(routes!(projects::tokens::delete::delete))
        .routes(routes!(projects::secrets::list::list))
        .routes(routes!(
            projects::secrets::put::put,
            projects::secrets::get::get,
            projects::secrets::delete::delete
        ))
        .routes(routes!(nodes::list::list))
        .routes(routes!(nodes::delete::delete))
        .routes(routes!(projects::hooks::create::create, projects::hooks::list::list))
        .routes(routes!(
            projects::hooks::get::get,
            projects::hooks::update::update,
            projects::hooks::delete::delete
        ))
        .routes(routes!(projects::hooks::rotate::rotate))
        .routes(routes!(
            projects::hooks::deliveries::create::create,
            projects::hooks::deliveries::list::list
        ))
        .routes(routes!(projects::hooks::deliveries::redeliver::redeliver))
        .routes(routes!(hooks::receive::receive))
        .routes(routes!(operations::healthz::healthz))
        .routes(routes!(operations::readyz::readyz))
        .routes(routes!(operations::metrics::metrics))
        .routes(routes!(operations::openapi::openapi))
        .routes(routes!(operations::docs::docs))
        // For attempts only, so not described.
        .route(
            "/internal/v1/attempts/{attempt}/upload",
            axum::routing::get(attempts::upload::get),
        )
        .route(
            "/internal/v1/attempts/{attempt}/log",
            axum::routing::post(attempts::log::push),
        )
        .route(
            "/internal/v1/attempts/{attempt}/log/seal",
            axum::routing::post(attempts::log::seal::seal),
        )
}

/// The description of the API.
pub fn openapi() -> utoipa::openapi::OpenApi {
    table().into_openapi()
}

/// The API.
pub fn router(app: App) -> Router {
    let (router, _) = table().split_for_parts();
    // Answers to preflights aren't counted by route: they say nothing about it.
    let cors = ServiceBuilder::new().option_layer(app.cors.layer());
    router
        .fallback(|| async { ApiError::NotFound(Missing::Route) })
        .method_not_allowed_fallback(|| async { ApiError::MethodNotAllowed })
        // The last one added sees a request first.
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn(strict::refuse_parameters))
        .layer(middleware::from_fn_with_state(app.metrics.clone(), problem::render))
        .layer(cors)
        .layer(CompressionLayer::new().compress_when(SizeAbove::new(COMPRESS_FROM).and(compressible)))
        .layer(middleware::from_fn_with_state(app.metrics.clone(), metrics::observe))
        .layer(
            TraceLayer::new_for_http()
                .make_span_with(|request: &Request| {
                    let id = request.extensions().get::<RequestId>().map_or("", RequestId::as_str);
                    // Without the query, which may hold a ticket.
                    let span = tracing::info_span!("request", request_id = id, method = %request.method(), path = request.uri().path());
                    trace::join(&span, request);
                    span
                })
                .on_request(())
                .on_response(|response: &Response, latency: std::time::Duration, span: &tracing::Span| {
                    trace::answered(span, response.status());
                    tracing::debug!(status = response.status().as_u16(), latency_ms = latency.as_secs_f64() * 1e3, "answered");
                })
                // Told by `problem`, with the cause.
                .on_failure(()),
        )
        .layer(middleware::from_fn(request_id::assign))
        .with_state(app)
}

#[expect(clippy::needless_pass_by_value, reason = "the layer's signature")]
fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    ApiError::Panic(message.to_owned()).into_response()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn references<'v>(value: &'v Value, found: &mut Vec<&'v str>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Value::as_str));
                fields.values().for_each(|field| references(field, found));
            }
            Value::Array(elements) => elements.iter().for_each(|element| references(element, found)),
            _ => {}
        }
    }

    #[test]
    fn the_description_is_whole() {
        let document = serde_json::to_value(openapi()).expect("serialises");
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(!found.is_empty());
        for reference in found {
            let pointer = reference.strip_prefix('#').expect("a local reference");
            assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
        }
        let required = &document["components"]["schemas"]["CreateBuild"]["required"];
        assert_eq!(*required, serde_json::json!(["source"]));
    }
}
