//! Gitee (<https://help.gitee.com/webhook/gitee-webhook-push-data-format>).

use base64::{Engine as _, prelude::BASE64_STANDARD};
use chrono::{DateTime, TimeDelta, Utc};

use super::{
    Incoming, Malformed, Reading, Sender,
    event::{Event, EventKind},
    payload::Payload,
    signature::{is_mac, is_recent, same},
};

/// How far a timestamp may be from now, by Gitee's own rule.
const TOLERANCE: TimeDelta = TimeDelta::hours(1);

/// What base64 has that is escaped in addresses.
const ESCAPES: [(&str, &str); 6] = [
    ("%2B", "+"),
    ("%2F", "/"),
    ("%3D", "="),
    ("%2b", "+"),
    ("%2f", "/"),
    ("%3d", "="),
];

pub(super) struct Gitee;

impl Sender for Gitee {
    /// The password as it is, or a signature of the timestamp. Neither covers the body.
    fn verify(&self, secret: &str, incoming: &Incoming<'_>, now: DateTime<Utc>) -> bool {
        let (Some(token), Some(timestamp)) = (incoming.header("x-gitee-token"), incoming.header("x-gitee-timestamp"))
        else {
            return false;
        };
        let at = timestamp.parse().ok().and_then(DateTime::from_timestamp_millis);
        // Its documentation encodes the signature for an address, its servers don't.
        let decoded = ESCAPES
            .iter()
            .fold(token.to_owned(), |text, (escape, c)| text.replace(escape, c));
        let signed = [token, decoded.as_str()].into_iter().fold(false, |fits, given| {
            let given = BASE64_STANDARD.decode(given).unwrap_or_default();
            let parts = [timestamp.as_bytes(), b"\n", secret.as_bytes()];
            is_mac(secret.as_bytes(), &parts, &given) | fits
        });
        (signed | same(secret, token)) && is_recent(at, TOLERANCE, now)
    }

    /// It gives none; the timestamp is the same for everything that happens in a millisecond.
    fn delivery_id(&self, _: &Incoming<'_>) -> Option<String> {
        None
    }

    fn read(&self, incoming: &Incoming<'_>) -> Result<Reading, Malformed> {
        let payload = Payload::of(incoming)?;
        match payload.text("/hook_name").as_deref() {
            Some("push_hooks" | "tag_push_hooks") => push(&payload),
            Some("merge_request_hooks") => pull_request(&payload),
            Some(other) => Ok(Reading::Nothing(format!("nothing is built of the event `{other}`"))),
            None => Err(Malformed("`/hook_name` is missing".to_owned())),
        }
    }
}

fn repository(payload: &Payload) -> Result<String, Malformed> {
    match payload.text("/repository/path_with_namespace") {
        Some(name) => Ok(name),
        None => payload.required("/repository/full_name"),
    }
}

fn clone_url(payload: &Payload) -> Option<String> {
    payload
        .text("/repository/clone_url")
        .or_else(|| payload.text("/repository/git_http_url"))
}

fn push(payload: &Payload) -> Result<Reading, Malformed> {
    let after = payload.commit("/after")?;
    let commit = payload.commit("/head_commit/id")?.or_else(|| after.clone());
    let deleted = after.is_none() || payload.is("/deleted");
    let known = payload.commit("/before")?.is_some() && !payload.is("/commits_more_than_ten");
    let listed = u64::try_from(payload.list("/commits").len()).ok();
    let whole = known
        && payload
            .number("/total_commits_count")
            .is_none_or(|total| Some(total) == listed);
    let event = Event::of_push(repository(payload)?, payload.required("/ref")?, commit, deleted);
    Ok(match event {
        Ok(event) => Reading::Events(vec![Event {
            clone_url: clone_url(payload),
            message: payload.text("/head_commit/message"),
            previous: payload.text("/before"),
            files: whole.then(|| payload.files("/commits")).flatten(),
            ..event
        }]),
        Err(reason) => Reading::Nothing(reason),
    })
}

fn pull_request(payload: &Payload) -> Result<Reading, Malformed> {
    let action = payload.required("/action")?;
    // What an update consists of isn't said by older ones.
    let commits = payload
        .text("/action_desc")
        .is_none_or(|what| what == "source_branch_changed");
    let wanted = match action.as_str() {
        "open" | "reopen" => true,
        "update" => commits,
        _ => false,
    };
    if !wanted {
        return Ok(Reading::Nothing(format!(
            "nothing is built of a pull request's `{action}` without new commits"
        )));
    }
    let repository = repository(payload)?;
    let number = match payload.number("/pull_request/number") {
        Some(number) => number,
        None => payload.required_number("/iid")?,
    };
    let head = payload
        .text("/pull_request/head/repo/path_with_namespace")
        .or_else(|| payload.text("/pull_request/head/repo/full_name"));
    Ok(Reading::Events(vec![Event {
        clone_url: clone_url(payload),
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
