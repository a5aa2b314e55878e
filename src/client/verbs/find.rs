//! Finding a build by how its id begins. Ids begin with the time of their making, so few builds have to be looked at.

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};

use crate::client::{
    api::Api,
    args::BuildName,
    error::ClientError,
    text::age,
    watch::read_build,
    wire::{Build, BuildList},
};

/// An id is made a moment before or after the time of acceptance, which is what builds are listed by.
const SLACK: TimeDelta = TimeDelta::seconds(10);
/// Most pages that are looked through.
const PAGES: u32 = 20;
/// Most builds that are named where several could be meant.
const NAMED: usize = 10;

/// The only build whose id begins with these digits.
pub(super) async fn find(api: &Api, prefix: &str) -> Result<String, ClientError> {
    let mut found = Vec::new();
    if let Some((from, to)) = BuildName::made(prefix) {
        let time = |time: Option<DateTime<Utc>>| time.map(|time| time.to_rfc3339_opts(SecondsFormat::Millis, true));
        let mut cursor: Option<String> = None;
        for _ in 0..PAGES {
            let query = [
                ("created_after", time(from.checked_sub_signed(SLACK))),
                ("created_before", time(to.checked_add_signed(SLACK))),
                ("cursor", cursor),
                ("limit", Some("200".to_owned())),
            ];
            let page: BuildList = api.json(api.get(&["v1", "builds"]).query(&query)).await?;
            for item in &page.items {
                let build = read_build(api, item)?;
                if build.id.simple().to_string().starts_with(prefix) {
                    found.push(build);
                }
            }
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
    }
    match found.as_slice() {
        [build] => Ok(build.id.to_string()),
        [] => Err(ClientError::Unknown(format!(
            "no build's id begins with {prefix}; `kiln list` lists the builds that are there for this token"
        ))),
        several => Err(ClientError::Usage(ambiguous(prefix, several, Utc::now()))),
    }
}

fn ambiguous(prefix: &str, builds: &[Build], now: DateTime<Utc>) -> String {
    let line = |build: &Build| format!("\n  {} {}, {} ago", build.id, build.state, age(build.created_at, now));
    let lines: String = builds.iter().take(NAMED).map(line).collect();
    let more = match builds.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!("\n  and {more} more"),
    };
    format!("the ids of several builds begin with {prefix}: write more of the one that is meant{lines}{more}")
}
