//! Builders: one file each turns a specification into a [`RunPlan`] and a failed step's output into a failure. All of
//! it is pure; both runners use it with their own paths.
//!
//! What the user gave ends up as single elements of an argument vector, behind a flag or a `key=` of ours, so no value
//! can be read as an option. Nothing passes through a shell.

pub mod buildah;
pub mod buildkit;
pub mod credentials;
mod failure;

use std::path::Path;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use kiln_agent::{
    archive::Limits,
    wire::plan::{Plan, RunPlan, SourceKind, SourcePlan},
};

pub(super) use self::failure::out_of_memory;
pub use self::{
    buildah::StorageDriver,
    failure::{classify, relative_to},
};
use super::registry::Registry;
use crate::domain::{
    build::Assignment,
    secret::Credentials,
    spec::{BuildSpec, Builder, ImageRef, Platform, Resources, Source},
};

/// What a plan needs to know of the place where it will run. Paths are absolute and UTF-8.
#[derive(Clone, Copy, Debug)]
pub struct Env<'a> {
    /// Registries as the operator describes them; others are reached by HTTPS.
    pub registries: &'a [Registry],
    /// Folder that the source step fills.
    pub source: &'a Path,
    /// Folder for the builder's configuration, results and sockets; this attempt's alone.
    pub scratch: &'a Path,
    /// Folder for the builder's layers; this attempt's alone.
    pub storage: &'a Path,
    /// What the attempt is given to log in with.
    pub credentials: &'a Credentials,
    /// Folder that holds the credentials of the source step, where there are any.
    pub source_credentials: &'a Path,
    /// Folder that holds the credentials of the build step, where there are any.
    pub build_credentials: &'a Path,
    /// How buildah keeps its layers.
    pub storage_driver: StorageDriver,
    /// Seconds that processes get between SIGTERM and SIGKILL.
    pub grace_seconds: u32,
}

/// The plan of an attempt.
pub fn plan(assignment: &Assignment, env: &Env<'_>) -> Plan {
    let spec = &assignment.spec;
    let upload = assignment.credentials.upload.as_ref();
    let from = match &spec.source {
        Source::Git {
            url,
            reference,
            commit,
            submodules,
            subdir: _,
            credentials: _,
        } => SourceKind::Git {
            url: url.as_str().to_owned(),
            reference: reference.as_ref().map(ToString::to_string),
            commit: assignment.commit.as_ref().or(commit.as_ref()).map(ToString::to_string),
            submodules: *submodules,
            credentials: credentials::source(env),
        },
        Source::Archive { url, sha256, .. } => SourceKind::Archive {
            url: url.to_string(),
            sha256: sha256.to_string(),
            limits: archive_limits(&spec.resources),
        },
        Source::Upload { .. } => SourceKind::Upload {
            // Whoever launches an attempt has put it there.
            url: upload.map(|upload| upload.url.clone()).unwrap_or_default(),
            token: credentials::upload_token(env.source_credentials),
            limits: archive_limits(&spec.resources),
        },
        Source::Inline { files } => SourceKind::Inline {
            files: files
                .files()
                .iter()
                .map(|(path, text)| (path.to_string(), BASE64_STANDARD.encode(text)))
                .collect(),
        },
    };
    Plan {
        source: SourcePlan {
            into: env.source.to_owned(),
            from,
            subdir: spec.source.subdir().to_owned(),
            dockerfile: spec.dockerfile.to_string(),
            template: spec.template.as_ref().map(|vars| vars.values().clone()),
            mask: credentials::masked_in_source(env),
        },
        build: run_plan(spec, env),
    }
}

/// The build step of a plan.
pub fn run_plan(spec: &BuildSpec, env: &Env<'_>) -> RunPlan {
    match spec.builder {
        Builder::Buildkit => buildkit::plan(spec, env),
        Builder::Buildah => buildah::plan(spec, env),
    }
}

/// Most files, folders and links in an archive.
const MAX_ENTRIES: u64 = 1_000_000;

/// What an archive may hold: no more than the build may keep on its disk.
fn archive_limits(resources: &Resources) -> Limits {
    Limits {
        bytes: resources.disk.0,
        unpacked_bytes: resources.disk.0,
        entries: MAX_ENTRIES,
    }
}

/// Absolute path of the build context.
fn context(source: &Source, env: &Env<'_>) -> String {
    match source.subdir() {
        "" => text(env.source),
        subdir => text(&env.source.join(subdir)),
    }
}

/// Absolute path of the folder that the Dockerfile's path counts from, and that path.
fn dockerfile<'s>(spec: &'s BuildSpec, env: &Env<'_>) -> (String, &'s str) {
    match spec.dockerfile.from_root() {
        Some(path) => (text(env.source), path),
        None => (context(&spec.source, env), spec.dockerfile.as_str()),
    }
}

/// A path as an argument.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Whether the operator allows plain HTTP, or TLS without verification, for an image's registry.
fn insecure(registries: &[Registry], image: &ImageRef) -> bool {
    registries
        .iter()
        .any(|registry| registry.insecure && registry.host == image.registry())
}

