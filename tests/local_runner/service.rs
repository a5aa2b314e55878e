//! The whole service with the local runner, seen through its API.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use kiln::{
    app::{
        config::{Config, RunnerKind},
        serve::{ServeError, Service},
    },
    domain::{project::Scope, spec::Builder},
    http::{Random, token::BearerToken},
    runner::local::LocalRunner,
    store::{
        secrets::seal::Keyring,
        tokens::{self, NewToken},
    },
};
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde_json::Value;
use sqlx::PgPool;
use tempfile::TempDir;
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::support::{LIMIT, close, config};

/// A service that carries out builds as processes of this host, and a caller of its.
pub(crate) struct Kiln {
    base: String,
    token: String,
    client: Client,
    runner: LocalRunner,
    shutdown: CancellationToken,
    running: JoinHandle<Result<(), ServeError>>,
    data: TempDir,
}

impl Kiln {
    pub(crate) async fn start(pool: &PgPool) -> Self {
        // Fails when another test of this process was first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let data = tempfile::tempdir().expect("a folder");
        let runner = LocalRunner::start(&config(&data), Vec::new()).expect("starts");
        let mut config = Config {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            runner: RunnerKind::Local,
            ..Config::default()
        };
        config.limits.builders = vec![Builder::Buildah];
        let shutdown = CancellationToken::new();
        let service = Service::new(config, pool.clone(), Keyring::default(), shutdown.clone());
        let (service, _context) = service
            .with_worker(runner.clone(), "test".to_owned())
            .expect("a client for registries");
        let (service, address) = service.with_api().await.expect("listens");
        Self {
            base: format!("http://{address}"),
            token: token(pool).await,
            client: Client::builder().no_proxy().build().expect("a client"),
            runner,
            shutdown,
            running: tokio::spawn(service.run()),
            data,
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.base));
        request.bearer_auth(&self.token)
    }

    /// `POST /v1/uploads`: the upload's id.
    pub(crate) async fn upload(&self, archive: Vec<u8>) -> Value {
        let request = self.request(Method::POST, "/v1/uploads").body(archive);
        answer(request, StatusCode::CREATED).await["id"].clone()
    }

    /// Asks for a build, and waits for its end. Returns it, and its log.
    pub(crate) async fn build(&self, request: &Value) -> (Value, String) {
        let request = self.request(Method::POST, "/v1/builds").json(request);
        let accepted = answer(request, StatusCode::CREATED).await;
        let path = format!("/v1/builds/{}", accepted["id"].as_str().expect("an id"));
        let over = async {
            loop {
                let build = answer(self.request(Method::GET, &format!("{path}?wait=30")), StatusCode::OK).await;
                if matches!(build["state"].as_str(), Some("succeeded" | "failed" | "cancelled")) {
                    return build;
                }
            }
        };
        let build = timeout(LIMIT, over).await.expect("it ends");
        let log = self
            .request(Method::GET, &format!("{path}/logs"))
            .header("accept", "text/plain");
        let log = log.send().await.expect("an answer").text().await.expect("a log");
        (build, log)
    }

    /// Ends the service; nothing may be left.
    pub(crate) async fn stop(self) {
        let folder = self.data.path().join("builds");
        let cleared = async {
            // The end of a build is told before its folder is removed.
            while fs::read_dir(&folder).expect("listed").next().is_some() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(LIMIT, cleared).await.expect("no build's folder is left");
        self.shutdown.cancel();
        let ended = timeout(Duration::from_secs(30), self.running).await.expect("ends");
        ended.expect("no panic").expect("as it was told");
        close(self.runner).await;
    }
}

async fn answer(request: RequestBuilder, status: StatusCode) -> Value {
    let response = timeout(LIMIT, request.send())
        .await
        .expect("in time")
        .expect("an answer");
    let (got, text) = (response.status(), response.text().await.expect("a body"));
    assert_eq!(got, status, "{text}");
    serde_json::from_str(&text).expect("JSON")
}

async fn token(pool: &PgPool) -> String {
    let token = BearerToken::from_random(Random::system().bytes());
    let new = NewToken {
        id: Uuid::now_v7(),
        project: "default".parse().expect("a name"),
        name: "test".to_owned(),
        hash: token.hash(),
        scopes: vec![Scope::BuildsWrite],
        expires_at: None,
    };
    tokens::create(pool, new)
        .await
        .expect("stores")
        .expect("the project exists");
    token.expose().to_owned()
}
