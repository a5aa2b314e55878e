//! Traces: OTLP over HTTP, on loopback.

use std::path::Path;

use axum::{Router, body::Bytes, extract::State, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest, common::v1::any_value::Value, trace::v1::Span,
};
use prost::Message as _;
use reqwest::Method;
use serde_json::json;
use sqlx::PgPool;
use tokio::{net::TcpListener, sync::mpsc};
use tokio_util::task::AbortOnDropHandle;

use super::program::Program;

/// The caller's trace and span.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

fn text(span: &Span, key: &str) -> Option<String> {
    let attribute = span.attributes.iter().find(|attribute| attribute.key == key)?;
    match attribute.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        other => panic!("{key}: {other:?}"),
    }
}

/// A collector that keeps what it is sent.
struct Collector {
    endpoint: String,
    received: mpsc::UnboundedReceiver<Bytes>,
    _server: AbortOnDropHandle<()>,
}

impl Collector {
    async fn start() -> Self {
        let (sender, received) = mpsc::unbounded_channel();
        let collect = |State(sender): State<mpsc::UnboundedSender<Bytes>>, body: Bytes| async move {
            sender.send(body).expect("the test listens");
        };
        let collector = Router::new().route("/v1/traces", post(collect)).with_state(sender);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let server = tokio::spawn(async move { axum::serve(listener, collector).await.expect("serves") });
        Self {
            endpoint,
            received,
            _server: AbortOnDropHandle::new(server),
        }
    }

    /// All spans that have arrived, once nobody sends any more. Each is the service's.
    fn spans(mut self) -> Vec<Span> {
        let mut spans = Vec::new();
        while let Ok(body) = self.received.try_recv() {
            let export = ExportTraceServiceRequest::decode(body).expect("protobuf");
            for resource in export.resource_spans {
                let attributes = resource.resource.expect("a resource").attributes;
                let service = attributes.into_iter().find(|attribute| attribute.key == "service.name");
                let service = service.and_then(|service| service.value?.value);
                assert_eq!(service, Some(Value::StringValue("kiln".to_owned())));
                spans.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
            }
        }
        spans
    }
}

#[sqlx::test]
async fn a_build_is_part_of_its_callers_trace(pool: PgPool) {
    let collector = Collector::start().await;
    let data = tempfile::tempdir().expect("a folder");
    let agent = Path::new(env!("CARGO_BIN_EXE_kiln")).with_file_name("kiln-agent");
    assert!(agent.exists(), "first build the agent: cargo build --workspace --bins");
    let config = format!(
        "runner = \"local\"\n[telemetry]\notlp_endpoint = \"{}\"\n[local]\ndata_dir = {:?}\nagent = {agent:?}\n",
        collector.endpoint,
        data.path(),
    );
    let program = Program::start(&pool, "api,worker", &config).await;
    let request = json!({
        "source": {"type": "inline", "files": {"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"}},
        "push": false, "builder": "buildah",
    });
    let traced = |request: reqwest::RequestBuilder, id: &'static str| {
        request
            .header("traceparent", format!("00-{TRACE}-{PARENT}-01"))
            .header("x-request-id", id)
    };
    let post = traced(program.request(Method::POST, "/v1/builds").json(&request), "created");
    let build: serde_json::Value = post.send().await.expect("an answer").json().await.expect("JSON");
    let id = build["id"].as_str().expect("an id");
    let over = program.request(Method::GET, &format!("/v1/builds/{id}?wait=60"));
    let over: serde_json::Value = over.send().await.expect("an answer").json().await.expect("JSON");
    assert_eq!(over["state"], "succeeded", "{over:#}");
    // One that nobody traces is the beginning of a trace.
    let alone = program
        .request(Method::POST, "/v1/builds")
        .json(&request)
        .header("x-request-id", "alone");
    let alone: serde_json::Value = alone.send().await.expect("an answer").json().await.expect("JSON");
    let alone_id = alone["id"].as_str().expect("an id");
    let over = program.request(Method::GET, &format!("/v1/builds/{alone_id}?wait=60"));
    over.send().await.expect("an answer").bytes().await.expect("a body");
    program.end().await;

    let spans = collector.spans();
    let request = |id: &str| {
        let span = spans
            .iter()
            .find(|span| text(span, "request_id").as_deref() == Some(id));
        span.expect("the request's span")
    };
    let created = request("created");
    assert_eq!(hex::encode(&created.trace_id), TRACE);
    assert_eq!(hex::encode(&created.parent_span_id), PARENT);
    assert_eq!(text(created, "http.route").as_deref(), Some("/v1/builds"));
    assert_eq!(text(created, "http.response.status_code").as_deref(), Some("201"));

    let attempt = |build: &str| {
        let of = |span: &&Span| span.name == "attempt" && text(span, "build.id").as_deref() == Some(build);
        spans.iter().find(of).expect("the attempt's span")
    };
    let attempted = attempt(id);
    assert_eq!(hex::encode(&attempted.trace_id), TRACE);
    assert_eq!(attempted.parent_span_id, created.span_id);
    assert_eq!(text(attempted, "attempt").as_deref(), Some("1"));
    assert!(attempted.end_time_unix_nano > attempted.start_time_unix_nano);
    assert!(attempted.start_time_unix_nano >= created.start_time_unix_nano);

    let (alone, attempted) = (request("alone"), attempt(alone_id));
    assert!(alone.parent_span_id.is_empty());
    assert_ne!(hex::encode(&alone.trace_id), TRACE);
    assert_eq!(
        (&attempted.trace_id, &attempted.parent_span_id),
        (&alone.trace_id, &alone.span_id)
    );
}
