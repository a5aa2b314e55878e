//! Bitbucket Data Center (<https://confluence.atlassian.com/bitbucketserver/event-payload-938025882.html>).

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::{
    Incoming, Malformed, Reading, Sender,
    event::{Event, EventKind},
    payload::Payload,
    signature::is_hex_mac,
};

pub(super) struct BitbucketServer;

impl Sender for BitbucketServer {
    fn verify(&self, secret: &str, incoming: &Incoming<'_>, _: DateTime<Utc>) -> bool {
        let signature = incoming.header("x-hub-signature").unwrap_or_default();
        is_hex_mac(secret, incoming.body, "sha256=", signature)
    }

    fn delivery_id(&self, incoming: &Incoming<'_>) -> Option<String> {
        incoming.header("x-request-id").map(str::to_owned)
    }

    fn read(&self, incoming: &Incoming<'_>) -> Result<Reading, Malformed> {
        let payload = Payload::of(incoming)?;
        match incoming.header("x-event-key") {
            Some("repo:refs_changed") => push(&payload),
            Some("pr:opened" | "pr:from_ref_updated" | "pr:reopened") => pull_request(&payload),
            Some("diagnostics:ping") => Ok(Reading::Nothing("a ping: the forge reaches Kiln".to_owned())),
            Some(other) => Ok(Reading::Nothing(format!("nothing is built of the event `{other}`"))),
            None => Err(Malformed("the header `X-Event-Key` is missing".to_owned())),
        }
    }
}

fn full_name(repository: &Payload) -> Result<String, Malformed> {
    let (project, slug) = (repository.required("/project/key")?, repository.required("/slug")?);
    Ok(format!("{project}/{slug}"))
}

/// By http, as a login needs no key then.
fn clone_url(repository: &Payload) -> Option<String> {
    let mut links = repository.list("/links/clone").iter();
    let http = links.find(|link| {
        link.get("name")
            .and_then(Value::as_str)
            .is_some_and(|name| name.starts_with("http"))
    });
    http.and_then(|link| Payload::part(link).text("/href"))
}

fn push(payload: &Payload) -> Result<Reading, Malformed> {
    let repository = payload.object("/repository")?;
    let (name, clone_url) = (full_name(&repository)?, clone_url(&repository));
    let mut events = Vec::new();
    let mut reason = "the push changes nothing".to_owned();
    for change in payload.list("/changes") {
        let change = Payload::part(change);
        let after = change.commit("/toHash")?;
        let deleted = after.is_none() || change.text("/type").as_deref() == Some("DELETE");
        let previous = change.text("/fromHash");
        match Event::of_push(name.clone(), change.required("/ref/id")?, after, deleted) {
            Ok(event) => events.push(match event.kind {
                // The id of an annotated tag isn't that of its commit.
                EventKind::Tag => Event {
                    clone_url: clone_url.clone(),
                    previous: event.commit.as_ref().map(ToString::to_string),
                    commit: None,
                    ..event
                },
                _ => Event {
                    clone_url: clone_url.clone(),
                    previous,
                    ..event
                },
            }),
            Err(other) => reason = other,
        }
    }
    // The message is that of the newest commit of the only change.
    if let [event] = events.as_mut_slice() {
        event.message = payload.text("/toCommit/message");
    }
    Ok(if events.is_empty() {
        Reading::Nothing(reason)
    } else {
        Reading::Events(events)
    })
}

fn pull_request(payload: &Payload) -> Result<Reading, Malformed> {
    let number = payload.required_number("/pullRequest/id")?;
    let target = payload.object("/pullRequest/toRef/repository")?;
    let source = payload.object("/pullRequest/fromRef/repository")?;
    let repository = full_name(&target)?;
    Ok(Reading::Events(vec![Event {
        clone_url: clone_url(&target),
        reference: Some(format!("refs/pull-requests/{number}/from")),
        commit: payload.commit("/pullRequest/fromRef/latestCommit")?,
        pull_request: Some(number),
        source_branch: payload.text("/pullRequest/fromRef/displayId"),
        target_branch: payload.text("/pullRequest/toRef/displayId"),
        from_fork: full_name(&source)? != repository,
        message: payload.text("/pullRequest/title"),
        ..Event::new(EventKind::PullRequest, repository)
    }]))
}
