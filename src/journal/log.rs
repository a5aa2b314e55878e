//! The log of one attempt, to which two may write at the same time: whoever pushes it, at any replica, and the worker
//! that has the build in hand. Each works out what to append from where the log stands, and does so again when the
//! other was quicker.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use tokio::time::Instant;
use uuid::Uuid;

use super::{AppendError, Writer, lines::Room};
use crate::{
    domain::{clock::Clock, event::Event, id::BuildId, project::ProjectName, spec::MemoryBytes},
    store::{
        self,
        journal::{Fence, LogCursor, Standing},
    },
};

/// How long what a project's builds have printed is taken for what it was.
const USAGE_FRESH: Duration = Duration::from_secs(10);
/// Projects whose use of the day is remembered, at most.
const USAGE_PROJECTS: usize = 4096;

/// How much of logs is kept: `[logs]` in the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogLimits {
    /// Most text of one build, all attempts together.
    pub max_build_bytes: MemoryBytes,
    /// Most text of the builds that a project makes in one day (UTC).
    pub max_project_bytes_per_day: MemoryBytes,
    /// Most memory that pushes take at the same time in one replica, about.
    pub max_push_memory: MemoryBytes,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self {
            max_build_bytes: MemoryBytes(256 << 20),
            max_project_bytes_per_day: MemoryBytes(64 << 30),
            max_push_memory: MemoryBytes(64 << 20),
        }
    }
}

/// The way into the logs of attempts. Cheap to clone.
#[derive(Clone)]
pub struct Logs(Arc<Inner>);

struct Inner {
    pool: PgPool,
    writer: Writer,
    clock: Arc<dyn Clock>,
    limits: LogLimits,
    usage: Mutex<HashMap<ProjectName, (Instant, u64)>>,
}

impl Logs {
    /// Within these limits.
    pub fn new(pool: PgPool, writer: Writer, clock: Arc<dyn Clock>, limits: LogLimits) -> Self {
        Self(Arc::new(Inner {
            pool,
            writer,
            clock,
            limits,
            usage: Mutex::default(),
        }))
    }

    /// How much is kept.
    pub fn limits(&self) -> &LogLimits {
        &self.0.limits
    }

    pub(super) fn pool(&self) -> &PgPool {
        &self.0.pool
    }

    pub(super) fn now(&self) -> DateTime<Utc> {
        self.0.clock.now()
    }

    /// The log of an attempt, to be written under this fence.
    pub fn attempt(&self, fence: impl Into<Fence>, project: ProjectName, standing: Standing) -> LogWriter {
        LogWriter {
            logs: self.clone(),
            fence: fence.into(),
            project,
            standing,
        }
    }

    /// How much text the builds have that the project made today, as it was a few seconds ago. What can't be asked for
    /// limits nothing: logs are worth more than an exact limit.
    async fn used_today(&self, project: &ProjectName) -> u64 {
        let known = self.usage().get(project).copied();
        if let Some((at, bytes)) = known
            && at.elapsed() < USAGE_FRESH
        {
            return bytes;
        }
        match store::journal::project_bytes(&self.0.pool, project, first_of_day(self.now())).await {
            Ok(bytes) => {
                let mut usage = self.usage();
                if usage.len() >= USAGE_PROJECTS {
                    usage.retain(|_, (at, _)| at.elapsed() < USAGE_FRESH);
                }
                usage.insert(project.clone(), (Instant::now(), bytes));
                bytes
            }
            Err(error) => {
                tracing::debug!(error = %error, "what the project's builds have printed today can't be read");
                known.map_or(0, |(_, bytes)| bytes)
            }
        }
    }

    fn usage(&self) -> MutexGuard<'_, HashMap<ProjectName, (Instant, u64)>> {
        // The map is whole after every statement.
        self.0.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The smallest id that a build made on the day of `now` can have.
fn first_of_day(now: DateTime<Utc>) -> BuildId {
    let midnight = now.timestamp() - now.timestamp().rem_euclid(86_400);
    let millis = u64::try_from(midnight).unwrap_or_default() * 1000;
    let mut bytes = [0; 16];
    bytes[..6].copy_from_slice(&millis.to_be_bytes()[2..]);
    BuildId(Uuid::from_bytes(bytes))
}

/// What one writer wants to append.
#[derive(Clone, Debug)]
pub struct Change {
    /// The cursor after it.
    pub cursor: LogCursor,
    /// The entries; there may be none.
    pub events: Vec<Event>,
    /// Bytes of log text in them.
    pub text: u64,
}

/// One attempt's log in a writer's hands.
pub struct LogWriter {
    logs: Logs,
    fence: Fence,
    project: ProjectName,
    standing: Standing,
}

impl LogWriter {
    /// How far the log is in the journal, as far as this writer knows.
    pub const fn cursor(&self) -> &LogCursor {
        &self.standing.cursor
    }

