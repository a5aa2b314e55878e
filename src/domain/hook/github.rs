//! GitHub (<https://docs.github.com/en/webhooks/webhook-events-and-payloads>).

use chrono::{DateTime, Utc};

use super::{
    Incoming, Malformed, Reading, Sender,
    event::{Event, EventKind},
    payload::Payload,
    signature::is_hex_mac,
};

pub(super) struct Github;

impl Sender for Github {
    fn verify(&self, secret: &str, incoming: &Incoming<'_>, _: DateTime<Utc>) -> bool {
        let signature = incoming.header("x-hub-signature-256").unwrap_or_default();
        is_hex_mac(secret, incoming.body, "sha256=", signature)
    }

    fn delivery_id(&self, incoming: &Incoming<'_>) -> Option<String> {
        incoming.header("x-github-delivery").map(str::to_owned)
    }

    fn read(&self, incoming: &Incoming<'_>) -> Result<Reading, Malformed> {
        let payload = Payload::of(incoming)?;
        match incoming.header("x-github-event") {
            Some("push") => push(&payload, files(&payload)),
            Some("pull_request") => pull_request(&payload, &["opened", "reopened", "synchronize"]),
            Some("release") => release(&payload),
            Some("ping") => Ok(Reading::Nothing("a ping: the forge reaches Kiln".to_owned())),
            Some(other) => Ok(Reading::Nothing(format!("nothing is built of the event `{other}`"))),
            None => Err(Malformed("the header `X-GitHub-Event` is missing".to_owned())),
        }
    }
}

/// The changed files, where the payload has all of them. It has at most 2048 commits, and for a new branch or after a
/// forced push only those that no other branch has.
fn files(payload: &Payload) -> Option<Vec<String>> {
    let whole = payload.list("/commits").len() < 2048 && !payload.is("/forced") && !payload.is("/created");
    whole.then(|| payload.files("/commits")).flatten()
}

/// A push, as GitHub and Gitea tell it.
pub(super) fn push(payload: &Payload, files: Option<Vec<String>>) -> Result<Reading, Malformed> {
    let after = payload.commit("/after")?;
    // Of an annotated tag `after` is the tag and not the commit.
    let commit = payload.commit("/head_commit/id")?.or_else(|| after.clone());
    let deleted = after.is_none() || payload.is("/deleted");
    let (repository, reference) = (payload.required("/repository/full_name")?, payload.required("/ref")?);
    Ok(match Event::of_push(repository, reference, commit, deleted) {
        Ok(event) => Reading::Events(vec![Event {
            clone_url: payload.text("/repository/clone_url"),
            message: payload.text("/head_commit/message"),
            previous: payload.text("/before"),
            files,
            ..event
        }]),
        Err(reason) => Reading::Nothing(reason),
    })
}

/// A pull request, as GitHub and Gitea tell it.
pub(super) fn pull_request(payload: &Payload, actions: &[&str]) -> Result<Reading, Malformed> {
    let action = payload.required("/action")?;
    if !actions.contains(&action.as_str()) {
        return Ok(Reading::Nothing(format!(
            "nothing is built of a pull request that was {action}"
        )));
    }
    let repository = payload.required("/repository/full_name")?;
    let number = match payload.number("/number") {
        Some(number) => number,
        None => payload.required_number("/pull_request/number")?,
    };
    // A fork that is gone has no repository any more.
    let head = payload.text("/pull_request/head/repo/full_name");
    Ok(Reading::Events(vec![Event {
        clone_url: payload.text("/repository/clone_url"),
        reference: Some(format!("refs/pull/{number}/head")),
        commit: payload.commit("/pull_request/head/sha")?,
        pull_request: Some(number),
        source_branch: payload.text("/pull_request/head/ref"),
        target_branch: payload.text("/pull_request/base/ref"),
        from_fork: head.as_deref() != Some(&*repository),
        message: payload.text("/pull_request/title"),
        ..Event::new(EventKind::PullRequest, repository)
    }]))
}

/// A release, as GitHub and Gitea tell it.
pub(super) fn release(payload: &Payload) -> Result<Reading, Malformed> {
    let action = payload.required("/action")?;
    if action != "published" {
        return Ok(Reading::Nothing(format!(
            "nothing is built of a release that was {action}"
        )));
    }
    let tag = payload.required("/release/tag_name")?;
    Ok(Reading::Events(vec![Event {
        clone_url: payload.text("/repository/clone_url"),
        reference: Some(format!("refs/tags/{tag}")),
        tag: Some(tag),
        ..Event::new(EventKind::Release, payload.required("/repository/full_name")?)
    }]))
}
