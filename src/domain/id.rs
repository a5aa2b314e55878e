//! Identifiers.

use std::{fmt, str::FromStr, sync::Mutex};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::{ContextV7, Timestamp, Uuid};

use super::spec::Invalid;

/// A build: a UUID of version 7, so that ids sort by creation time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BuildId(pub Uuid);

impl BuildId {
    /// A fresh id.
    #[expect(clippy::new_without_default, reason = "two calls give different values")]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }

    /// A fresh id of this time. Ids that are made one after the other sort in that order.
    pub fn at(now: DateTime<Utc>) -> Self {
        static CONTEXT: Mutex<ContextV7> = Mutex::new(ContextV7::new());
        let seconds = u64::try_from(now.timestamp()).unwrap_or(0);
        let timestamp = Timestamp::from_unix(&CONTEXT, seconds, now.timestamp_subsec_nanos());
        Self(Uuid::new_v7(timestamp))
    }
}

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for BuildId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// One try at a build: the build and a number that counts from 1. Everything outside the database that belongs to an
/// attempt (pod, folder) is named after it, so that creating it twice is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId {
    /// The build.
    pub build: BuildId,
    /// 1 for the first attempt.
    pub number: u32,
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.build, self.number)
    }
}

impl FromStr for AttemptId {
    type Err = InvalidAttemptId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (build, number) = text.rsplit_once('-').ok_or(InvalidAttemptId)?;
        Ok(Self {
            build: build.parse().map_err(|_| InvalidAttemptId)?,
            number: number.parse().map_err(|_| InvalidAttemptId)?,
        })
    }
}

/// The text isn't `<build id>-<number>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an attempt id is a build id, a dash and a number")]
pub struct InvalidAttemptId;

/// An archive that a caller sent to be built from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UploadId(pub Uuid);

impl UploadId {
    /// A fresh id.
    #[expect(clippy::new_without_default, reason = "two calls give different values")]
    pub fn new() -> Self {
        Self(Uuid::now_v7())
    }
}

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for UploadId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse()
            .map(Self)
            .map_err(|_| Invalid::new("expected the `id` that `POST /v1/uploads` answered with"))
    }
}

/// One running `kiln serve`; new at every start, so that a restarted process never mistakes old leases for its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReplicaId(pub Uuid);

impl ReplicaId {
    /// A fresh id.
    #[expect(clippy::new_without_default, reason = "two calls give different values")]
    pub fn new() -> Self {
        Self(Uuid::new_v4())
    }
}

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
