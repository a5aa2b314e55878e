//! The request of `POST /v1/builds` as the API's description shows it. What is accepted is decided by
//! [`crate::domain::spec::request`]; a test holds the two together.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::{
    id::UploadId,
    project::ProjectName,
    secret::SecretName,
    spec::{
        ArchiveUrl, Builder, CommitId, CpuMillis, DockerfilePath, GitRef, GitUrl, GroupKey, ImageRef, InlineFiles,
        MemoryBytes, Platform, RelPath, Sha256Hex, StageName, Supersede,
    },
};

/// A build to be made.
#[derive(Debug, Default, Serialize, ToSchema)]
#[serde(default)]
pub(super) struct CreateBuild {
    /// The project that is to own it; the token's own when absent.
    project: Option<ProjectName>,
    /// Where the source comes from.
    #[schema(required = true, nullable = false)]
    source: Option<CreateSource>,
    /// The Dockerfile, relative to the context; with a `/` in front, to the source's root.
    #[schema(default = "Dockerfile")]
    dockerfile: Option<DockerfilePath>,
    /// Variables to render the Dockerfile with, as a Jinja template: names to any JSON, at most 32 KiB. A variable that
    /// the Dockerfile uses and that isn't given is an error.
    #[schema(value_type = Option<Object>)]
    template: Option<BTreeMap<String, serde_json::Value>>,
    /// `ARG` values.
    build_args: BTreeMap<String, String>,
    /// The stage to build; the last one when absent.
    target: Option<StageName>,
    /// What the image is to run on: exactly one of those that the installation offers.
    platforms: Option<Vec<Platform>>,
    /// Set on the image, and searchable.
    labels: BTreeMap<String, String>,
    /// Names to give to the image, each with its registry's host. Required unless `push` is false.
    #[schema(value_type = Vec<String>, example = json!(["registry.example/team/app:1"]))]
    images: Vec<ImageRef>,
    /// Whether to push the image under all its names.
    #[schema(default = true)]
    push: Option<bool>,
    /// Names of secrets of kind `registry`, for pulling and pushing: one, or a list with at most one for each registry.
    registry_credentials: Option<OneOrMore>,
    /// What the Dockerfile mounts by `RUN --mount=type=secret`: its `id` → name of a secret of kind `build`.
    secrets: BTreeMap<String, String>,
    /// Name of a secret of kind `git` with an SSH key, for `RUN --mount=type=ssh`.
    ssh: Option<SecretName>,
    /// Where the results of steps are looked for and left in a registry: `{"from": [refs], "to": ref, "mode": "min"}`,
    /// or a reference that stands for `from` and `to`, or false for none. Absent: what the project has.
    #[schema(value_type = Option<Object>)]
    cache: (),
    /// The program that makes the image; the installation's first when absent.
    builder: Option<Builder>,
    /// What the build may use.
    resources: Option<CreateResources>,
    /// Seconds a running attempt may take.
    #[schema(minimum = 1)]
    timeout_seconds: Option<u32>,
    /// Higher goes first among all that is queued, whatever its project.
    #[schema(default = 0)]
    priority: Option<i16>,
    /// The builds of which the newest counts.
    group: Option<CreateGroup>,
    /// Whether a build that is in flight for an identical request, which said so too, is shared instead of making another.
    #[schema(default = false)]
    coalesce: Option<bool>,
    /// Free-form notes of the caller; shown, never interpreted.
    #[schema(value_type = Object)]
    annotations: BTreeMap<String, serde_json::Value>,
}

/// Builds of the same key in the same project.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CreateBuildGroup)]
struct CreateGroup {
    /// What they have in common, such as a repository and a branch: 1 to 200 characters.
    #[schema(required = true, nullable = false, value_type = String, example = "app/main")]
    key: Option<GroupKey>,
    /// Which older builds of the key this one takes the place of: those that wait, or also those that have begun.
    #[schema(default = "no")]
    supersede: Option<Supersede>,
    /// Whether the build waits until no other of the key is live, nor queued before it with the same wish.
    #[schema(default = false)]
    serialize: Option<bool>,
}

/// Names of secrets.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "only described, never made")]
enum OneOrMore {
    /// One.
    One(SecretName),
    /// Several.
    More(Vec<SecretName>),
}

/// Where a source comes from.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = CreateBuildSource)]
#[expect(dead_code, reason = "only described, never made")]
enum CreateSource {
    /// A git repository.
    Git {
        /// The repository: `https`, `http` or `ssh`, without user and password.
        url: GitUrl,
        /// Branch, tag or full ref name; the remote's HEAD when neither this nor `commit` is given.
        #[serde(rename = "ref")]
        reference: Option<GitRef>,
        /// Full commit id; wins over `ref`.
        commit: Option<CommitId>,
        /// Build context within the repository; empty for its root.
        #[schema(default = "")]
        subdir: Option<RelPath>,
        /// Whether to fetch submodules.
        #[schema(default = false)]
        submodules: Option<bool>,
        /// Name of a secret of kind `git` that opens the repository.
        credentials: Option<SecretName>,
    },
    /// Files that come with the request.
    Inline {
        /// Path → text; at most 256 files and 128 KiB in all.
        files: InlineFiles,
    },
    /// An archive on a web server: tar or tar.gz.
    Archive {
        /// The archive: `https` or `http`, without user and password.
        url: ArchiveUrl,
        /// SHA-256 of the file, as `sha256sum` prints it.
        sha256: Sha256Hex,
        /// Build context within the archive; empty for its root.
        #[schema(default = "")]
        subdir: Option<RelPath>,
    },
    /// An archive that was sent to `POST /v1/uploads` before.
    Upload {
        /// What it was called there.
        #[schema(value_type = uuid::Uuid)]
        id: UploadId,
        /// Build context within the archive; empty for its root.
        #[schema(default = "")]
        subdir: Option<RelPath>,
    },
}

/// What a build may use; the installation's default for each that is absent.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CreateBuildResources)]
struct CreateResources {
    /// Processor time: `2`, `0.5` or `500m`.
    cpu: Option<CpuMillis>,
    /// Memory: `4Gi`, `512Mi`.
    memory: Option<MemoryBytes>,
    /// Local disk: `20Gi`.
    disk: Option<MemoryBytes>,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::domain::spec::{Limits, request::BuildRequest};

    #[test]
    fn the_description_has_the_fields_that_are_read() {
        // Every field is named in the answer to a field that nobody knows.
        let errors = BuildRequest::read(&json!({"?": 0}), &Limits::default()).expect_err("refused");
        let unknown = errors.iter().find(|error| error.pointer == "/?").expect("reported");
        let read: Vec<&str> = unknown.detail.split('`').skip(1).step_by(2).collect();
        let Value::Object(described) = serde_json::to_value(CreateBuild::default()).expect("serialises") else {
            panic!("an object");
        };
        let mut described: Vec<_> = described.keys().map(String::as_str).collect();
        let mut sorted = read.clone();
        sorted.sort_unstable();
        described.sort_unstable();
        assert_eq!(sorted, described);
    }
}
