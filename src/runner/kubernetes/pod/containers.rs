//! The containers of a build pod, what each may do, and the volumes that they share.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        AppArmorProfile, Capabilities, Container, DownwardAPIVolumeFile, DownwardAPIVolumeSource, EmptyDirVolumeSource,
        EnvVar, KeyToPath, ObjectFieldSelector, ResourceRequirements, SeccompProfile, SecretVolumeSource,
        SecurityContext, Volume, VolumeMount,
    },
    apimachinery::pkg::api::resource::Quantity,
};

use super::{LOG_TOKEN, Outline, PLAN, SHIP};
use crate::{
    domain::{
        event::StepName,
        secret::LogAccess,
        spec::{Builder, CpuMillis, MemoryBytes, Resources},
    },
    runner::kubernetes::config::Config,
};

/// The user of every container, where the builder doesn't need another one.
pub(super) const USER: i64 = 1000;

/// Where the agent's program is put for the build container.
pub(super) const BIN_DIR: &str = "/kiln/bin";
pub(super) const INSTALLED_AGENT: &str = "/kiln/bin/kiln-agent";
const PLAN_DIR: &str = "/kiln/plan";
pub(super) const SOURCE_DIR: &str = "/kiln/source";
pub(super) const SCRATCH_DIR: &str = "/kiln/scratch";
/// What the steps have printed and the sidecar has not pushed yet.
const SPOOL_DIR: &str = "/kiln/spool";
const LOG_TOKEN_DIR: &str = "/kiln/log-token";
/// What a spool takes beyond what it may hold: folders, and the piece that fills it up.
const SPOOL_SLACK: u64 = 64 << 20;
/// Volumes with what a step is to log in with.
pub(super) const SOURCE_CREDENTIALS: &str = "source-credentials";
pub(super) const BUILD_CREDENTIALS: &str = "build-credentials";
pub(super) const SOURCE_CREDENTIALS_DIR: &str = "/kiln/credentials/source";
pub(super) const BUILD_CREDENTIALS_DIR: &str = "/kiln/credentials/build";
pub(super) const STORAGE_VOLUME: &str = "/kiln/storage";
/// A folder in the volume, with a mode of its own.
pub(super) const STORAGE_DIR: &str = "/kiln/storage/layers";

pub(super) fn init_containers(config: &Config, outline: &Outline) -> Vec<Container> {
    let ship = outline.log.as_ref().map(|log| ship_container(config, log));
    match &config.source_image {
        None => {
            let mut command = agent_command("/kiln-agent", StepName::Source, config, outline);
            command.extend(["--install", BIN_DIR].map(str::to_owned));
            let source = source_container(&config.agent_image, command, false, outline);
            ship.into_iter().chain([source]).collect()
        }
        Some(image) => {
            let command = agent_command(INSTALLED_AGENT, StepName::Source, config, outline);
            let source = source_container(image, command, true, outline);
            [agent_container(config)]
                .into_iter()
                .chain(ship)
                .chain([source])
                .collect()
        }
    }
}

/// Started before the steps and told to end after them, as a sidecar is: an init container that is always restarted.
fn ship_container(config: &Config, log: &LogAccess) -> Container {
    let token = format!("{LOG_TOKEN_DIR}/token");
    let steps = StepName::ALL.map(StepName::as_str).join(",");
    let command = [
        "/kiln-agent",
        "ship",
        "--spool",
        SPOOL_DIR,
        "--url",
        &log.url,
        "--token",
        &token,
        "--steps",
        &steps,
    ];
    Container {
        name: SHIP.to_owned(),
        image: Some(config.agent_image.clone()),
        command: Some(command.map(str::to_owned).into()),
        resources: Some(requirements(&Resources {
            cpu: CpuMillis(100),
            memory: MemoryBytes(64 << 20),
            disk: MemoryBytes(config.log_spool.0.saturating_add(SPOOL_SLACK)),
        })),
        restart_policy: Some("Always".to_owned()),
        security_context: Some(confined()),
        volume_mounts: Some(vec![
            mount("log-token", LOG_TOKEN_DIR, true),
            mount("spool", SPOOL_DIR, false),
        ]),
        ..container()
    }
}

