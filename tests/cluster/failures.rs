//! Builds that fail, by every code of the contract: each is produced for real, and its message says what to do.

mod dockerfile;
mod infrastructure;
mod limits;
mod node;
mod pods;
mod push;
mod source;

use std::panic::AssertUnwindSafe;

use futures::{FutureExt, StreamExt};
use serde_json::{Value, json};

use super::support::{Api, Installation, Transcript, inline, run, set, text};

const BUILDERS: [&str; 2] = ["buildkit", "buildah"];

/// A request, and what its failure is to be called and to say.
struct Case {
    request: Value,
    code: &'static str,
    /// What the message says.
    words: Vec<String>,
    /// What the log holds, as evidence.
    logged: Vec<String>,
    /// How often it is tried.
    attempts: usize,
}

impl Case {
    fn new(request: Value, code: &'static str, words: &[&str]) -> Self {
        Self {
            request,
            code,
            words: owned(words),
            logged: Vec::new(),
            attempts: 1,
        }
    }

    fn logged(mut self, words: &[&str]) -> Self {
        self.logged = owned(words);
        self
    }

    fn attempts(mut self, attempts: usize) -> Self {
        self.attempts = attempts;
        self
    }

    /// Checks the failure of a build that is over, wherever it shows.
    async fn check(&self, api: &Api, build: &Value) {
        let id = text(build, "/id");
        let log = api.logs(id).await;
        assert_eq!(build["state"], "failed", "{build:#}\n{log}");
        assert_eq!(build["failure"]["code"], self.code, "{build:#}\n{log}");
        let message = text(build, "/failure/message");
        for words in &self.words {
            assert!(message.contains(words), "`{words}` is not in: {message}\n{log}");
        }
        for words in &self.logged {
            assert!(log.contains(words), "`{words}` is not in the log:\n{log}");
        }
        assert_eq!(build["failure"]["retried"], self.attempts > 1, "{build:#}");
        let attempts = build["attempts"].as_array().expect("a list");
        assert_eq!(attempts.len(), self.attempts, "{build:#}");
        for attempt in attempts {
            assert_eq!(attempt["state"], "failed", "{build:#}");
            assert_eq!(attempt["failure"]["code"], self.code, "{build:#}");
        }
        assert_eq!(build["digest"], Value::Null);
        let mut transcript = Transcript::new(id);
        let end = transcript.read_to_end(api).await;
        assert_eq!(end["failure"]["message"], message);
    }
}

/// Runs the cases side by side, and checks all of them even when some aren't as they should be.
async fn expect_failures(kiln: &Installation, cases: Vec<Case>) {
    let replica = kiln.start().await;
    let api = &replica.api;
    let wrong = futures::stream::iter(cases)
        .map(|case| {
            let checked = async move { case.check(api, &api.build(&case.request).await).await };
            AssertUnwindSafe(checked).catch_unwind()
        })
        .buffer_unordered(4)
        .filter(|checked| std::future::ready(checked.is_err()))
        .count()
        .await;
    assert_eq!(wrong, 0, "so many cases panicked above");
}

/// The same request for another builder.
fn by(builder: &str, mut request: Value) -> Value {
    request["builder"] = json!(builder);
    request
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}
