//! What a build is asked to do, once every field has been checked. A value of these types is safe to put into a pod
//! spec or an argument vector as it is; reading it back from JSON checks it again.

pub mod cache;
pub mod group;
pub mod image;
pub mod limits;
pub mod reader;
pub mod request;
pub mod resources;
pub mod source;
pub mod template;
pub mod text;

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::secret::{SecretMountId, SecretName};

pub use self::{
    cache::{Cache, CacheMode},
    group::{Group, GroupKey, Supersede},
    image::{Digest, ImageRef},
    limits::Limits,
    resources::{CpuMillis, MemoryBytes, Resources},
    source::{ArchiveUrl, CommitId, DockerfilePath, GitRef, GitUrl, InlineFiles, RelPath, Sha256Hex, Source},
    template::TemplateVars,
    text::{BuildArgName, BuildArgValue, LabelKey, LabelValue, Platform, StageName},
};

/// A value that can't be accepted, in words that say what would be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

impl Invalid {
    /// An error that names what is expected.
    pub fn new(expected: impl Into<String>) -> Self {
        Self(expected.into())
    }
}

/// The programs that can make an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Builder {
    /// Rootless BuildKit.
    Buildkit,
    /// Buildah with chroot isolation.
    Buildah,
}

impl Builder {
    /// Every builder.
    pub const ALL: [Self; 2] = [Self::Buildkit, Self::Buildah];

    /// The name as in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Buildkit => "buildkit",
            Self::Buildah => "buildah",
        }
    }
}

impl fmt::Display for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An accepted request. Serialises to the `spec` that the API shows; it holds no secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BuildSpec {
    /// Where the source comes from.
    pub source: Source,
    /// The Dockerfile, relative to the context; with a `/` in front, to the source's root.
    pub dockerfile: DockerfilePath,
    /// Variables that the Dockerfile is rendered with, as a Jinja template; it is used as it stands when there are none.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub template: Option<TemplateVars>,
    /// `ARG` values.
    #[schema(value_type = BTreeMap<String, String>)]
    pub build_args: BTreeMap<BuildArgName, BuildArgValue>,
    /// The stage to build; the last one when absent.
    pub target: Option<StageName>,
    /// What the image is to run on; at least one.
    pub platforms: Vec<Platform>,
    /// Set on the image, and searchable.
    #[schema(value_type = BTreeMap<String, String>)]
    pub labels: BTreeMap<LabelKey, LabelValue>,
    /// Names to give to the image; at least one when it is pushed.
    #[schema(value_type = Vec<String>, example = json!(["registry.example/team/app:1"]))]
    pub images: Vec<ImageRef>,
    /// Whether to push the image under all its names.
    pub push: bool,
    /// Secrets with the credentials for registries.
    #[serde(default)]
    pub registry_credentials: Vec<SecretName>,
    /// What the Dockerfile mounts by `RUN --mount=type=secret`: its id → the secret's name.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, String>)]
    pub secrets: BTreeMap<SecretMountId, SecretName>,
    /// Secret with the key that the Dockerfile gets by `RUN --mount=type=ssh`.
    #[serde(default)]
    pub ssh: Option<SecretName>,
    /// Where the results of steps are looked for and left; none when absent.
    #[serde(default)]
    pub cache: Option<Cache>,
    /// The program that makes the image.
    pub builder: Builder,
    /// What the build may use.
    pub resources: Resources,
    /// Seconds a running attempt may take.
    pub timeout_seconds: u32,
    /// Higher goes first among all that is queued, whatever its project.
    pub priority: i16,
    /// The builds of which the newest counts; none when absent.
    #[serde(default)]
    pub group: Option<Group>,
    /// Free-form notes of the caller; shown, never interpreted.
    #[schema(value_type = Object)]
    pub annotations: BTreeMap<String, Value>,
}
