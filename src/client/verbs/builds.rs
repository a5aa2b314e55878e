//! `kiln get` and `kiln cancel`.

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::value::RawValue;

use super::Session;
use crate::client::{
    args::{BuildName, Cancel, Get},
    error::{ClientError, Exit},
    reasons::queue,
    request::FOLDER,
    screen::{BAD, FAINT, style_of, styled},
    text::{age, harmless, span},
    watch::{read_build, wait_for_end},
    wire::Build,
};

/// `kiln get`.
pub(in crate::client) async fn get(flags: Get) -> Result<Exit, ClientError> {
    let mut session = Session::open(&flags.common)?;
    let id = session.find(&flags.id).await?;
    let (build, document) = if flags.wait {
        wait_for_end(&session.api, &mut session.screen, &id, false).await?
    } else {
        let document: Box<RawValue> = session.api.json(session.api.get(&["v1", "builds", &id])).await?;
        (read_build(&session.api, &document)?, document)
    };
    if session.json {
        session.document(&document)?;
    } else {
        let reason = match build.ended() {
            // Whatever this answers, the build itself is known.
            None => queue(&session.api, &id).await.ok().and_then(|queue| queue.reason()),
            Some(_) => None,
        };
        session.screen.print(&described(&build, reason, Utc::now()))?;
    }
    Ok(match build.ended() {
        Some(state) if flags.wait => Exit::of(state),
        _ => Exit::Success,
    })
}

fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

/// A build in lines.
fn described(build: &Build, reason: Option<String>, now: DateTime<Utc>) -> String {
    let mut lines = vec![
        ("id", build.id.to_string()),
        ("project", build.project.clone()),
        ("state", styled(style_of(&build.state), &build.state)),
    ];
    lines.extend(reason.map(|reason| ("waits", reason)));
    lines.push(("source", source(build)));
    if let Some(commit) = &build.commit {
        lines.push(("commit", commit.clone()));
    }
    for image in &build.images {
        lines.push(("image", image.clone()));
    }
    if let Some(digest) = &build.digest {
        lines.push(("digest", digest.clone()));
    }
    if let Some(failure) = &build.failure {
        lines.push((
            "failure",
            format!("{}: {}", styled(BAD, &failure.code), failure.message),
        ));
    }
    if let Some(of) = build.retry_of {
        lines.push(("retry of", of.to_string()));
    }
    if let Some(by) = build.retried_by {
        lines.push(("retried by", by.to_string()));
    }
    if let Some(by) = build.superseded_by {
        lines.push(("superseded by", by.to_string()));
    }
    lines.push((
        "created",
        format!("{} ({} ago)", time(build.created_at), age(build.created_at, now)),
    ));
    if let Some(started) = build.started_at {
        let waited = span(started - build.created_at);
        lines.push(("started", format!("{} (after {waited})", time(started))));
    }
    if let Some(finished) = build.finished_at {
        let took = span(finished - build.started_at.unwrap_or(build.created_at));
        lines.push(("finished", format!("{} (after {took})", time(finished))));
    }
    for attempt in &build.attempts {
        let mut text = format!(
            "{} {}",
            attempt.number,
            styled(style_of(&attempt.state), &attempt.state)
        );
        if let Some(node) = &attempt.node {
            text = format!("{text} on {node}");
        }
        if let (Some(started), Some(finished)) = (attempt.started_at, attempt.finished_at) {
            text = format!("{text}, {}", span(finished - started));
        }
        if let Some(failure) = &attempt.failure {
            text = format!("{text}: {}: {}", failure.code, failure.message);
        }
        lines.push(("attempt", text));
    }
    let lines = lines
        .into_iter()
        .map(|(name, value)| format!("{} {value}\n", styled(FAINT, &format!("{name:10}"))));
    lines.collect()
}

/// Where a build's source comes from, in a few words.
pub(super) fn source(build: &Build) -> String {
    let source = &build.spec["source"];
    let text = |field: &str| source[field].as_str().filter(|text| !text.is_empty());
    let at = text("commit").or_else(|| text("ref")).map(|at| format!("#{at}"));
    let folder = text("subdir").map(|folder| format!(":{folder}"));
    let named = build.spec["annotations"][FOLDER].as_str().map(harmless);
    match (text("url"), named, text("type")) {
        (Some(place), ..) => format!("{place}{}{}", at.unwrap_or_default(), folder.unwrap_or_default()),
        (None, Some(named), Some("upload")) => format!("{named} (folder)"),
        (None, _, kind) => kind.unwrap_or("?").to_owned(),
    }
}

/// `kiln cancel`.
pub(in crate::client) async fn cancel(flags: Cancel) -> Result<Exit, ClientError> {
    let mut session = Session::open(&flags.common)?;
    let mut first = None;
    for name in flags.ids {
        let done = cancel_one(&mut session, &name).await;
        match done {
            Ok(()) => {}
            // The others are tried all the same.
            Err(error @ (ClientError::Problem(_) | ClientError::Unknown(_) | ClientError::Usage(_))) => {
                let named = match name {
                    BuildName::Whole(id) => format!("{id}: "),
                    // It is in the message.
                    BuildName::Prefix(_) => String::new(),
                };
                session.screen.say(&format!("kiln: {named}{error}"))?;
                first.get_or_insert(error.exit());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(first.unwrap_or(Exit::Success))
}

async fn cancel_one(session: &mut Session, name: &BuildName) -> Result<(), ClientError> {
    let id = session.find(name).await?;
    let request = session.api.post(&["v1", "builds", &id, "cancel"]);
    let document: Box<RawValue> = session.api.json(request).await?;
    if session.json {
        return session.document(&document);
    }
    let state = read_build(&session.api, &document)?.state;
    session
        .screen
        .print(&format!("{id} {}\n", styled(style_of(&state), &state)))?;
    Ok(())
}
