//! Counts what Kiln asks of the API server: it stands between them.

use std::{
    collections::BTreeMap,
    fs,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use kube::{Client, client};
use serde_json::json;
use tempfile::TempDir;
use tokio::task::JoinHandle;

const LARGEST: usize = 16 << 20;

/// Stands there until it is dropped.
pub(crate) struct Proxy {
    counts: Counts,
    folder: TempDir,
    task: JoinHandle<()>,
}

/// Calls by method and what they are about.
type Counts = Arc<Mutex<BTreeMap<String, u64>>>;

#[derive(Clone)]
struct Way {
    server: Client,
    counts: Counts,
}

impl Proxy {
    pub(crate) async fn start(server: Client, namespace: &str) -> anyhow::Result<Self> {
        let counts = Counts::default();
        let way = Way {
            server,
            counts: Arc::clone(&counts),
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let router = Router::new().fallback(forward).with_state(way);
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                eprintln!("the proxy broke: {error}");
            }
        });
        let folder = tempfile::tempdir()?;
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "proxy",
            "clusters": [{"name": "proxy", "cluster": {"server": format!("http://{address}")}}],
            "users": [{"name": "proxy", "user": {}}],
            "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "proxy", "namespace": namespace}}],
        });
        fs::write(folder.path().join("kubeconfig"), serde_json::to_vec(&kubeconfig)?)?;
        Ok(Self { counts, folder, task })
    }

    /// What Kiln gets as `KUBECONFIG`.
    pub(crate) fn kubeconfig(&self) -> String {
        self.folder.path().join("kubeconfig").to_string_lossy().into_owned()
    }

    /// The calls since the last time.
    pub(crate) fn take(&self) -> BTreeMap<String, u64> {
        std::mem::take(&mut *self.counts.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn forward(State(way): State<Way>, request: Request) -> Response {
    let query = request.uri().query().unwrap_or_default();
    let method = if query.contains("watch=true") {
        "WATCH"
    } else {
        request.method().as_str()
    };
    // What it is about stands after the namespace, or where there is none, at the end of the path.
    let path = request.uri().path();
    let about = path
        .split_once("/namespaces/")
        .and_then(|(_, rest)| rest.split('/').nth(1))
        .or_else(|| path.rsplit('/').next());
    let call = format!("{method} {}", about.unwrap_or_default());
    *way.counts
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .entry(call)
        .or_default() += 1;
    match pass(&way.server, request).await {
        Ok(response) => response,
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}

async fn pass(server: &Client, request: Request) -> anyhow::Result<Response> {
    let (mut head, body) = request.into_parts();
    head.headers.remove("host");
    head.headers.remove("content-length");
    head.headers.remove("transfer-encoding");
    let body = to_bytes(body, LARGEST).await?;
    let request = axum::http::Request::from_parts(head, client::Body::from(body.to_vec()));
    let (mut head, body) = server.send(request).await?.into_parts();
    head.headers.remove("content-length");
    head.headers.remove("transfer-encoding");
    Ok(Response::from_parts(head, Body::new(body)))
}