fn agent_container(config: &Config) -> Container {
    Container {
        name: "agent".to_owned(),
        image: Some(config.agent_image.clone()),
        command: Some(["/kiln-agent", "install", BIN_DIR].map(str::to_owned).into()),
        resources: Some(requirements(&Resources {
            cpu: CpuMillis(100),
            memory: MemoryBytes(64 << 20),
            disk: MemoryBytes(64 << 20),
        })),
        security_context: Some(confined()),
        volume_mounts: Some(vec![mount("bin", BIN_DIR, false)]),
        ..container()
    }
}

fn source_container(image: &str, command: Vec<String>, installed: bool, outline: &Outline) -> Container {
    let mut mounts = vec![
        mount("bin", BIN_DIR, installed),
        mount("plan", PLAN_DIR, true),
        mount("source", SOURCE_DIR, false),
        mount("tmp", "/tmp", false),
    ];
    mounts.extend(spool(outline));
    if !outline.credentials.source.is_empty() {
        mounts.push(mount(SOURCE_CREDENTIALS, SOURCE_CREDENTIALS_DIR, true));
    }
    Container {
        name: "source".to_owned(),
        image: Some(image.to_owned()),
        command: Some(command),
        env: Some(vec![env("HOME", "/tmp")]),
        resources: Some(requirements(&outline.resources)),
        security_context: Some(confined()),
        volume_mounts: Some(mounts),
        ..container()
    }
}

pub(super) fn build_container(config: &Config, outline: &Outline) -> Container {
    let (security_context, env) = match outline.builder {
        Builder::Buildkit => (rootless(), vec![]),
        Builder::Buildah => (chroot_isolation(), vec![self::env("BUILDAH_ISOLATION", "chroot")]),
    };
    let mut resources = outline.resources;
    if let Some(CpuMillis(more)) = config.overhead.cpu {
        resources.cpu.0 = resources.cpu.0.saturating_add(more);
    }
    if let Some(MemoryBytes(more)) = config.overhead.memory {
        resources.memory.0 = resources.memory.0.saturating_add(more);
    }
    let mut mounts = vec![
        mount("bin", BIN_DIR, true),
        mount("plan", PLAN_DIR, true),
        mount("source", SOURCE_DIR, false),
        mount("scratch", SCRATCH_DIR, false),
        mount("storage", STORAGE_VOLUME, false),
    ];
    mounts.extend(spool(outline));
    if !outline.credentials.build.is_empty() {
        mounts.push(mount(BUILD_CREDENTIALS, BUILD_CREDENTIALS_DIR, true));
    }
    Container {
        name: "build".to_owned(),
        image: Some(outline.builder_image.clone()),
        command: Some(agent_command(INSTALLED_AGENT, StepName::Build, config, outline)),
        env: Some(env),
        resources: Some(requirements(&resources)),
        security_context: Some(security_context),
        volume_mounts: Some(mounts),
        ..container()
    }
}

/// What all containers have in common.
fn container() -> Container {
    Container {
        image_pull_policy: Some("IfNotPresent".to_owned()),
        ..Default::default()
    }
}

fn agent_command(program: &str, step: StepName, config: &Config, outline: &Outline) -> Vec<String> {
    let verb = match step {
        StepName::Source => "source",
        StepName::Build => "run",
    };
    let mut command: Vec<String> = [
        program,
        verb,
        "--plan",
        "/kiln/plan/plan.json",
        "--report",
        "/dev/termination-log",
    ]
    .map(str::to_owned)
    .into();
    if outline.log.is_some() {
        command.extend(["--spool".to_owned(), SPOOL_DIR.to_owned()]);
        command.extend(["--spool-limit".to_owned(), config.log_spool.0.to_string()]);
    }
    command
}

fn spool(outline: &Outline) -> Option<VolumeMount> {
    outline.log.as_ref().map(|_| mount("spool", SPOOL_DIR, false))
}

/// For a container that needs nothing.
fn confined() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities {
            add: None,
            drop: Some(vec!["ALL".to_owned()]),
        }),
        read_only_root_filesystem: Some(true),
        run_as_non_root: Some(true),
        ..Default::default()
    }
}

/// For rootless BuildKit: an ordinary user who may make a user namespace. The helpers that map ids are setuid
/// (moby/buildkit#1671), hence the escalation.
fn rootless() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(true),
        run_as_group: Some(USER),
        run_as_non_root: Some(true),
        run_as_user: Some(USER),
        ..unconfined()
    }
}

