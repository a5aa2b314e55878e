//! Senders of one's own: scripts, other services, forges that aren't known here. They say what happened in Kiln's
//! words.

use std::{fmt, str::FromStr};

use chrono::{DateTime, Utc};

use super::{
    Incoming, Malformed, Reading, Sender,
    event::{Event, EventKind},
    glob::Glob,
    payload::Payload,
    signature::{is_hex_mac, standard},
};
use crate::domain::spec::{
    CommitId, GitRef, GitUrl, Invalid,
    reader::{Errors, Field, FieldError, Object, Reported},
    text::checked_text,
};

/// Most changed files in one event.
const MAX_FILES: usize = 5000;

pub(super) struct Generic;

impl Sender for Generic {
    /// Standard Webhooks, which has a timestamp, or a bare signature of the body.
    fn verify(&self, secret: &str, incoming: &Incoming<'_>, now: DateTime<Utc>) -> bool {
        standard(secret, incoming, now).unwrap_or_else(|| {
            let signature = incoming.header("x-hub-signature-256").unwrap_or_default();
            is_hex_mac(secret, incoming.body, "sha256=", signature)
        })
    }

    fn delivery_id(&self, incoming: &Incoming<'_>) -> Option<String> {
        ["webhook-id", "idempotency-key"]
            .into_iter()
            .find_map(|name| incoming.header(name))
            .map(str::to_owned)
    }

    fn read(&self, incoming: &Incoming<'_>) -> Result<Reading, Malformed> {
        let document = Payload::of(incoming)?.into_value();
        let errors = Errors::default();
        let event = Object::document(&document, &errors).and_then(|root| {
            let event = stated(&root, None);
            root.finish();
            event
        });
        let event = errors.finish(event).map_err(|errors| {
            let told: Vec<_> = errors
                .iter()
                .map(|FieldError { pointer, detail }| format!("`{pointer}`: {detail}"))
                .collect();
            Malformed(told.join("; "))
        })?;
        Ok(Reading::Events(vec![event]))
    }
}

checked_text! {
    /// A repository's full name.
    RepositoryName, |text| one_line(text, 1, 255, "a repository's full name such as `team/app`")
}

checked_text! {
    /// A name of a tag.
    TagName, |text| one_line(text, 1, 250, "a tag's name such as `v1.2`")
}

checked_text! {
    /// A commit message, or a title.
    Message, |text| {
        if text.len() <= 16 * 1024 && !text.contains('\0') {
            Ok(())
        } else {
            Err(Invalid::new("expected at most 16384 bytes without NUL"))
        }
    }
}

fn one_line(text: &str, min: usize, max: usize, what: &str) -> Result<(), Invalid> {
    if (min..=max).contains(&text.len()) && !text.chars().any(char::is_control) {
        Ok(())
    } else {
        Err(Invalid::new(format!(
            "expected {what}, at most {max} bytes on one line"
        )))
    }
}

/// Reads an event in Kiln's own words; `usual` is its kind where it doesn't say.
pub fn stated(root: &Object<'_>, usual: Option<EventKind>) -> Result<Event, Reported> {
    let kind_field = root.field("event");
    let kind = match (kind_field.parse::<EventKind>()?, usual) {
        (Some(kind), _) | (None, Some(kind)) => Ok(kind),
        (None, None) => Err(kind_field.report("required: expected what happened, such as `push`")),
    };
    let repository = root.field("repository").required::<RepositoryName>();
    let clone_url = root.field("clone_url").parse::<GitUrl>();
    let reference_field = root.field("ref");
    let reference = reference_field.parse::<GitRef>();
    let commit = root.field("commit").parse::<CommitId>();
    let branch = root.field("branch").parse::<GitRef>();
    let tag = root.field("tag").parse::<TagName>();
    let pull_request = root.field("pull_request").integer(1, i64::MAX);
    let source_branch = root.field("source_branch").parse::<GitRef>();
    let target_branch = root.field("target_branch").parse::<GitRef>();
    let from_fork = root.field("from_fork").boolean();
    let message = root.field("message").parse::<Message>();
    let files = files(&root.field("files"));
    let digest = root.field("digest").parse::<crate::domain::spec::Digest>();

    let (branch, tag) = (
        branch?.map(|branch| branch.to_string()),
        tag?.map(|tag| tag.to_string()),
    );
    let reference = reference?.map(|reference| reference.to_string());
    let given = reference.as_deref().unwrap_or_default();
    let branch = branch.or_else(|| given.strip_prefix("refs/heads/").map(str::to_owned));
    let tag = tag.or_else(|| given.strip_prefix("refs/tags/").map(str::to_owned));
    let event = Event {
        clone_url: clone_url?.map(|url| url.to_string()),
        reference: reference
            .or_else(|| branch.as_ref().map(|branch| format!("refs/heads/{branch}")))
            .or_else(|| tag.as_ref().map(|tag| format!("refs/tags/{tag}"))),
        commit: commit?,
        branch,
        tag,
        pull_request: pull_request?.and_then(|number| number.try_into().ok()),
        source_branch: source_branch?.map(|branch| branch.to_string()),
        target_branch: target_branch?.map(|branch| branch.to_string()),
        from_fork: from_fork?.unwrap_or(false),
        message: message?.map(|message| message.to_string()),
        files: files?,
        digest: digest?.map(|digest| digest.to_string()),
        ..Event::new(kind?, repository?.to_string())
    };
    let needs = match event.kind {
        EventKind::Push if event.branch.is_none() => "`branch`, or `ref` beginning with `refs/heads/`",
        EventKind::Tag | EventKind::Release if event.tag.is_none() => "`tag`, or `ref` beginning with `refs/tags/`",
        EventKind::PullRequest if event.pull_request.is_none() => "`pull_request`, its number",
        EventKind::Image if event.tag.is_none() => "`tag`, the image's",
        _ => {
            return Ok(Event {
                reference: (event.kind != EventKind::Image).then_some(event.reference).flatten(),
                ..event
            });
        }
    };
    Err(kind_field.report(format!("an event of this kind needs {needs}")))
}

fn files(field: &Field<'_>) -> Result<Option<Vec<String>>, Reported> {
    let Some(elements) = field.elements()? else {
        return Ok(None);
    };
    if elements.len() > MAX_FILES {
        return Err(field.report(format!(
            "expected at most {MAX_FILES} files: leave it out if there are more"
        )));
    }
    let mut result = Ok(());
    let mut files = Vec::new();
    for element in elements {
        // A path is what a pattern could stand for.
        match element.required::<Glob>() {
            Ok(path) => files.push(path.to_string()),
            Err(reported) => result = Err(reported),
        }
    }
    result.map(|()| (!files.is_empty()).then_some(files))
}
