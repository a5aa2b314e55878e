//! An API server played by a test: it expects certain requests in order and gives the answers that were laid ready.

use std::{
    collections::VecDeque,
    convert::Infallible,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{Inner, config::Config, connection::Connection, index::Index, pod};
use crate::domain::id::AttemptId;

pub(super) type Answer = http::Response<UnsyncBoxBody<Bytes, Infallible>>;

/// A request that is expected: its beginning, as in `GET /api/v1/…`, and the answer.
type Expected = (String, Answer);

/// The server's book.
#[derive(Clone, Default)]
pub(super) struct Stub(Arc<Mutex<Book>>);

#[derive(Default)]
struct Book {
    expected: VecDeque<Expected>,
    seen: Vec<(String, Value)>,
}

impl Stub {
    /// Lays an answer ready. A request is told by its method and the end of its path, such as `GET pods/x/log`.
    pub(super) fn expect(&self, request: impl Into<String>, answer: Answer) -> &Self {
        self.0.lock().unwrap().expected.push_back((request.into(), answer));
        self
    }

    /// The requests so far, with their bodies.
    pub(super) fn seen(&self) -> Vec<(String, Value)> {
        self.0.lock().unwrap().seen.clone()
    }

    /// Whether every answer was asked for.
    pub(super) fn is_done(&self) -> bool {
        self.0.lock().unwrap().expected.is_empty()
    }

    /// What the runner's parts share, with this server at the other end.
    pub(super) fn inner(&self) -> Arc<Inner> {
        Arc::new(Inner {
            config: Config::default(),
            registries: Vec::new(),
            connection: Connection::to(self.client()),
            index: Arc::new(Index::default()),
            launches: Semaphore::new(8),
            logs: Semaphore::new(8),
            shutdown: CancellationToken::new(),
        })
    }

    fn client(&self) -> Client {
        let stub = self.clone();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let stub = stub.clone();
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                Ok::<_, Infallible>(stub.answer(&head.method, &head.uri.to_string(), &body))
            }
        });
        Client::new(service, "builds")
    }

    fn answer(&self, method: &http::Method, uri: &str, body: &Bytes) -> Answer {
        let request = format!("{method} {}", uri.trim_start_matches("/api/v1/namespaces/builds/"));
        let mut book = self.0.lock().unwrap();
        book.seen
            .push((request.clone(), serde_json::from_slice(body).unwrap_or_default()));
        match book.expected.pop_front() {
            Some((expected, answer)) if request.starts_with(&expected) => answer,
            Some((expected, _)) => status(
                418,
                "Unexpected",
                &format!("{request} came, {expected} was expected"),
                "",
            ),
            None => status(418, "Unexpected", &format!("{request} came, nothing was expected"), ""),
        }
    }
}

/// An answer with JSON.
pub(super) fn answer(code: u16, body: &Value) -> Answer {
    let mut answer = text(&[&body.to_string()]);
    *answer.status_mut() = http::StatusCode::from_u16(code).unwrap();
    answer
}

/// A refusal in Kubernetes' form.
pub(super) fn status(code: u16, reason: &str, message: &str, kind: &str) -> Answer {
    answer(
        code,
        &json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason,
            "message": message, "details": {"kind": kind},
        }),
    )
}

/// A stream of bytes that ends.
pub(super) fn text(chunks: &[&str]) -> Answer {
    let chunks: Vec<_> = chunks
        .iter()
        .map(|chunk| Bytes::copy_from_slice(chunk.as_bytes()))
        .collect();
    streamed(stream::iter(chunks))
}

/// A stream of bytes that stays open.
pub(super) fn endless(chunk: &str) -> Answer {
    let first = Bytes::copy_from_slice(chunk.as_bytes());
    streamed(stream::iter([first]).chain(stream::pending()))
}

/// An answer that never comes: the request hangs in its body.
pub(super) fn silence() -> Answer {
    streamed(stream::pending())
}

fn streamed(chunks: impl Stream<Item = Bytes> + Send + 'static) -> Answer {
    let frames = chunks.map(|chunk| Ok(Frame::data(chunk)));
    http::Response::new(StreamBody::new(frames).boxed_unsync())
}

/// A pod of ours with this status.
pub(super) fn pod_json(attempt: AttemptId, installation: &str, status: &Value) -> Value {
    json!({
        "metadata": {
            "name": pod::name(attempt), "uid": "uid-1", "creationTimestamp": "2026-11-23T14:00:00Z",
            "labels": {
                pod::BUILD: attempt.build.to_string(), pod::ATTEMPT: attempt.number.to_string(),
                pod::INSTALLATION: installation,
            },
        },
        "spec": {"containers": [], "nodeName": "node1"},
        "status": status,
    })
}
