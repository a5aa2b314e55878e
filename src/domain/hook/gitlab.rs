//! GitLab (<https://docs.gitlab.com/user/project/integrations/webhook_events/>).

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::{
    Incoming, Malformed, Reading, Sender,
    event::{Event, EventKind},
    payload::Payload,
    signature::{same, standard},
};
use crate::domain::spec::CommitId;

pub(super) struct Gitlab;

impl Sender for Gitlab {
    /// The signing token where there is one, else the secret token, which is sent as it is.
    fn verify(&self, secret: &str, incoming: &Incoming<'_>, now: DateTime<Utc>) -> bool {
        standard(secret, incoming, now).unwrap_or_else(|| {
            incoming
                .header("x-gitlab-token")
                .is_some_and(|token| same(secret, token))
        })
    }

    fn delivery_id(&self, incoming: &Incoming<'_>) -> Option<String> {
        ["webhook-id", "idempotency-key", "x-gitlab-event-uuid"]
            .into_iter()
            .find_map(|name| incoming.header(name))
            .map(str::to_owned)
    }

    fn read(&self, incoming: &Incoming<'_>) -> Result<Reading, Malformed> {
        let payload = Payload::of(incoming)?;
        match payload.text("/object_kind").as_deref() {
            Some("push" | "tag_push") => push(&payload),
            Some("merge_request") => merge_request(&payload),
            Some("release") => release(&payload),
            other => {
                let name = other.or_else(|| incoming.header("x-gitlab-event")).unwrap_or_default();
                Ok(Reading::Nothing(format!("nothing is built of the event `{name}`")))
            }
        }
    }
}

fn push(payload: &Payload) -> Result<Reading, Malformed> {
    let after = payload.commit("/after")?;
    // Of an annotated tag `after` is the tag and not the commit.
    let commit = payload.commit("/checkout_sha")?.or_else(|| after.clone());
    let repository = payload.required("/project/path_with_namespace")?;
    let event = Event::of_push(repository, payload.required("/ref")?, commit.clone(), after.is_none());
    let newest = payload.list("/commits").iter().find(|listed| {
        let id = listed.get("id").and_then(Value::as_str);
        id.is_some() && id == commit.as_ref().map(CommitId::as_str)
    });
    let known = payload.commit("/before")?.is_some();
    // At most 20 commits are listed.
    let listed = u64::try_from(payload.list("/commits").len()).ok();
    let whole = known && payload.number("/total_commits_count") == listed;
    Ok(match event {
        Ok(event) => Reading::Events(vec![Event {
            clone_url: payload.text("/project/git_http_url"),
            message: newest.and_then(|commit| Payload::part(commit).text("/message")),
            previous: payload.text("/before"),
            files: whole.then(|| payload.files("/commits")).flatten(),
            ..event
        }]),
        Err(reason) => Reading::Nothing(reason),
    })
}

fn merge_request(payload: &Payload) -> Result<Reading, Malformed> {
    let action = payload.text("/object_attributes/action").unwrap_or_default();
    // Of updates only those that bring commits have where the branch was before.
    let wanted = match action.as_str() {
        "open" | "reopen" => true,
        "update" => payload.has("/object_attributes/oldrev"),
        _ => false,
    };
    if !wanted {
        return Ok(Reading::Nothing(format!(
            "nothing is built of a merge request's `{action}` without new commits"
        )));
    }
    let number = payload.required_number("/object_attributes/iid")?;
    let source = payload.required_number("/object_attributes/source_project_id")?;
    Ok(Reading::Events(vec![Event {
        clone_url: payload.text("/project/git_http_url"),
        reference: Some(format!("refs/merge-requests/{number}/head")),
        commit: payload.commit("/object_attributes/last_commit/id")?,
        pull_request: Some(number),
        source_branch: payload.text("/object_attributes/source_branch"),
        target_branch: payload.text("/object_attributes/target_branch"),
        from_fork: payload.number("/object_attributes/target_project_id") != Some(source),
        message: payload
            .text("/object_attributes/last_commit/message")
            .or_else(|| payload.text("/object_attributes/title")),
        ..Event::new(
            EventKind::PullRequest,
            payload.required("/project/path_with_namespace")?,
        )
    }]))
}

fn release(payload: &Payload) -> Result<Reading, Malformed> {
    let action = payload.required("/action")?;
    if action != "create" {
        return Ok(Reading::Nothing(format!("nothing is built of a release's `{action}`")));
    }
    let tag = payload.required("/tag")?;
    Ok(Reading::Events(vec![Event {
        clone_url: payload.text("/project/git_http_url"),
        reference: Some(format!("refs/tags/{tag}")),
        commit: payload.commit("/commit/id")?,
        tag: Some(tag),
        ..Event::new(EventKind::Release, payload.required("/project/path_with_namespace")?)
    }]))
}
