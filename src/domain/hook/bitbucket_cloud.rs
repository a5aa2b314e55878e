//! Bitbucket Cloud (<https://support.atlassian.com/bitbucket-cloud/docs/event-payloads/>).

use chrono::{DateTime, Utc};

use super::{
    Incoming, Malformed, Reading, Sender,
    event::{Event, EventKind},
    payload::Payload,
    signature::is_hex_mac,
};

pub(super) struct BitbucketCloud;

impl Sender for BitbucketCloud {
    fn verify(&self, secret: &str, incoming: &Incoming<'_>, _: DateTime<Utc>) -> bool {
        let signature = incoming.header("x-hub-signature").unwrap_or_default();
        is_hex_mac(secret, incoming.body, "sha256=", signature)
    }

    fn delivery_id(&self, incoming: &Incoming<'_>) -> Option<String> {
        incoming.header("x-request-uuid").map(str::to_owned)
    }

    fn read(&self, incoming: &Incoming<'_>) -> Result<Reading, Malformed> {
        let payload = Payload::of(incoming)?;
        match incoming.header("x-event-key") {
            Some("repo:push") => push(&payload),
            Some("pullrequest:created" | "pullrequest:updated") => pull_request(&payload),
            Some(other) => Ok(Reading::Nothing(format!("nothing is built of the event `{other}`"))),
            None => Err(Malformed("the header `X-Event-Key` is missing".to_owned())),
        }
    }
}

/// The payload has the address of the repository's page; it is cloned from the same.
fn clone_url(payload: &Payload, pointer: &str) -> Option<String> {
    let page = payload.text(pointer)?;
    Some(format!("{}.git", page.trim_end_matches('/')))
}

fn push(payload: &Payload) -> Result<Reading, Malformed> {
    let repository = payload.required("/repository/full_name")?;
    let clone_url = clone_url(payload, "/repository/links/html/href");
    let mut events = Vec::new();
    let mut reason = "the push changes nothing".to_owned();
    for change in payload.list("/push/changes") {
        let change = Payload::part(change);
        if !change.has("/new") {
            reason = format!("`{}` was deleted", change.text("/old/name").unwrap_or_default());
            continue;
        }
        let name = change.required("/new/name")?;
        let reference = match change.text("/new/type").as_deref() {
            Some("branch") => format!("refs/heads/{name}"),
            Some("tag" | "annotated_tag") => format!("refs/tags/{name}"),
            _ => {
                reason = format!("`{name}` is neither a branch nor a tag");
                continue;
            }
        };
        let commit = change.commit("/new/target/hash")?;
        match Event::of_push(repository.clone(), reference, commit, false) {
            Ok(event) => events.push(Event {
                clone_url: clone_url.clone(),
                message: change.text("/new/target/message"),
                previous: change.text("/old/target/hash"),
                ..event
            }),
            Err(other) => reason = other,
        }
    }
    Ok(if events.is_empty() {
        Reading::Nothing(reason)
    } else {
        Reading::Events(events)
    })
}

/// The payload has the first digits of the commit only, and there is no ref of a pull request: its branch is built.
fn pull_request(payload: &Payload) -> Result<Reading, Malformed> {
    let source = payload.required("/pullrequest/source/branch/name")?;
    let repository = payload.required("/repository/full_name")?;
    let head = payload.text("/pullrequest/source/repository/full_name");
    let digits = payload.text("/pullrequest/source/commit/hash");
    Ok(Reading::Events(vec![Event {
        clone_url: clone_url(payload, "/pullrequest/source/repository/links/html/href"),
        reference: Some(format!("refs/heads/{source}")),
        commit: digits.as_deref().and_then(|digits| digits.parse().ok()),
        pull_request: Some(payload.required_number("/pullrequest/id")?),
        source_branch: Some(source),
        target_branch: payload.text("/pullrequest/destination/branch/name"),
        from_fork: head.as_deref() != Some(&*repository),
        message: payload.text("/pullrequest/title"),
        previous: digits,
        ..Event::new(EventKind::PullRequest, repository)
    }]))
}