/// Platforms as both builders take them.
fn platforms(spec: &BuildSpec) -> String {
    let names: Vec<&str> = spec.platforms.iter().map(Platform::as_str).collect();
    names.join(",")
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::OnceLock;

    use super::*;
    use crate::domain::{
        id::{AttemptId, BuildId},
        node::AvoidedNodes,
        spec::{CpuMillis, MemoryBytes, Resources},
    };

    pub(in super::super) fn spec(builder: Builder) -> BuildSpec {
        BuildSpec {
            source: Source::Git {
                url: "https://git.example/team/app.git".parse().unwrap(),
                reference: Some("main".parse().unwrap()),
                commit: None,
                subdir: "svc/api".parse().unwrap(),
                submodules: true,
                credentials: None,
            },
            dockerfile: "docker/Dockerfile".parse().unwrap(),
            template: None,
            build_args: [(
                "GREETING".parse().unwrap(),
                "--hello, $(world) \"=\"\n".parse().unwrap(),
            )]
            .into(),
            target: Some("final".parse().unwrap()),
            platforms: vec!["linux/amd64".parse().unwrap()],
            labels: [("org.example/team".parse().unwrap(), "a,b".parse().unwrap())].into(),
            images: vec![
                "registry.example:5000/team/app:1".parse().unwrap(),
                "docker.io/team/app".parse().unwrap(),
            ],
            push: true,
            registry_credentials: vec![],
            secrets: [].into(),
            ssh: None,
            builder,
            resources: Resources {
                cpu: CpuMillis(2000),
                memory: MemoryBytes(4 << 30),
                disk: MemoryBytes(20 << 30),
            },
            timeout_seconds: 3600,
            group: None,
            priority: 0,
            annotations: [].into(),
            cache: None,
        }
    }

    pub(in super::super) fn assignment(builder: Builder) -> Assignment {
        Assignment {
            attempt: AttemptId {
                build: BuildId(uuid::uuid!("0191d2a0-7c1e-7000-8000-000000000001")),
                number: 2,
            },
            project: "default".parse().unwrap(),
            spec: spec(builder),
            commit: None,
            credentials: Credentials::default(),
            avoid: AvoidedNodes::default(),
        }
    }

    pub(super) fn registries() -> Vec<Registry> {
        let registry = |host: &str, mirrors: &[&str], insecure| Registry {
            host: host.to_owned(),
            mirrors: mirrors.iter().map(|&mirror| mirror.to_owned()).collect(),
            insecure,
            ca: None,
            ca_file: None,
            verify: true,
        };
        vec![
            registry("docker.io", &["mirror.example:5000/hub", "second.example"], false),
            registry("mirror.example:5000", &[], true),
            registry("registry.example:5000", &[], true),
        ]
    }

    static NONE: OnceLock<Credentials> = OnceLock::new();

    pub(super) fn env(registries: &[Registry]) -> Env<'_> {
        Env {
            registries,
            source: Path::new("/kiln/source/tree"),
            scratch: Path::new("/kiln/scratch"),
            storage: Path::new("/kiln/storage"),
            credentials: NONE.get_or_init(Credentials::default),
            source_credentials: Path::new("/kiln/credentials/source"),
            build_credentials: Path::new("/kiln/credentials/build"),
            storage_driver: StorageDriver::Vfs,
            grace_seconds: 5,
        }
    }

    /// The one value that follows `flag` in an argument vector, for every time it is given.
    pub(super) fn values<'a>(argv: &'a [String], flag: &str) -> Vec<&'a str> {
        argv.windows(2)
            .filter(|pair| pair[0] == flag)
            .map(|pair| pair[1].as_str())
            .collect()
    }

    #[test]
    fn an_earlier_attempts_commit_wins() {
        let mut assignment = assignment(Builder::Buildkit);
        let commit = "0123456789abcdef0123456789abcdef01234567";
        assignment.commit = Some(commit.parse().unwrap());
        let plan = plan(&assignment, &env(&[]));
        let SourceKind::Git {
            commit: Some(fetched), ..
        } = plan.source.from
        else {
            panic!("expected a git source with a commit");
        };
        assert_eq!(fetched, commit);
        assert_eq!(plan.source.subdir, "svc/api");
        assert_eq!(plan.source.dockerfile, "docker/Dockerfile");
    }

    #[test]
    fn a_dockerfile_may_be_outside_the_context() {
        let mut spec = spec(Builder::Buildkit);
        spec.dockerfile = "/docker/Dockerfile".parse().unwrap();
        let argv = run_plan(&spec, &env(&[])).commands.remove(0).argv;
        let local = values(&argv, "--local");
        assert_eq!(
            local,
            ["context=/kiln/source/tree/svc/api", "dockerfile=/kiln/source/tree"]
        );
        assert!(values(&argv, "--opt").contains(&"filename=docker/Dockerfile"));
        spec.builder = Builder::Buildah;
        let argv = run_plan(&spec, &env(&[])).commands.remove(0).argv;
        assert_eq!(values(&argv, "--file"), ["/kiln/source/tree/docker/Dockerfile"]);
        assert_eq!(argv.last().unwrap(), "/kiln/source/tree/svc/api");
    }

    #[test]
    fn inline_files_travel_as_base64() {
        let mut assignment = assignment(Builder::Buildkit);
        assignment.spec.source = serde_json::from_value(serde_json::json!({
            "type": "inline", "files": {"Dockerfile": "FROM scratch\n"},
        }))
        .unwrap();
        let plan = plan(&assignment, &env(&[]));
        let SourceKind::Inline { files } = plan.source.from else {
            panic!("expected an inline source");
        };
        assert_eq!(files["Dockerfile"], BASE64_STANDARD.encode("FROM scratch\n"));
        assert_eq!(plan.source.subdir, "");
    }
}
