//! The whole service with the local runner, seen through its API.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use kiln::{
    app::{
        config::{Config, RunnerKind},
        serve::{ServeError, Service},
    },
    domain::{project::Scope, spec::Builder},
    runner::{Runner as _, local::LocalRunner},
    store::secrets::seal::Keyring,
};
use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde_json::Value;
use sqlx::PgPool;
use tempfile::TempDir;
use tokio::{task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    support::{Agents, LIMIT, agents, close, config as local},
    token::token,
};

/// A service, and a caller of its.
pub(crate) struct Kiln {
    base: String,
    token: String,
    client: Client,
    /// What carries out builds as processes of this host, where anything does.
    runner: Option<LocalRunner>,
    shutdown: CancellationToken,
    running: JoinHandle<Result<(), ServeError>>,
    data: TempDir,
}

impl Kiln {
    /// A service that carries out builds.
    pub(crate) async fn start(pool: &PgPool) -> Self {
        Self::start_with(pool, |_| {}).await
    }

    /// The same, with a configuration of its own.
    pub(crate) async fn start_with(pool: &PgPool, change: impl FnOnce(&mut Config)) -> Self {
        let data = tempfile::tempdir().expect("a folder");
        let mut config = Self::config();
        config.local = local(&data);
        change(&mut config);
        let runner = LocalRunner::start(&config.local, Vec::new()).expect("starts");
        Self::serve(pool, config, Some(runner), data).await
    }

    /// A service that only takes requests.
    pub(crate) async fn start_without_worker(pool: &PgPool) -> Self {
        let data = tempfile::tempdir().expect("a folder");
        Self::serve(pool, Self::config(), None, data).await
    }

    fn config() -> Config {
        let mut config = Config {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            runner: RunnerKind::Local,
            ..Config::default()
        };
        config.limits.builders = vec![Builder::Buildah];
        config
    }

    async fn serve(pool: &PgPool, config: Config, runner: Option<LocalRunner>, data: TempDir) -> Self {
        // Fails when another test of this process was first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let shutdown = CancellationToken::new();
        let mut service = Service::new(config, pool.clone(), Keyring::default(), shutdown.clone())
            .expect("nothing that could be missing");
        if let Some(runner) = &runner {
            let (with_worker, _context) = service
                .with_worker(runner.clone(), "test".to_owned())
                .expect("a client for registries");
            service = with_worker;
        }
        let (service, address) = service.with_api().await.expect("listens");
        Self {
            base: format!("http://{address}"),
            token: token(pool, "default", Scope::BuildsWrite, None).await,
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

    /// Asks for a build; returns its path.
    pub(crate) async fn create(&self, request: &Value) -> String {
        let request = self.request(Method::POST, "/v1/builds").json(request);
        let accepted = answer(request, StatusCode::CREATED).await;
        format!("/v1/builds/{}", accepted["id"].as_str().expect("an id"))
    }

    /// What is at a path.
    pub(crate) async fn get(&self, path: &str) -> Value {
        answer(self.request(Method::GET, path), StatusCode::OK).await
    }

    /// Waits for the end of a build.
    pub(crate) async fn finished(&self, path: &str) -> Value {
        let over = async {
            loop {
                let build = self.get(&format!("{path}?wait=30")).await;
                if matches!(build["state"].as_str(), Some("succeeded" | "failed" | "cancelled")) {
                    return build;
                }
            }
        };
        timeout(LIMIT, over).await.expect("it ends")
    }

    /// Looks at a path until what is there is as wanted.
    pub(crate) async fn until(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let looking = async {
            loop {
                let seen = self.get(path).await;
                if wanted(&seen) {
                    return seen;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if let Ok(seen) = timeout(LIMIT, looking).await {
            return seen;
        }
        panic!("never as wanted: {:#}", self.get(path).await)
    }

    /// Asks for a build, and waits for its end. Returns it, and its log.
    pub(crate) async fn build(&self, request: &Value) -> (Value, String) {
        let path = self.create(request).await;
        let build = self.finished(&path).await;
        let log = self.log(&path).await;
        (build, log)
    }

    /// What a build has printed so far.
    pub(crate) async fn log(&self, path: &str) -> String {
        let log = self.request(Method::GET, &format!("{path}/logs"));
        let log = log.header("accept", "text/plain").send().await.expect("an answer");
        log.text().await.expect("a log")
    }

    /// The folder that it keeps builds in.
    pub(crate) fn data(&self) -> &Path {
        self.data.path()
    }

    /// Where it is.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// Asks for the end of a build.
    pub(crate) async fn cancel(&self, path: &str) {
        let request = self.request(Method::POST, &format!("{path}/cancel"));
        answer(request, StatusCode::ACCEPTED).await;
    }

    /// Ends the service; nothing may be left.
    pub(crate) async fn stop(self) {
        if let Some(runner) = &self.runner {
            let cleared = async {
                // The end of a build is told before its folder is removed.
                while !runner.list().await.expect("listed").is_empty() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            timeout(LIMIT, cleared).await.expect("no build's folder is left");
        }
        self.shutdown.cancel();
        let ended = timeout(Duration::from_secs(30), self.running).await.expect("ends");
        ended.expect("no panic").expect("as it was told");
        if let Some(runner) = self.runner {
            close(runner).await;
            assert_eq!(agents(self.data.path()), Agents::new());
        }
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
