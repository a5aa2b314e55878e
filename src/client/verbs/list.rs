//! `kiln list`.

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde_json::value::RawValue;

use super::{Session, builds::source};
use crate::{
    client::{
        args::{List, Moment},
        error::{ClientError, Exit},
        screen::{FAINT, style_of, styled},
        text::{age, span, table, width},
        watch::read_build,
        wire::{Build, BuildList},
    },
    domain::project::ProjectName,
};

/// Most builds that the service puts on a page.
const PAGE: u32 = 200;

/// `kiln list`.
pub(in crate::client) async fn list(flags: List) -> Result<Exit, ClientError> {
    let mut session = Session::open(&flags.common)?;
    let now = Utc::now();
    let query = query(&flags, session.settings.project.as_ref(), now);
    let mut items: Vec<Box<RawValue>> = Vec::new();
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
        let list = BuildList { items, next: cursor };
        // Texts and JSON values can be written.
        let text = serde_json::to_string(&list).unwrap_or_default();
        session.screen.print(&format!("{text}\n"))?;
        return Ok(Exit::Success);
    }
    let builds = items.iter().map(|item| read_build(&session.api, item));
    let builds: Vec<Build> = builds.collect::<Result<_, _>>()?;
    if builds.is_empty() {
        let of = match &session.settings.project {
            Some(project) => format!(" in project {project}"),
            None => String::new(),
        };
        let like = if is_filtered(&flags) { " like that" } else { "" };
        session.screen.say(&format!("kiln: no builds{like}{of}"))?;
        return Ok(Exit::Success);
    }
    let rows = builds.iter().map(|build| row(build, now)).collect();
    session.screen.print(&table(
        &["BUILD", "STATE", "AGE", "TOOK", "SOURCE", "IMAGE"],
        rows,
        width(),
    ))?;
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
    let labels = flags.labels.iter().map(|label| ("label", label.clone()));
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

fn is_filtered(flags: &List) -> bool {
    let single = flags.reference.is_some() || flags.image.is_some() || flags.since.is_some();
    single || !flags.states.is_empty() || !flags.labels.is_empty()
}
