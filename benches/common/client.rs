//! A caller of Kiln's API.

use serde::Deserialize;
use serde_json::Value;

/// A caller with a token.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) http: reqwest::Client,
    pub(crate) base: String,
    pub(crate) token: String,
}

#[derive(Deserialize)]
struct Build {
    id: String,
}

impl Caller {
    pub(crate) fn new(base: &str, token: &str) -> Self {
        Self {
            http: reqwest::Client::new(),
            base: base.to_owned(),
            token: token.to_owned(),
        }
    }

    /// Asks for a build; gives its id.
    pub(crate) async fn post(&self, request: &Value) -> anyhow::Result<String> {
        let post = self
            .http
            .post(format!("{}/v1/builds", self.base))
            .bearer_auth(&self.token);
        let answer = post.json(request).send().await?.error_for_status()?;
        Ok(answer.json::<Build>().await?.id)
    }
}