    /// Number of the attempt.
    pub const fn attempt(&self) -> u32 {
        self.fence.attempt().number
    }

    /// Takes note of where the log stands now. False when the attempt is over.
    pub async fn refresh(&mut self) -> Result<bool, store::Error> {
        match store::journal::find(self.logs.pool(), self.fence.attempt()).await? {
            store::journal::Found::Live(live) => {
                self.standing = live.standing;
                Ok(true)
            }
            store::journal::Found::Over | store::journal::Found::Never => Ok(false),
        }
    }

    /// What limits the text that the attempt may still add.
    pub async fn limit(&self) -> Limit {
        let limits = self.logs.limits();
        let used = self.logs.used_today(&self.project).await;
        Limit {
            build: limits.max_build_bytes,
            project: limits.max_project_bytes_per_day,
            project_left: limits.max_project_bytes_per_day.0.saturating_sub(used),
        }
    }

    /// Appends what `change` makes of where the log stands; does it again when somebody else has moved it since.
    /// Returns once it is durable. Nothing is done when there is nothing to change.
    pub async fn update(&mut self, mut change: impl FnMut(&Standing) -> Option<Change>) -> Result<(), AppendError> {
        loop {
            let Some(Change { cursor, events, text }) = change(&self.standing) else {
                return Ok(());
            };
            let from = self.standing.cursor.clone();
            match self
                .logs
                .0
                .writer
                .append(self.fence, from, cursor.clone(), &events, text)
                .await
            {
                Ok(_) => {
                    self.standing.cursor = cursor;
                    self.standing.log_bytes += text;
                    return Ok(());
                }
                Err(AppendError::Moved(standing)) => self.standing = standing,
                Err(error) => return Err(error),
            }
        }
    }
}

/// What limits the text of an attempt.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    build: MemoryBytes,
    project: MemoryBytes,
    project_left: u64,
}

impl Limit {
    /// How much text there is room for.
    pub fn room(&self, standing: &Standing) -> Room {
        let build_left = self.build.0.saturating_sub(standing.log_bytes);
        if build_left <= self.project_left {
            Room {
                bytes: build_left,
                limit: format!(
                    "the build has printed the {} that are kept of a build's log",
                    self.build
                ),
            }
        } else {
            Room {
                bytes: self.project_left,
                limit: format!(
                    "the builds that the project has made today (UTC) have printed the {} that are kept of a day's logs",
                    self.project
                ),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone as _;

    use super::*;

    #[test]
    fn the_day_begins_at_midnight() {
        let now = Utc.with_ymd_and_hms(2030, 2, 3, 4, 5, 6).single().expect("a time");
        let first = first_of_day(now);
        let at = |hour, second| {
            let time = Utc
                .with_ymd_and_hms(2030, 2, 3, hour, 0, second)
                .single()
                .expect("a time");
            let seconds = u64::try_from(time.timestamp()).expect("after 1970");
            BuildId(Uuid::new_v7(uuid::Timestamp::from_unix(uuid::NoContext, seconds, 0)))
        };
        assert!(first < at(0, 0) && first < at(4, 0));
        let before = now - chrono::TimeDelta::days(1);
        assert!(first_of_day(before) < first);
        assert_eq!(first_of_day(now), first_of_day(now - chrono::TimeDelta::hours(4)));
    }

    #[test]
    fn the_narrower_limit_counts() {
        let limit = Limit {
            build: MemoryBytes(100),
            project: MemoryBytes(1000),
            project_left: 50,
        };
        let standing = |log_bytes| Standing {
            log_bytes,
            ..Standing::default()
        };
        assert_eq!(limit.room(&standing(0)).bytes, 50);
        assert!(limit.room(&standing(0)).limit.contains("project"));
        assert_eq!(limit.room(&standing(70)).bytes, 30);
        assert!(limit.room(&standing(70)).limit.contains("a build's log"));
        assert_eq!(limit.room(&standing(170)).bytes, 0);
    }
}