/// For buildah with chroot isolation: a root who may do nothing but make a user namespace that maps every id to itself
/// (`user_namespaces(7)`: SETUID, SETGID, and SETFCAP since Linux 5.12), and end the processes of all these ids.
/// Setuid programs in `RUN` (sudo, su) need the escalation.
fn chroot_isolation() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(true),
        capabilities: Some(Capabilities {
            add: Some(["KILL", "SETFCAP", "SETGID", "SETUID"].map(str::to_owned).into()),
            drop: Some(vec!["ALL".to_owned()]),
        }),
        run_as_group: Some(0),
        run_as_user: Some(0),
        ..unconfined()
    }
}

fn unconfined() -> SecurityContext {
    SecurityContext {
        app_armor_profile: Some(AppArmorProfile {
            type_: "Unconfined".to_owned(),
            localhost_profile: None,
        }),
        seccomp_profile: Some(seccomp("Unconfined")),
        ..Default::default()
    }
}

pub(super) fn seccomp(profile: &str) -> SeccompProfile {
    SeccompProfile {
        type_: profile.to_owned(),
        localhost_profile: None,
    }
}

/// The same as request and limit: a build gets what it asked for and no more, whoever its neighbours are.
fn requirements(resources: &Resources) -> ResourceRequirements {
    let amounts: BTreeMap<String, Quantity> = [
        ("cpu", resources.cpu.to_string()),
        ("memory", resources.memory.to_string()),
        ("ephemeral-storage", resources.disk.to_string()),
    ]
    .map(|(name, amount)| (name.to_owned(), Quantity(amount)))
    .into();
    ResourceRequirements {
        claims: None,
        limits: Some(amounts.clone()),
        requests: Some(amounts),
    }
}

pub(super) fn volumes(config: &Config, outline: &Outline) -> Vec<Volume> {
    let resources = &outline.resources;
    let empty = |name: &str, size: MemoryBytes| Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            medium: None,
            size_limit: Some(Quantity(size.to_string())),
        }),
        ..Default::default()
    };
    let credentials = [
        (SOURCE_CREDENTIALS, &outline.credentials.source),
        (BUILD_CREDENTIALS, &outline.credentials.build),
    ];
    let credentials = credentials.into_iter().filter(|(_, files)| !files.is_empty());
    let mut volumes: Vec<Volume> = credentials.map(|(name, files)| secret(name, outline, files)).collect();
    volumes.extend(vec![
        empty("bin", MemoryBytes(64 << 20)),
        empty("tmp", MemoryBytes(64 << 20)),
        empty("source", resources.disk),
        empty("scratch", resources.disk),
        empty("storage", resources.disk),
        annotated("plan", PLAN, "plan.json"),
    ]);
    if outline.log.is_some() {
        // Each step fills its own share.
        let held = config.log_spool.0.saturating_mul(StepName::ALL.len() as u64);
        volumes.push(empty("spool", MemoryBytes(held.saturating_add(SPOOL_SLACK))));
        volumes.push(annotated("log-token", LOG_TOKEN, "token"));
    }
    volumes
}

/// An annotation of the pod as a file.
fn annotated(name: &str, annotation: &str, file: &str) -> Volume {
    Volume {
        name: name.to_owned(),
        downward_api: Some(DownwardAPIVolumeSource {
            default_mode: None,
            items: Some(vec![DownwardAPIVolumeFile {
                field_ref: Some(ObjectFieldSelector {
                    api_version: None,
                    field_path: format!("metadata.annotations['{annotation}']"),
                }),
                path: file.to_owned(),
                ..Default::default()
            }]),
        }),
        ..Default::default()
    }
}

/// A step's own files out of the attempt's Secret. The pod's group lets its ordinary user read them.
fn secret(name: &str, outline: &Outline, files: &[String]) -> Volume {
    let item = |file: &String| KeyToPath {
        key: file.clone(),
        mode: None,
        path: file.clone(),
    };
    Volume {
        name: name.to_owned(),
        secret: Some(SecretVolumeSource {
            default_mode: Some(0o400),
            items: Some(files.iter().map(item).collect()),
            optional: None,
            secret_name: Some(super::name(outline.attempt)),
        }),
        ..Default::default()
    }
}

fn mount(name: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        read_only: read_only.then_some(true),
        ..Default::default()
    }
}

fn env(name: &str, value: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value: Some(value.to_owned()),
        value_from: None,
    }
}
