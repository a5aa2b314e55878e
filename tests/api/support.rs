//! What every test here starts from: the API on a loopback port, and callers with tokens.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use kiln::{
    domain::{clock::SystemClock, project::Scope, queue::QueueConfig, spec::Limits},
    http::{
        App, Cors, Health, Metrics, PeerTimeouts, PushMetrics, Pushes, Random, StreamTiming, UploadConfig, Uploads,
        router, serve_with,
    },
    journal::{History, LogLimits, Logs, Signals, Writer},
    store::{attempt_keys::AttemptKeys, intake::Intake, secrets::seal::Keyring},
};
use prometheus_client::registry::Registry;
use reqwest::{Method, RequestBuilder, Response, StatusCode, header::HeaderMap};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

pub(super) use self::token::token;

#[path = "../shared/token.rs"]
mod token;

/// Nothing here takes longer unless it hangs.
pub(super) const DEADLINE: Duration = Duration::from_secs(30);

/// Waits for a future that must come true.
pub(super) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future)
        .await
        .unwrap_or_else(|_| panic!("never came: {what}"))
}

/// One replica that serves the API.
pub(super) struct TestApp {
    pub(super) pool: PgPool,
    pub(super) signals: Signals,
    pub(super) cluster: tokio::sync::watch::Sender<Result<(), String>>,
    base: String,
    client: reqwest::Client,
    stopping: CancellationToken,
    server: JoinHandle<()>,
    writer: JoinHandle<()>,
}

impl TestApp {
    pub(super) async fn start(pool: &PgPool) -> Self {
        Self::start_with(pool, |_| {}).await
    }

    pub(super) async fn start_with(pool: &PgPool, change: impl FnOnce(&mut App)) -> Self {
        Self::start_limited(pool, LogLimits::default(), change).await
    }

    /// With other limits for logs.
    pub(super) async fn start_limited(pool: &PgPool, limits: LogLimits, change: impl FnOnce(&mut App)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let listener = listener.into_std().expect("a socket");
        Self::start_at(pool, limits, listener, PeerTimeouts::default(), change)
    }

    /// Serves on a socket that may be anywhere.
    pub(super) fn start_at(
        pool: &PgPool,
        limits: LogLimits,
        listener: std::net::TcpListener,
        peers: PeerTimeouts,
        change: impl FnOnce(&mut App),
    ) -> Self {
        // Fails when another test of this process was first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let (signals, _) = Signals::new(pool.clone());
        let (cluster, health) = tokio::sync::watch::channel(Ok(()));
        let stopping = CancellationToken::new();
        let mut registry = Registry::default();
        let (writer, flusher) = Writer::new(pool.clone(), signals.clone());
        let logs = Logs::new(pool.clone(), writer, Arc::new(SystemClock), limits);
        let mut app = App {
            pool: pool.clone(),
            intake: Intake::new(pool.clone()),
            history: History::new(pool.clone()),
            signals,
            limits: Arc::new(Limits::default()),
            queue: QueueConfig::default(),
            uploads: Arc::new(Uploads::new(UploadConfig::default(), true)),
            attempt_keys: AttemptKeys::new(Random::system().bytes()),
            pushes: Pushes::new(logs, PushMetrics::register(&mut Registry::default())),
            clock: Arc::new(SystemClock),
            random: Random::system(),
            keyring: keyring(&[1]),
            health: Health { cluster: Some(health) },
            metrics: Metrics::register(&mut registry),
            registry: Arc::new(registry),
            max_live_builds: 1,
            cors: Cors::default(),
            external_url: None,
            streams: StreamTiming::default(),
            stopping: stopping.clone(),
        };
        change(&mut app);
        let signals = app.signals.clone();
        listener.set_nonblocking(true).expect("a socket");
        let listener = TcpListener::from_std(listener).expect("a socket");
        let base = format!("http://{}", listener.local_addr().expect("an address"));
        let server = tokio::spawn(serve_with(listener, router(app), peers, stopping.clone()));
        let writer = tokio::spawn(flusher.run(stopping.clone()));
        Self {
            pool: pool.clone(),
            signals,
            cluster,
            base,
            client: reqwest::Client::builder().no_proxy().build().expect("a client"),
            stopping,
            server,
            writer,
        }
    }

    /// Where it serves.
    pub(super) fn base(&self) -> &str {
        &self.base
    }

