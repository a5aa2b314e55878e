//! What every test here starts from.

mod api;
mod deployment;
mod entrance;
mod environment;
mod git;
mod installation;
mod pods;
mod postgres;
mod registry;
mod replica;
mod transcript;

use std::time::Duration;

use serde_json::{Value, json};

pub(super) use self::{
    api::Api,
    deployment::{Deployment, Images, agent_binary, kubectl, repository, strip},
    entrance::Entrance,
    environment::variable,
    git::Repository,
    installation::{Installation, run, run_on, set},
    postgres::Postgres,
    registry::Image,
    replica::Replica,
    transcript::{Event, Stop, Transcript, kiln_lines},
};

/// Nothing here takes longer unless it hangs, though two cores may carry thirty builds.
pub(super) const DEADLINE: Duration = Duration::from_mins(3);

/// Looks again and again until there is a value, or panics when the time is up.
pub(super) async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> F,
) -> T {
    let deadline = tokio::time::Instant::now() + limit;
    loop {
        if let Some(value) = look().await {
            return value;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "not true within {} s: {what}",
            limit.as_secs()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A request for a build of these files that pushes nothing.
pub(super) fn inline(dockerfile: &str) -> Value {
    json!({
        "source": {"type": "inline", "files": {"Dockerfile": dockerfile}},
        "push": false,
        "timeout_seconds": 300,
    })
}

/// A Dockerfile that prints `kiln line 1` to `kiln line <count>`, one every `pause` seconds.
pub(super) fn printing(count: u32, pause: &str) -> String {
    format!("FROM busybox\nRUN for i in $(seq {count}); do echo \"kiln line $i\"; sleep {pause}; done\n")
}

/// A Dockerfile that says `kiln line 1` and then does nothing for ten minutes.
pub(super) const ENDLESS: &str = "FROM busybox\nRUN echo \"kiln line 1\"; sleep 600\n";

/// A text field of a JSON document.
#[track_caller]
pub(super) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_else(|| panic!("no text at {pointer} in {value:#}"))
}
