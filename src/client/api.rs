//! Calls to the service. Every answer that isn't a success becomes a [`ClientError`] in its own words.

use std::time::Duration;

use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, header};
use serde::de::DeserializeOwned;
use serde_json::{Value, value::RawValue};
use url::Url;

use super::{
    error::ClientError,
    problem::Problem,
    settings::{Settings, Token},
    wire::{Items, Project},
};

/// How long a connection may take to come about.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long an answer may take; longer than any wait that is asked for.
const ANSWER_LIMIT: Duration = Duration::from_secs(90);
/// How often a POST that may be repeated is, and the pause before the first repetition.
const REPETITIONS: u32 = 5;
pub(super) const PAUSE: Duration = Duration::from_millis(500);
/// The longest pause that a service may ask for.
const LONGEST_ASKED: Duration = Duration::from_mins(1);

/// The service, for one caller.
#[derive(Clone, Debug)]
pub(super) struct Api {
    client: Client,
    url: Url,
    token: Token,
}

impl Api {
    pub(super) fn new(settings: &Settings) -> Result<Self, ClientError> {
        // Fails when it was installed before.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let loopback = match settings.url.host() {
            Some(url::Host::Ipv4(address)) => address.is_loopback(),
            Some(url::Host::Ipv6(address)) => address.is_loopback(),
            Some(url::Host::Domain(name)) => name == "localhost",
            None => false,
        };
        let mut builder = Client::builder()
            .user_agent(concat!("kiln/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_LIMIT)
            // A token is for the service that was named, and for no other.
            .redirect(reqwest::redirect::Policy::none());
        if loopback {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|source| ClientError::Unreachable {
            url: settings.url.clone(),
            source,
        })?;
        Ok(Self {
            client,
            url: settings.url.clone(),
            token: settings.token.clone(),
        })
    }

    /// The service's address.
    pub(super) const fn url(&self) -> &Url {
        &self.url
    }

    /// A request to the path of these segments, below the service's address.
    pub(super) fn request(&self, method: Method, segments: &[&str]) -> RequestBuilder {
        let mut url = self.url.clone();
        // Addresses are http or https, whose paths have segments.
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        self.client.request(method, url).bearer_auth(self.token.expose())
    }

    pub(super) fn get(&self, segments: &[&str]) -> RequestBuilder {
        self.request(Method::GET, segments)
    }

    pub(super) fn post(&self, segments: &[&str]) -> RequestBuilder {
        self.request(Method::POST, segments)
    }

    /// Sends a request whose answer comes at once.
    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        self.send_unlimited(request.timeout(ANSWER_LIMIT)).await
    }

    /// Sends a request that takes as long as it takes.
    pub(super) async fn send_unlimited(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let response = request.send().await.map_err(|source| self.unreachable(source))?;
        if response.status().is_success() {
            Ok(response)
        } else {
            Err(self.refusal(response).await)
        }
    }

    fn unreachable(&self, source: reqwest::Error) -> ClientError {
        ClientError::Unreachable {
            url: self.url.clone(),
            source: source.without_url(),
        }
    }

    fn not_kiln(&self, what: impl Into<String>) -> ClientError {
        ClientError::NotKiln {
            url: self.url.clone(),
            what: what.into(),
        }
    }

    async fn refusal(&self, response: Response) -> ClientError {
        let status = response.status();
        if status.is_redirection() {
            let to = response.headers().get(header::LOCATION).and_then(|to| to.to_str().ok());
            return self.not_kiln(format!("it redirects to {}", to.unwrap_or("somewhere else")));
        }
        let retry_after = response.headers().get(header::RETRY_AFTER);
        let retry_after = retry_after.and_then(|seconds| seconds.to_str().ok()?.parse().ok());
        let document = response.bytes().await.ok();
        match document.and_then(|bytes| serde_json::from_slice::<Problem>(&bytes).ok()) {
            Some(mut problem) if !problem.code.is_empty() => {
                problem.status = status.as_u16();
                problem.retry_after = retry_after.map(Duration::from_secs);
                if problem.lacks_project() {
                    problem.projects = self.projects().await;
                }
                ClientError::Problem(Box::new(problem))
            }
            _ => self.not_kiln(status.to_string()),
        }
    }

    /// Sends a request and reads the JSON that it is answered with.
    pub(super) async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, ClientError> {
        let response = self.send(request).await?;
        self.body(response).await
    }

