//! A caller of one replica.

use std::time::Duration;

use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde_json::Value;
use tokio::time::Instant;

use super::{DEADLINE, text};

/// Calls one replica's API with one token.
#[derive(Clone)]
pub(in crate::cluster) struct Api {
    client: Client,
    base: String,
    token: String,
}

impl Api {
    pub(super) fn new(address: &str, token: &str) -> Self {
        let client = Client::builder()
            .connect_timeout(Duration::from_secs(5))
            // A stream sends something at least every 15 seconds.
            .read_timeout(Duration::from_secs(75))
            .build()
            .expect("a client");
        Self {
            client,
            base: format!("http://{address}"),
            token: token.to_owned(),
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.base));
        request.bearer_auth(&self.token)
    }

    pub(super) fn get_request(&self, path: &str) -> RequestBuilder {
        self.request(Method::GET, path)
    }

    /// `POST /v1/builds` with an `Idempotency-Key`, whatever the answer.
    pub(in crate::cluster) async fn try_create(&self, body: &Value, key: &str) -> (StatusCode, Value) {
        let request = self.request(Method::POST, "/v1/builds").header("idempotency-key", key);
        let response = request.json(body).send().await.expect("an answer");
        (response.status(), response.json().await.expect("JSON"))
    }

    /// `POST /v1/uploads`.
    pub(in crate::cluster) async fn upload(&self, archive: Vec<u8>) -> Value {
        let request = self.request(Method::POST, "/v1/uploads").body(archive);
        let response = request.send().await.expect("an answer");
        let (status, upload) = (response.status(), response.json().await.expect("JSON"));
        assert_eq!(status, StatusCode::CREATED, "{upload}");
        upload
    }

    /// `PUT /v1/projects/default/secrets/{name}`.
    pub(in crate::cluster) async fn put_secret(&self, name: &str, kind: &str, data: &Value) {
        let path = format!("/v1/projects/default/secrets/{name}");
        let body = serde_json::json!({"kind": kind, "data": data});
        let request = self.request(Method::PUT, &path).json(&body);
        let response = request.send().await.expect("an answer");
        let (status, text) = (response.status(), response.text().await.expect("a body"));
        assert!(status.is_success(), "{status}: {text}");
    }

    /// `GET /v1/projects/default/secrets`, as text.
    pub(in crate::cluster) async fn secrets(&self) -> String {
        let response = self.get_request("/v1/projects/default/secrets").send().await;
        expect(response, StatusCode::OK).await.to_string()
    }

    /// Asks for a build; returns its id.
    pub(in crate::cluster) async fn create(&self, body: &Value) -> String {
        let response = self.request(Method::POST, "/v1/builds").json(body).send().await;
        let build = expect(response, StatusCode::CREATED).await;
        assert_eq!(build["state"], "queued");
        text(&build, "/id").to_owned()
    }

    /// Asks for a build and waits for its end.
    pub(in crate::cluster) async fn build(&self, body: &Value) -> Value {
        let id = self.create(body).await;
        self.finished(&id).await
    }

    /// `PATCH`: what is as it is afterwards.
    pub(in crate::cluster) async fn patch(&self, path: &str, body: &Value) -> Value {
        let response = self.request(Method::PATCH, path).json(body).send().await;
        expect(response, StatusCode::OK).await
    }

    /// `GET /v1/builds/{id}`.
    pub(in crate::cluster) async fn get(&self, id: &str) -> Value {
        let response = self.get_request(&format!("/v1/builds/{id}")).send().await;
        expect(response, StatusCode::OK).await
    }

    /// `GET /v1/builds/{id}/queue`.
    pub(in crate::cluster) async fn queue(&self, id: &str) -> Value {
        let response = self.get_request(&format!("/v1/builds/{id}/queue")).send().await;
        expect(response, StatusCode::OK).await
    }

    /// `GET /v1/builds/{id}?wait=`: as it is at its end, or when the time is up.
    pub(in crate::cluster) async fn wait(&self, id: &str, seconds: u32) -> Value {
        let path = format!("/v1/builds/{id}?wait={seconds}");
        let response = self.get_request(&path).send().await;
        expect(response, StatusCode::OK).await
    }

    /// Waits for the build's end.
    pub(in crate::cluster) async fn finished(&self, id: &str) -> Value {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let build = self.wait(id, 30).await;
            if matches!(text(&build, "/state"), "succeeded" | "failed" | "cancelled") {
                return build;
            }
            assert!(Instant::now() < deadline, "never ended: {build:#}");
        }
    }

    /// Waits until the build is in this state.
    pub(in crate::cluster) async fn reaches(&self, id: &str, state: &str) -> Value {
        super::eventually(&format!("the build is {state}"), DEADLINE, || async {
            let build = self.get(id).await;
            let now = text(&build, "/state");
            let over = matches!(now, "succeeded" | "failed" | "cancelled");
            assert!(now == state || !over, "ended before it was {state}: {build:#}");
            (now == state).then_some(build)
        })
        .await
    }

    /// `GET /v1/builds` with this query: the builds.
    pub(in crate::cluster) async fn list(&self, query: &str) -> Vec<Value> {
        let response = self.get_request(&format!("/v1/builds?{query}")).send().await;
        let page = expect(response, StatusCode::OK).await;
        page["items"].as_array().expect("a list of builds").clone()
    }

    /// `POST /v1/builds/{id}/cancel`.
    pub(in crate::cluster) async fn cancel(&self, id: &str) -> Value {
        let path = format!("/v1/builds/{id}/cancel");
        let response = self.request(Method::POST, &path).send().await;
        expect(response, StatusCode::ACCEPTED).await
    }

    /// `GET /v1/builds/{id}/logs` as text.
    pub(in crate::cluster) async fn logs(&self, id: &str) -> String {
        let request = self.get_request(&format!("/v1/builds/{id}/logs"));
        let response = request.header("accept", "text/plain").send().await.expect("an answer");
        assert_eq!(response.status(), StatusCode::OK);
        response.text().await.expect("the whole log")
    }

    /// `GET /v1/builds/{id}/logs` as text, whatever the answer; `None` for a body that is cut off.
    pub(in crate::cluster) async fn try_logs(&self, id: &str) -> (StatusCode, Option<String>) {
        let request = self.get_request(&format!("/v1/builds/{id}/logs"));
        let response = request.header("accept", "text/plain").send().await.expect("an answer");
        (response.status(), response.text().await.ok())
    }

    /// `GET /readyz`: whether it can do its work, and what it says.
    pub(in crate::cluster) async fn ready(&self) -> (bool, Value) {
        let response = self.get_request("/readyz").send().await.expect("an answer");
        let ready = match response.status() {
            StatusCode::OK => true,
            StatusCode::SERVICE_UNAVAILABLE => false,
            other => panic!("/readyz answered {other}"),
        };
        (ready, response.json().await.expect("JSON"))
    }

    /// The value of a counter in `/metrics`.
    pub(in crate::cluster) async fn counter(&self, name: &str) -> f64 {
        let response = self.get_request("/metrics").send().await.expect("an answer");
        let metrics = response.text().await.expect("text");
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {metrics}"))
            .parse()
            .expect("a number")
    }
}

async fn expect(response: reqwest::Result<Response>, status: StatusCode) -> Value {
    let response = response.expect("an answer");
    let got = response.status();
    let body = response.text().await.expect("the answer's body");
    assert_eq!(got, status, "{body}");
    serde_json::from_str(&body).expect("JSON")
}
