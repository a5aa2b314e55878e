//! `kiln get`, `kiln list` and `kiln cancel`.

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde::Deserialize as _;
use serde_json::{Value, json};

use super::Session;
use crate::{
    client::{
        args::{Cancel, Get, List, Moment, Pair},
        error::{ClientError, Exit},
        screen::{BAD, FAINT, style_of, styled},
        text::{age, span, table},
        watch::{read_build, wait_for_end},
        wire::{Build, BuildList},
    },
    domain::project::ProjectName,
};

/// Most builds that the service puts on a page.
const PAGE: u32 = 200;

/// `kiln get`.
pub(in crate::client) async fn get(flags: Get) -> Result<Exit, ClientError> {
    let mut session = Session::open(&flags.common)?;
    let id = flags.id.to_string();
    let (build, document) = if flags.wait {
        wait_for_end(&session.api, &id).await?
    } else {
        let document: Value = session.api.json(session.api.get(&["v1", "builds", &id])).await?;
        (read_build(&session.api, &document)?, document)
    };
    if session.json {
        session.document(&document)?;
    } else {
        session.screen.print(&described(&build, Utc::now()))?;
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
fn described(build: &Build, now: DateTime<Utc>) -> String {
    let mut lines = vec![
        ("id", build.id.to_string()),
        ("project", build.project.clone()),
        ("state", styled(style_of(&build.state), &build.state)),
        ("source", source(build)),
    ];
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
fn source(build: &Build) -> String {
    let source = &build.spec["source"];
    let text = |field: &str| source[field].as_str().filter(|text| !text.is_empty());
    let kind = text("type").unwrap_or("?");
    let place = text("url");
    let at = text("commit").or_else(|| text("ref")).map(|at| format!("#{at}"));
    let folder = text("subdir").map(|folder| format!(":{folder}"));
    match place {
        Some(place) => format!("{place}{}{}", at.unwrap_or_default(), folder.unwrap_or_default()),
        None => kind.to_owned(),
    }
}

/// `kiln list`.
pub(in crate::client) async fn list(flags: List) -> Result<Exit, ClientError> {
    let mut session = Session::open(&flags.common)?;
    let now = Utc::now();
    let query = query(&flags, session.settings.project.as_ref(), now);
    let mut items = Vec::new();
    let mut cursor: Option<String> = None;
    let mut left = flags.limit;
    while left > 0 {
        let page = left.min(PAGE);
        let request = session
            .api
            .get(&["v1", "builds"])
            .query(&query)
            .query(&[("limit", page)]);
        let request = match &cursor {
            Some(cursor) => request.query(&[("cursor", cursor)]),
            None => request,
        };
        let answer: BuildList = session.api.json(request).await?;
        left -= u32::try_from(answer.items.len()).unwrap_or(page).min(left);
        items.extend(answer.items);
        cursor = answer.next;
        if cursor.is_none() {
            break;
        }
    }
    if session.json {
        session.document(&json!({"items": items, "next": cursor}))?;
        return Ok(Exit::Success);
    }
    let builds = items.iter().map(|item| read_build(&session.api, item));
    let builds: Vec<Build> = builds.collect::<Result<_, _>>()?;
    if builds.is_empty() {
        session.screen.say("kiln: no builds")?;
        return Ok(Exit::Success);
    }
    let rows = builds.iter().map(|build| row(build, now)).collect();
    session
        .screen
        .print(&table(&["BUILD", "STATE", "AGE", "TOOK", "SOURCE", "IMAGE"], rows))?;
    if cursor.is_some() {
        session
            .screen
            .say(&styled(FAINT, "kiln: there are more; --limit shows them"))?;
    }
    Ok(Exit::Success)
}

/// The filters.
fn query(flags: &List, project: Option<&ProjectName>, now: DateTime<Utc>) -> Vec<(&'static str, String)> {
    let since = flags.since.map(|since| match since {
        Moment::At(time) => time,
        Moment::Ago(ago) => TimeDelta::from_std(ago)
            .ok()
            .and_then(|ago| now.checked_sub_signed(ago))
            .unwrap_or(DateTime::UNIX_EPOCH),
    });
    let single = [
        ("project", project.map(ToString::to_string)),
        ("ref", flags.reference.clone()),
        ("image", flags.image.clone()),
        (
            "created_after",
            since.map(|since| since.to_rfc3339_opts(SecondsFormat::Micros, true)),
        ),
    ];
    let labels = flags
        .labels
        .iter()
        .map(|Pair(name, value)| ("label", format!("{name}={value}")));
    let single = single.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let states = flags.states.iter().map(|state| ("state", state.clone()));
    single.chain(states).chain(labels).collect()
}

fn row(build: &Build, now: DateTime<Utc>) -> Vec<String> {
    let took = match (build.started_at, build.finished_at) {
        (Some(started), Some(finished)) => span(finished - started),
        (Some(started), None) => span(now - started),
        _ => "-".to_owned(),
    };
    let state = match &build.failure {
        Some(failure) => format!("{} ({})", build.state, failure.code),
        None => build.state.clone(),
    };
    vec![
        build.id.to_string(),
        styled(style_of(&build.state), &state),
        age(build.created_at, now),
        took,
        source(build),
        build.images.first().cloned().unwrap_or_else(|| "-".to_owned()),
    ]
}

/// `kiln cancel`.
pub(in crate::client) async fn cancel(flags: Cancel) -> Result<Exit, ClientError> {
    let mut session = Session::open(&flags.common)?;
    let mut first = None;
    for id in flags.ids {
        let id = id.to_string();
        let request = session.api.post(&["v1", "builds", &id, "cancel"]);
        match session.api.json::<Value>(request).await {
            Ok(document) if session.json => session.document(&document)?,
            Ok(document) => {
                let state = String::deserialize(&document["state"]).unwrap_or_default();
                session
                    .screen
                    .print(&format!("{id} {}\n", styled(style_of(&state), &state)))?;
            }
            // The others are tried all the same.
            Err(error @ ClientError::Problem(_)) => {
                session.screen.say(&format!("kiln: {id}: {error}"))?;
                first.get_or_insert(error.exit());
            }
            Err(error) => return Err(error),
        }
    }
    Ok(first.unwrap_or(Exit::Success))
}
