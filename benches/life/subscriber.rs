//! A subscriber to a build's events.

use std::fs;

use anyhow::Context as _;
use chrono::{DateTime, Utc};
use futures::TryStreamExt as _;
use serde::Deserialize;
use serde_json::Value;
use tokio::io::AsyncBufReadExt as _;
use tokio_util::io::StreamReader;

use crate::client::Caller;

/// What a subscriber saw, and when.
pub(crate) struct Followed {
    pub(crate) first_line: Option<DateTime<Utc>>,
    /// How long lines took to arrive that say when they were printed, in ms.
    pub(crate) waits: Vec<f64>,
    pub(crate) ended: DateTime<Utc>,
    /// What the end of the build was announced with.
    pub(crate) end: End,
}

#[derive(Debug, Deserialize)]
pub(crate) struct End {
    pub(crate) state: String,
    /// Why it isn't what was hoped for.
    pub(crate) failure: Option<Value>,
}

#[derive(Deserialize)]
struct Log {
    text: String,
}

/// The seconds at the end of a line that is what `/proc/uptime` says: since the machine was started, and idle ones.
fn uptime(line: &str) -> Option<f64> {
    let mut fields = line.split_whitespace().rev();
    let (idle, up) = (fields.next()?, fields.next()?);
    let number = |text: &str| text.contains('.').then(|| text.parse::<f64>().ok()).flatten();
    number(idle)?;
    number(up)
}

/// Reads the build's events (`text/event-stream`) up to the one that says how the build ended.
pub(crate) async fn follow(caller: Caller, build: String) -> anyhow::Result<Followed> {
    let events = caller.http.get(format!("{}/v1/builds/{build}/events", caller.base));
    let answer = events.bearer_auth(&caller.token).send().await?.error_for_status()?;
    let mut lines = StreamReader::new(answer.bytes_stream().map_err(std::io::Error::other)).lines();
    let mut event = String::new();
    let (mut first_line, mut waits) = (None, Vec::new());
    while let Some(line) = lines.next_line().await? {
        if let Some(kind) = line.strip_prefix("event:") {
            kind.trim().clone_into(&mut event);
        } else if let Some(data) = line.strip_prefix("data:") {
            match event.as_str() {
                "log" => {
                    first_line.get_or_insert_with(Utc::now);
                    let log: Log = serde_json::from_str(data)?;
                    let now = uptime(&fs::read_to_string("/proc/uptime")?);
                    let now = now.context("/proc/uptime")?;
                    waits.extend(log.text.lines().filter_map(uptime).map(|printed| (now - printed) * 1e3));
                }
                "end" => {
                    return Ok(Followed {
                        first_line,
                        waits,
                        ended: Utc::now(),
                        end: serde_json::from_str(data)?,
                    });
                }
                _ => {}
            }
        }
    }
    None.context("the stream of events broke off")
}
