//! Registries that don't take an image.
//!
//! One wants a password, one is read-only, one isn't there: real ones. The refusals that those can't be made to give
//! come from a proxy before the real registry, in the words of the OCI distribution specification.

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{Request, State},
    http::{Method, StatusCode},
    response::{IntoResponse, Response},
};
use futures::TryStreamExt;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;
use toml::Table;

use super::{BUILDERS, Case, Installation, by, expect_failures, inline, run};
use crate::cluster::support::{eventually, variable};

fn push(builder: &str, image: &str) -> Value {
    let mut request = by(builder, inline("FROM busybox\nRUN echo built\n"));
    request["push"] = json!(true);
    request["images"] = json!([image]);
    request
}

/// Kiln is told that these speak plain HTTP.
fn insecure(config: &mut Table, hosts: &[&str]) {
    let registries = config["registry"].as_array_mut().expect("a list");
    for &host in hosts {
        let registry = [("host".to_owned(), host.into()), ("insecure".to_owned(), true.into())];
        registries.push(Table::from_iter(registry).into());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_push_says_whose_refusal_it_is() {
    let host = variable("KILN_TEST_HOST_IP");
    let nowhere = format!("{host}:5999");
    let read_only = ReadOnly::start(&host).await;
    let refusals = [
        (
            StatusCode::FORBIDDEN,
            "DENIED",
            "requested access to the resource is denied",
        ),
        (
            StatusCode::NOT_FOUND,
            "NAME_UNKNOWN",
            "repository name not known to registry",
        ),
        (StatusCode::BAD_REQUEST, "NAME_INVALID", "invalid repository name"),
    ];
    let mut refusing = Vec::new();
    for (status, code, message) in refusals {
        refusing.push(Refusing::start(&host, status, code, message).await);
    }
    let [denied, unknown, invalid] = refusing.as_slice() else {
        unreachable!("three refusals");
    };
    let hosts = [
        &nowhere,
        &read_only.address,
        &denied.address,
        &unknown.address,
        &invalid.address,
    ];
    run(
        4,
        |config| insecure(config, &hosts.map(String::as_str)),
        async |kiln: &Installation| {
            let mut cases = Vec::new();
            for builder in BUILDERS {
                for (registry, words) in [
                    (&variable("KILN_TEST_AUTH_REGISTRY"), "wants credentials"),
                    (&denied.address, "doesn't let"),
                    (&unknown.address, "Create it first"),
                    (&invalid.address, "doesn't take that repository name"),
                    (&read_only.address, "takes no images at the moment"),
                    (&nowhere, "nothing answers"),
                ] {
                    let image = format!("{registry}/{}/{builder}:1", kiln.name);
                    cases.push(Case::new(push(builder, &image), "push_failed", &[&image, words]));
                }
            }
            expect_failures(kiln, cases).await;
        },
    )
    .await;
}

/// A proxy before the cluster's registry that refuses uploads.
struct Refusing {
    address: String,
    _server: AbortOnDropHandle<()>,
}

#[derive(Clone)]
struct Refusal {
    client: reqwest::Client,
    status: StatusCode,
    code: &'static str,
    message: &'static str,
}

impl Refusing {
    async fn start(host: &str, status: StatusCode, code: &'static str, message: &'static str) -> Self {
        let listener = TcpListener::bind((host, 0)).await.expect("a port");
        let address = listener.local_addr().expect("its address").to_string();
        let router = Router::new().fallback(answer).with_state(Refusal {
            client: reqwest::Client::new(),
            status,
            code,
            message,
        });
        let server = tokio::spawn(async move { axum::serve(listener, router).await.expect("serves") });
        Self {
            address,
            _server: AbortOnDropHandle::new(server),
        }
    }
}

async fn answer(State(refusal): State<Refusal>, request: Request) -> Response {
    let path = request.uri().path_and_query().expect("a path").to_string();
    if *request.method() == Method::POST {
        let errors = json!({"errors": [{"code": refusal.code, "message": refusal.message, "detail": {}}]});
        return (refusal.status, Json(errors)).into_response();
    }
    let url = format!("http://{}{path}", variable("KILN_TEST_REGISTRY"));
    let (head, body) = request.into_parts();
    let upstream = refusal.client.request(head.method, url).headers(head.headers);
    let body = reqwest::Body::wrap_stream(body.into_data_stream());
    let answer = upstream.body(body).send().await.expect("the registry answers");
    let mut response = Response::builder().status(answer.status());
    *response.headers_mut().expect("no error yet") = answer.headers().clone();
    let body = Body::from_stream(answer.bytes_stream().map_err(std::io::Error::other));
    response.body(body).expect("a response")
}

/// A real registry in maintenance.
struct ReadOnly {
    address: String,
    server: Child,
    _folder: TempDir,
}

impl ReadOnly {
    async fn start(host: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let port = {
            let free = TcpListener::bind((host, 0)).await.expect("a port");
            free.local_addr().expect("its address").port()
        };
        let address = format!("{host}:{port}");
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n  maintenance: {{readonly: {{enabled: true}}}}\nhttp: {{addr: \"{address}\"}}\n",
            folder.path().display()
        );
        let file = folder.path().join("config.yaml");
        std::fs::write(&file, config).expect("a file");
        let server = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is there, as for the cluster's own registries");
        eventually("the registry answers", Duration::from_secs(10), || async {
            reqwest::get(format!("http://{address}/v2/")).await.ok()
        })
        .await;
        Self {
            address,
            server,
            _folder: folder,
        }
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
