//! Rows as they come from the database, and their way into domain types. A row that doesn't fit is an error that
//! names the table, the column and the row.

use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde_json::Value;
use uuid::Uuid;

use super::{Error, journal::LogCursor};
use crate::domain::{
    build::{Attempt, Build},
    failure::Failure,
    id::BuildId,
    spec::BuildSpec,
    state::{BuildState, StateName},
};

/// Names the place of a bad value.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub table: &'static str,
    pub row: &'a dyn std::fmt::Display,
}

impl Place<'_> {
    pub(super) fn inconsistent(self, column: &'static str, problem: impl std::fmt::Display) -> Error {
        Error::Inconsistent {
            table: self.table,
            column,
            row: self.row.to_string(),
            problem: problem.to_string(),
        }
    }

    pub(super) fn parse<T: FromStr<Err: std::fmt::Display>>(
        self,
        column: &'static str,
        text: &str,
    ) -> Result<T, Error> {
        text.parse().map_err(|error| self.inconsistent(column, error))
    }

    pub(super) fn json<T: serde::de::DeserializeOwned>(self, column: &'static str, value: Value) -> Result<T, Error> {
        serde_json::from_value(value).map_err(|error| self.inconsistent(column, error))
    }

    pub(super) fn number(self, column: &'static str, value: i32) -> Result<u32, Error> {
        u32::try_from(value).map_err(|error| self.inconsistent(column, error))
    }

    pub(super) fn present<T>(self, column: &'static str, value: Option<T>) -> Result<T, Error> {
        value.ok_or_else(|| self.inconsistent(column, "missing"))
    }

    fn failure(
        self,
        code: Option<&str>,
        message: Option<String>,
        evidence: Option<Value>,
    ) -> Result<Option<Failure>, Error> {
        code.map(|code| {
            Ok(Failure {
                code: self.parse("failure_code", code)?,
                message: message.unwrap_or_default(),
                evidence: evidence
                    .map(|evidence| self.json("failure_evidence", evidence))
                    .transpose()?,
            })
        })
        .transpose()
    }
}

/// A row of `builds`.
pub(super) struct BuildRow {
    pub id: Uuid,
    pub project: String,
    pub state: String,
    pub spec: Value,
    pub attempts: i32,
    pub available_at: Option<DateTime<Utc>>,
    pub commit: Option<String>,
    pub digest: Option<String>,
    pub failure_code: Option<String>,
    pub failure_message: Option<String>,
    pub created_at: DateTime<Utc>,
    pub started_at: Option<DateTime<Utc>>,
    pub finished_at: Option<DateTime<Utc>>,
    pub journal_head: i64,
    pub retry_of: Option<Uuid>,
    pub retried_by: Option<Uuid>,
    pub superseded_by: Option<Uuid>,
    pub log_bytes: i64,
    pub origin: Option<Value>,
}

impl BuildRow {
    pub(super) fn into_build(self, attempts: Vec<Attempt>) -> Result<Build, Error> {
        let place = Place {
            table: "builds",
            row: &self.id,
        };
        let attempt = place.number("attempts", self.attempts)?;
        let started_at = self.started_at;
        let finished = |finished_at| place.present("finished_at", finished_at);
        let state = match place.parse("state", &self.state)? {
            StateName::Queued => BuildState::Queued {
                attempts: attempt,
                available_at: place.present("available_at", self.available_at)?,
            },
            StateName::Starting => BuildState::Starting { attempt },
            StateName::Running => BuildState::Running {
                attempt,
                started_at: place.present("started_at", started_at)?,
            },
            StateName::Cancelling => BuildState::Cancelling { attempt, started_at },
            StateName::Succeeded => BuildState::Succeeded {
                started_at: place.present("started_at", started_at)?,
                finished_at: finished(self.finished_at)?,
                digest: self
                    .digest
                    .as_deref()
                    .map(|digest| place.parse("digest", digest))
                    .transpose()?,
            },
            StateName::Failed => BuildState::Failed {
                started_at,
                finished_at: finished(self.finished_at)?,
                failure: place.present(
                    "failure_code",
                    place.failure(self.failure_code.as_deref(), self.failure_message, None)?,
                )?,
            },
            StateName::Cancelled => BuildState::Cancelled {
                started_at,
                finished_at: finished(self.finished_at)?,
            },
        };
        Ok(Build {
            id: BuildId(self.id),
            project: place.parse("project", &self.project)?,
            spec: place.json::<BuildSpec>("spec", self.spec)?,
            state,
            commit: self
                .commit
                .as_deref()
                .map(|commit| place.parse("commit", commit))
                .transpose()?,
            created_at: self.created_at,
            journal_head: self.journal_head,
            retry_of: self.retry_of.map(BuildId),
            retried_by: self.retried_by.map(BuildId),
            superseded_by: self.superseded_by.map(BuildId),
            origin: self.origin.map(|origin| place.json("origin", origin)).transpose()?,
            attempts,
            log_bytes: self.log_bytes.unsigned_abs(),
        })
    }
}

/// A row of `attempts`.
pub(super) struct AttemptRow {
    pub build_id: Uuid,
    pub number: i32,
    pub state: String,
    pub pod: String,
    pub node: Option<String>,
    pub failure_code: Option<String>,
    pub failure_message: Option<String>,
    pub failure_evidence: Option<Value>,
    pub resources: Value,
    pub created_at: DateTime<Utc>,
    pub started_at: Option<DateTime<Utc>>,
    pub finished_at: Option<DateTime<Utc>>,
    pub log_cursor: Value,
}

impl TryFrom<AttemptRow> for Attempt {
    type Error = Error;

    fn try_from(row: AttemptRow) -> Result<Self, Error> {
        let place = Place {
            table: "attempts",
            row: &row.build_id,
        };
        Ok(Self {
            number: place.number("number", row.number)?,
            state: place.parse("state", &row.state)?,
            pod: row.pod,
            node: row.node,
            failure: place.failure(row.failure_code.as_deref(), row.failure_message, row.failure_evidence)?,
            resources: place.json("resources", row.resources)?,
            created_at: row.created_at,
            started_at: row.started_at,
            finished_at: row.finished_at,
            log: place.json::<LogCursor>("log_cursor", row.log_cursor)?.shown(),
        })
    }
}
