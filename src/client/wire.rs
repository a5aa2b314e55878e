//! What the service sends, as far as it is shown. Lenient: a newer service may say more, in words not known here.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};
use uuid::Uuid;

use super::text::harmless;
use crate::domain::state::StateName;

/// Why a build or an attempt failed.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Failure {
    pub(super) code: String,
    pub(super) message: String,
}

/// A build.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Build {
    pub(super) id: Uuid,
    pub(super) project: String,
    pub(super) state: String,
    pub(super) failure: Option<Failure>,
    #[serde(default)]
    pub(super) spec: Value,
    pub(super) commit: Option<String>,
    pub(super) digest: Option<String>,
    #[serde(default)]
    pub(super) images: Vec<String>,
    #[serde(default)]
    pub(super) attempts: Vec<Attempt>,
    pub(super) created_at: DateTime<Utc>,
    pub(super) started_at: Option<DateTime<Utc>>,
    pub(super) finished_at: Option<DateTime<Utc>>,
    pub(super) retry_of: Option<Uuid>,
    pub(super) retried_by: Option<Uuid>,
    pub(super) superseded_by: Option<Uuid>,
}

impl Build {
    /// The final state, once the build is over.
    pub(super) fn ended(&self) -> Option<StateName> {
        let state: StateName = self.state.parse().ok()?;
        state.is_terminal().then_some(state)
    }
}

/// One try at a build.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Attempt {
    pub(super) number: u32,
    pub(super) state: String,
    pub(super) node: Option<String>,
    pub(super) failure: Option<Failure>,
    pub(super) started_at: Option<DateTime<Utc>>,
    pub(super) finished_at: Option<DateTime<Utc>>,
}

/// What a build waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Queue {
    #[serde(default)]
    pub(super) state: String,
    position: Option<Position>,
    blocked_by: Option<Block>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Position {
    all: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Block {
    message: String,
}

impl Queue {
    /// What keeps the build from going on, in words that are harmless on a terminal.
    pub(super) fn block(&self) -> Option<String> {
        let block = self.blocked_by.as_ref()?;
        Some(harmless(&block.message)).filter(|message| !message.trim().is_empty())
    }

    /// The same, behind how many builds go first.
    pub(super) fn reason(&self) -> Option<String> {
        let ahead = match self
            .position
            .as_ref()
            .map_or(0, |position| position.all.saturating_sub(1))
        {
            0 => None,
            1 => Some("1 build goes first".to_owned()),
            ahead => Some(format!("{ahead} builds go first")),
        };
        let parts: Vec<_> = ahead.into_iter().chain(self.block()).collect();
        Some(parts.join("; ")).filter(|reason| !reason.is_empty())
    }
}

/// A page of builds, each as it came.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct BuildList {
    pub(super) items: Vec<Box<RawValue>>,
    pub(super) next: Option<String>,
}

/// Any other list.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Items<T> {
    pub(super) items: Vec<T>,
}

/// A token, without what makes it work.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Token {
    pub(super) id: Uuid,
    pub(super) name: String,
    pub(super) scopes: Vec<String>,
    pub(super) created_at: DateTime<Utc>,
    pub(super) expires_at: Option<DateTime<Utc>>,
}

/// A token that was just made; what makes it work is shown this once.
#[derive(Clone, Deserialize)]
pub(super) struct NewToken {
    pub(super) token: String,
}

/// A secret, without what it holds.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Secret {
    pub(super) name: String,
    pub(super) kind: String,
    pub(super) registry: Option<String>,
    pub(super) updated_at: DateTime<Utc>,
}

/// A project.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Project {
    pub(super) name: String,
}

/// Something that happened to a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) seq: i64,
    pub(super) event: Event,
    /// The data as it came, on one line.
    pub(super) data: String,
}

/// The kinds of events.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Status(Status),
    Step(Step),
    Log(Log),
    Gap(Gap),
    End(End),
    /// One that is not known here.
    Other,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Status {
    pub(super) state: String,
    pub(super) attempt: Option<u32>,
    pub(super) failure: Option<StepFailure>,
    pub(super) superseded_by: Option<Uuid>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct StepFailure {
    pub(super) code: String,
    pub(super) message: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[expect(clippy::struct_field_names, reason = "the names of the fields in the stream")]
pub(super) struct Step {
    pub(super) step: String,
    pub(super) phase: String,
    pub(super) vertex: Option<u64>,
    pub(super) name: Option<String>,
    #[serde(default)]
    pub(super) cached: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Log {
    pub(super) step: String,
    pub(super) text: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Gap {
    pub(super) lines: Option<u64>,
    pub(super) reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct End {
    pub(super) state: String,
}

impl Entry {
    /// Reads an event of this kind; `None` for data that isn't an event's.
    pub(super) fn read(kind: &str, data: &str) -> Option<Self> {
        fn content<T: serde::de::DeserializeOwned>(data: &Value) -> Option<T> {
            T::deserialize(data).ok()
        }
        let value: Value = serde_json::from_str(data).ok()?;
        let event = match kind {
            "status" => Event::Status(content(&value)?),
            "step" => Event::Step(content(&value)?),
            "log" => Event::Log(content(&value)?),
            "gap" => Event::Gap(content(&value)?),
            "end" => Event::End(content(&value)?),
            _ => Event::Other,
        };
        // A line break between tokens means nothing, and none stands within a text.
        let data = data.trim().replace(['\n', '\r'], " ");
        Some(Self {
            seq: value.get("seq")?.as_i64()?,
            event,
            data,
        })
    }
}