    /// A caller without a token.
    pub(super) fn anonymous(&self) -> Caller<'_> {
        Caller { app: self, token: None }
    }

    /// A caller of the project `default`.
    pub(super) async fn caller(&self, scope: Scope) -> Caller<'_> {
        self.caller_of("default", scope).await
    }

    /// A caller of a project, which is made if it isn't there.
    pub(super) async fn caller_of(&self, project: &str, scope: Scope) -> Caller<'_> {
        let token = token(&self.pool, project, scope, None).await;
        Caller {
            app: self,
            token: Some(token),
        }
    }

    /// A caller with this token.
    pub(super) fn bearer(&self, token: &str) -> Caller<'_> {
        Caller {
            app: self,
            token: Some(token.to_owned()),
        }
    }

    /// Begins to stop, as at SIGTERM.
    pub(super) fn begin_stop(&self) {
        self.stopping.cancel();
    }

    /// Stops, and sees that everything that was open has ended.
    pub(super) async fn stop(self) {
        self.stopping.cancel();
        // The client still keeps its idle connections.
        soon("the server drains", self.server).await.expect("no panic");
        soon("the journal's writer ends", self.writer).await.expect("no panic");
        assert_eq!(self.signals.heads().watched(), 0, "a subscription is left behind");
    }
}

/// Keys made of these bytes; the first encrypts.
pub(super) fn keyring(bytes: &[u8]) -> Keyring {
    let keys: Vec<String> = bytes.iter().map(|byte| BASE64_STANDARD.encode([*byte; 32])).collect();
    Keyring::parse(keys.iter().map(String::as_str)).expect("keys")
}

/// Somebody who calls.
#[derive(Clone)]
pub(super) struct Caller<'a> {
    app: &'a TestApp,
    token: Option<String>,
}

impl Caller<'_> {
    /// The token; empty without one.
    pub(super) fn token(&self) -> &str {
        self.token.as_deref().unwrap_or_default()
    }

    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.app.client.request(method, format!("{}{path}", self.app.base()));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    pub(super) fn get(&self, path: &str) -> RequestBuilder {
        self.request(Method::GET, path)
    }

    pub(super) fn post(&self, path: &str) -> RequestBuilder {
        self.request(Method::POST, path)
    }

    /// A build, as it is after its creation.
    pub(super) async fn create(&self) -> Value {
        let answer = Answer::of(self.post("/v1/builds").json(&minimal())).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
        answer.json()
    }
}

/// The smallest request that is accepted.
pub(super) fn minimal() -> Value {
    json!({
        "source": {"type": "git", "url": "https://git.example/app.git"},
        "images": ["registry.example/team/app:1"],
    })
}

/// The id of a build, as it stands in paths.
pub(super) fn id(build: &Value) -> &str {
    build["id"].as_str().expect("an id")
}

/// An answer that was read to its end.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) text: String,
}

impl Answer {
    pub(super) async fn of(request: RequestBuilder) -> Self {
        let response = soon("an answer", request.send()).await.expect("answered");
        Self::from(response).await
    }

    pub(super) async fn from(response: Response) -> Self {
        let (status, headers) = (response.status(), response.headers().clone());
        let text = soon("the body's end", response.text()).await.expect("a body");
        Self { status, headers, text }
    }

    pub(super) fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .unwrap_or_else(|| panic!("no header {name}"))
            .to_str()
            .expect("text")
    }

    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// Checks that this is a problem document as every one has to be.
    #[track_caller]
    pub(super) fn problem(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        assert_eq!(self.header("content-type"), "application/problem+json");
        let problem = self.json();
        assert_eq!(problem["code"], code, "{problem}");
        assert_eq!(problem["status"], status);
        assert_eq!(problem["type"], format!("urn:kiln:problem:{code}"));
        assert_eq!(problem["request_id"], self.header("x-request-id"));
        for field in ["title", "detail"] {
            assert!(
                problem[field].as_str().is_some_and(|text| !text.is_empty()),
                "{problem}"
            );
        }
        problem
    }
}

/// The places named in a problem document.
pub(super) fn pointers(problem: &Value) -> Vec<&str> {
    let errors = problem["errors"].as_array().expect("errors");
    errors
        .iter()
        .map(|error| error["pointer"].as_str().expect("a pointer"))
        .collect()
}
