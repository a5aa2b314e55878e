//! `/v1/uploads`: archives that callers send to be built from.

pub(super) mod create;
pub(super) mod delete;
mod digest;
pub(super) mod get;
mod spool;
mod turns;

use std::{path::PathBuf, time::Duration};

use chrono::{DateTime, Utc};
use kiln_agent::archive::Limits;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use self::{spool::Pace, turns::Turns};
use super::{
    auth::Caller,
    error::{ApiError, Missing},
};
use crate::{
    domain::{
        id::UploadId,
        project::ProjectName,
        spec::{MemoryBytes, Sha256Hex},
    },
    store::uploads::Upload,
};

/// What callers may send: `[uploads]` in the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UploadConfig {
    /// Largest archive, as it is sent.
    pub max_bytes: MemoryBytes,
    /// Most that the files of one archive may take.
    pub max_unpacked_bytes: MemoryBytes,
    /// Most files, folders and links in one archive.
    pub max_entries: u32,
    /// Most that the archives of one project may take together in the database.
    pub max_project_bytes: MemoryBytes,
    /// How long an archive is kept after it was sent or last asked to be built from.
    pub keep_seconds: u32,
    /// Archives taken at the same time by this replica; others wait.
    pub max_concurrent: u32,
    /// How many of those may be of one project.
    pub max_concurrent_per_project: u32,
    /// How long an upload waits for its turn before it is refused.
    pub wait_seconds: u32,
    /// What an archive must arrive at on average, in bytes per second; 0 for no minimum.
    pub min_bytes_per_second: u32,
    /// For so long after its turn has come, an archive may arrive as slowly as it likes.
    pub grace_seconds: u32,
    /// Where archives wait while they are checked; the system's folder for temporary files when absent.
    pub spool_dir: Option<PathBuf>,
}

impl Default for UploadConfig {
    fn default() -> Self {
        Self {
            max_bytes: MemoryBytes(1 << 30),
            max_unpacked_bytes: MemoryBytes(4 << 30),
            max_entries: 200_000,
            max_project_bytes: MemoryBytes(10 << 30),
            keep_seconds: 86_400,
            max_concurrent: 4,
            max_concurrent_per_project: 2,
            wait_seconds: 30,
            min_bytes_per_second: 32 << 10,
            grace_seconds: 30,
            spool_dir: None,
        }
    }
}

/// What the operations on uploads need beside the database.
#[derive(Debug)]
pub struct Uploads {
    config: UploadConfig,
    turns: Turns,
    /// Whether builds can fetch what was sent here.
    reachable: bool,
}

impl Uploads {
    /// `reachable` says whether pods know an address of this service.
    pub fn new(config: UploadConfig, reachable: bool) -> Self {
        Self {
            turns: Turns::new(
                config.max_concurrent,
                config.max_concurrent_per_project,
                Duration::from_secs(config.wait_seconds.into()),
            ),
            config,
            reachable,
        }
    }

    /// Whether builds can fetch what was sent here.
    pub(super) const fn reachable(&self) -> bool {
        self.reachable
    }

    fn pace(&self) -> Pace {
        Pace {
            bytes_per_second: self.config.min_bytes_per_second.into(),
            grace: Duration::from_secs(self.config.grace_seconds.into()),
        }
    }

    fn limits(&self) -> Limits {
        Limits {
            bytes: self.config.max_bytes.0,
            unpacked_bytes: self.config.max_unpacked_bytes.0,
            entries: self.config.max_entries.into(),
        }
    }
}

/// An archive that was sent.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Upload)]
pub(super) struct UploadView {
    /// Its id, for `source.id` of a build with `source.type` `upload`.
    #[schema(value_type = uuid::Uuid)]
    id: UploadId,
    /// Who owns it.
    project: ProjectName,
    /// SHA-256 of the archive as it was sent, in hexadecimal digits.
    sha256: Sha256Hex,
    /// Size of the archive as it was sent.
    bytes: u64,
    /// When it was stored.
    created_at: DateTime<Utc>,
    /// When it is deleted, unless a build that isn't over needs it. Every build that is made of it postpones this.
    expires_at: DateTime<Utc>,
}

impl From<Upload> for UploadView {
    fn from(upload: Upload) -> Self {
        Self {
            id: upload.id,
            project: upload.project,
            sha256: upload.sha256,
            bytes: upload.bytes,
            created_at: upload.created_at,
            expires_at: upload.expires_at,
        }
    }
}

/// The upload, if the caller may know of it.
fn own(caller: &Caller, upload: Option<Upload>) -> Result<Upload, ApiError> {
    upload
        .filter(|upload| caller.sees(&upload.project))
        .ok_or(ApiError::NotFound(Missing::Upload))
}
