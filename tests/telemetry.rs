//! Traces of the program itself, as a collector gets them: OTLP over HTTP, on loopback.

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use axum::{Router, body::Bytes, extract::State, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest, common::v1::any_value::Value, trace::v1::Span,
};
use prost::Message as _;
use tokio::{net::TcpListener, sync::mpsc};

const DEADLINE: Duration = Duration::from_mins(1);

/// The program; killed when the test ends before it does.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn text(span: &Span, key: &str) -> Option<String> {
    let attribute = span.attributes.iter().find(|attribute| attribute.key == key)?;
    match attribute.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        other => panic!("{key}: {other:?}"),
    }
}

/// An address that was free a moment ago.
async fn free() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    listener.local_addr().expect("an address")
}

#[tokio::test]
async fn a_request_is_part_of_its_callers_trace() {
    // Fails when another test of this process was first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (sender, mut received) = mpsc::unbounded_channel();
    let collect = |State(sender): State<mpsc::UnboundedSender<Bytes>>, body: Bytes| async move {
        sender.send(body).expect("the test listens");
    };
    let collector = Router::new().route("/v1/traces", post(collect)).with_state(sender);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let server = tokio::spawn(async move {
        let stop = tokio_util::sync::CancellationToken::new();
        kiln::http::serve(listener, collector, stop).await;
    });

    let folder = tempfile::tempdir().expect("a folder");
    let config = folder.path().join("kiln.toml");
    std::fs::write(&config, format!("[telemetry]\notlp_endpoint = \"{endpoint}\"\n")).expect("writes");
    let address = free().await;
    let child = Command::new(env!("CARGO_BIN_EXE_kiln"))
        .args(["serve", "--roles", "api", "--listen", &address.to_string(), "--config"])
        .arg(&config)
        .stderr(Stdio::null())
        .spawn()
        .expect("starts");
    let mut program = Program(child);
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let ask = || {
        client
            .get(format!("http://{address}/healthz"))
            .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
            .header("x-request-id", "asked-by-the-test")
            .send()
    };
    let answered = async {
        while ask().await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, answered).await.expect("it serves");

    // What is left is sent at the end.
    let pid = nix::unistd::Pid::from_raw(i32::try_from(program.0.id()).expect("a process id"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("lives");
    let body = tokio::time::timeout(DEADLINE, received.recv())
        .await
        .expect("arrives")
        .expect("a body");
    let status = tokio::task::spawn_blocking(move || program.0.wait().expect("ends"))
        .await
        .expect("no panic");
    assert!(status.success(), "{status}");
    server.abort();

    let export = ExportTraceServiceRequest::decode(body).expect("protobuf");
    let resource = export.resource_spans[0].resource.as_ref().expect("a resource");
    let service = resource
        .attributes
        .iter()
        .find(|attribute| attribute.key == "service.name");
    let service = service.and_then(|service| service.value.clone()?.value);
    assert_eq!(service, Some(Value::StringValue("kiln".to_owned())));
    let spans: Vec<_> = export
        .resource_spans
        .into_iter()
        .flat_map(|resource| resource.scope_spans)
        .flat_map(|scope| scope.spans)
        .collect();
    let span = spans
        .iter()
        .find(|span| text(span, "request_id").as_deref() == Some("asked-by-the-test"))
        .expect("the request's span");
    assert_eq!(hex::encode(&span.trace_id), "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(hex::encode(&span.parent_span_id), "00f067aa0ba902b7");
    assert_eq!(text(span, "http.route").as_deref(), Some("/healthz"));
    assert_eq!(text(span, "http.response.status_code").as_deref(), Some("200"));
}