    /// The JSON of an answer.
    pub(super) async fn body<T: DeserializeOwned>(&self, response: Response) -> Result<T, ClientError> {
        let bytes = response.bytes().await.map_err(|source| self.unreachable(source))?;
        serde_json::from_slice(&bytes).map_err(|error| self.not_kiln(error.to_string()))
    }

    /// Sends a POST that has an `Idempotency-Key`, again if need be: whatever became of the first one, there is one build.
    pub(super) async fn post_once(
        &self,
        segments: &[&str],
        key: &str,
        body: &Value,
    ) -> Result<Box<RawValue>, ClientError> {
        let mut left = REPETITIONS;
        let mut pause = PAUSE;
        loop {
            let request = self.post(segments).header("Idempotency-Key", key).json(body);
            let error = match self.json(request).await {
                Ok(answer) => return Ok(answer),
                Err(ClientError::Problem(mut problem)) => {
                    problem.request = Some(body.clone());
                    ClientError::Problem(problem)
                }
                Err(error) => error,
            };
            let passing = match &error {
                // Where nothing listens, nothing was begun.
                ClientError::Unreachable { source, .. } => !source.is_connect() || left < REPETITIONS,
                ClientError::Problem(problem) => {
                    problem.status >= 500 || problem.status == 429 || problem.code == "idempotency_key_in_flight"
                }
                _ => false,
            };
            if !passing || left == 0 {
                return Err(error);
            }
            left -= 1;
            tokio::time::sleep(wait_after(&error, pause)).await;
            pause *= 2;
        }
    }

    /// The projects that the token sees, as far as they can be had.
    async fn projects(&self) -> Vec<String> {
        let request = self.get(&["v1", "projects"]).timeout(ANSWER_LIMIT);
        let Ok(response) = request.send().await else {
            return Vec::new();
        };
        let seen: Result<Items<Project>, _> = self.body(response).await;
        seen.map(|seen| seen.items.into_iter().map(|project| project.name).collect())
            .unwrap_or_default()
    }

    /// The project that a command is about: the one that was named, or the only one that the token sees.
    pub(super) async fn project(&self, settings: &Settings) -> Result<String, ClientError> {
        if let Some(project) = &settings.project {
            return Ok(project.to_string());
        }
        let seen: Items<Project> = self.json(self.get(&["v1", "projects"])).await?;
        match seen.items.as_slice() {
            [project] => Ok(project.name.clone()),
            projects => {
                let names: Vec<_> = projects.iter().map(|project| project.name.as_str()).collect();
                Err(ClientError::usage(format!(
                    "which project? name it with --project, KILN_PROJECT or in the configuration file: {}",
                    names.join(", ")
                )))
            }
        }
    }

    /// Opens a stream. `None` when all of it was sent before.
    pub(super) async fn stream(&self, request: RequestBuilder) -> Result<Option<Response>, ClientError> {
        let sent = tokio::time::timeout(ANSWER_LIMIT, self.send_unlimited(request)).await;
        let response = sent.map_err(|_| ClientError::Lost {
            url: self.url.clone(),
            instead: Some("no answer in time".to_owned()),
        })??;
        if response.status() == StatusCode::NO_CONTENT {
            return Ok(None);
        }
        Ok(Some(response))
    }
}

/// How long to wait before a request is repeated: as long as the service asks for, within reason, and at least `pause`.
fn wait_after(error: &ClientError, pause: Duration) -> Duration {
    match error {
        ClientError::Problem(problem) => pause.max(problem.retry_after.unwrap_or_default().min(LONGEST_ASKED)),
        _ => pause,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_says_when_to_come_back() {
        let wait = |seconds: Option<u64>| {
            let mut problem: Problem = serde_json::from_str("{}").expect("every member may be missing");
            problem.retry_after = seconds.map(Duration::from_secs);
            wait_after(&ClientError::Problem(Box::new(problem)), PAUSE)
        };
        assert_eq!(wait(None), PAUSE);
        assert_eq!(wait(Some(0)), PAUSE);
        assert_eq!(wait(Some(7)), Duration::from_secs(7));
        assert_eq!(wait(Some(86_400)), LONGEST_ASKED);
        assert_eq!(wait_after(&ClientError::usage("a flag"), PAUSE), PAUSE);
    }
}
