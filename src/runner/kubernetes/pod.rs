//! From an assignment to its pod. Pure.
//!
//! The pod runs one thing after the other: `source` fetches the source and leaves the agent's program for the next,
//! `build` makes and pushes the image. Where the image with git doesn't have the agent, `agent` comes before. The plan
//! travels as an annotation that the downward API mounts as a file, so that one object is all there is to create,
//! adopt and delete.
//!
//! `ship`, a sidecar that comes before the steps and goes after them, pushes what they print to the service, from a
//! volume that the steps write to. It outlives them: whatever ends a step, what it has printed is there. Its token
//! travels like the plan, as a file that no other container has.
//!
//! What keeps a build apart: no service account token, an ordinary user, no privileges, limits on everything, no
//! restarts, and a deadline that Kubernetes itself enforces. Only the build container runs with seccomp and AppArmor
//! unconfined, which a builder without privileges needs for its user namespace (BuildKit's `docs/rootless.md`).

mod affinity;
mod containers;

use std::path::Path;

use k8s_openapi::{
    ByteString, DeepMerge,
    api::core::v1::{
        LocalObjectReference, Pod, PodSecurityContext, PodSpec, PodTemplateSpec, Secret, Toleration,
        TopologySpreadConstraint,
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference},
};

use self::containers::{
    BUILD_CREDENTIALS_DIR, SCRATCH_DIR, SOURCE_CREDENTIALS_DIR, STORAGE_DIR, USER, build_container, init_containers,
    seccomp, volumes,
};
use super::config::Config;
use crate::{
    domain::{
        build::Assignment,
        failure::{Failure, FailureCode},
        id::{AttemptId, BuildId},
        node::AvoidedNodes,
        secret::LogAccess,
        spec::{Builder, CpuMillis, MemoryBytes, Resources},
    },
    runner::{
        builder::{
            self, Env, StorageDriver,
            credentials::{CredentialFiles, SecretFile},
        },
        registry::Registry,
    },
};

/// What the name of every pod of ours begins with.
pub(super) const NAME_PREFIX: &str = "kiln-";
/// Label: the build's id.
pub(super) const BUILD: &str = "kiln.build/build";
/// Label: the attempt's number.
pub(super) const ATTEMPT: &str = "kiln.build/attempt";
/// Label: the project's name.
pub(super) const PROJECT: &str = "kiln.build/project";
/// Label: the installation's name, by which an installation knows its own pods.
pub(super) const INSTALLATION: &str = "kiln.build/installation";
/// Annotation: the pod was told to stop by setting its deadline.
pub(super) const STOPPED: &str = "kiln.build/stopped";
/// Annotation: the plan, as JSON.
pub(super) const PLAN: &str = "kiln.build/plan";

/// Annotation: what the attempt shows when it pushes its log.
pub(super) const LOG_TOKEN: &str = "kiln.build/log-token";
/// The container that pushes the log.
pub(super) const SHIP: &str = "ship";

/// How long `ship` goes on trying to reach the service once the steps have ended.
const SHIP_PATIENCE_SECONDS: i64 = 600;

/// Kubernetes limits an object's annotations to 256 KiB in all; some room is for those of admission plugins.
const MAX_PLAN: usize = 248 * 1024;

/// Whether the pod was told to stop.
pub(super) fn is_stopped(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    annotations.is_some_and(|annotations| annotations.contains_key(STOPPED))
}

/// Name of an attempt's pod: creating it twice is a conflict, which is what keeps an attempt to one pod.
pub(super) fn name(attempt: AttemptId) -> String {
    format!("{NAME_PREFIX}{attempt}")
}

/// The attempt that a pod belongs to.
pub(super) fn attempt(pod: &Pod) -> Option<AttemptId> {
    let labels = pod.metadata.labels.as_ref()?;
    Some(AttemptId {
        build: labels.get(BUILD)?.parse().ok()?,
        number: labels.get(ATTEMPT)?.parse().ok()?,
    })
}

/// Whether a pod is the one that `installation` makes for `attempt`.
pub(super) fn is_ours(pod: &Pod, installation: &str, attempt: AttemptId) -> bool {
    let labels = pod.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(INSTALLATION)).map(String::as_str) == Some(installation)
        && self::attempt(pod) == Some(attempt)
}

/// What distinguishes one pod from another.
struct Outline {
    attempt: AttemptId,
    project: String,
    builder_image: String,
    builder: Builder,
    resources: Resources,
    timeout_seconds: u32,
    plan: String,
    credentials: FileNames,
    /// Where the log is pushed to, if it is.
    log: Option<LogAccess>,
    avoid: AvoidedNodes,
}

/// What the steps find in the attempt's Secret.
#[derive(Default)]
struct FileNames {
    source: Vec<String>,
    build: Vec<String>,
}

impl FileNames {
    fn of(files: &CredentialFiles) -> Self {
        let names = |files: &[SecretFile]| files.iter().map(|file| file.name.clone()).collect();
        Self {
            source: names(&files.source),
            build: names(&files.build),
        }
    }
}

/// The pod of an attempt, or why there can be none.
pub(super) fn build(
    config: &Config,
    registries: &[Registry],
    assignment: &Assignment,
    files: &CredentialFiles,
) -> Result<Pod, Failure> {
    let spec = &assignment.spec;
    Ok(assemble(
        config,
        Outline {
            attempt: assignment.attempt,
            project: assignment.project.to_string(),
            builder_image: builder_image(config, spec.builder)?,
            builder: spec.builder,
            resources: spec.resources,
            timeout_seconds: spec.timeout_seconds,
            plan: plan(config, registries, assignment)?,
            credentials: FileNames::of(files),
            log: assignment.credentials.log.clone(),
            avoid: assignment.avoid.clone(),
        },
    ))
}

/// The Secret with an attempt's credentials. It belongs to the attempt's pod and goes with it.
pub(super) fn secret(config: &Config, assignment: &Assignment, pod_uid: &str, files: &CredentialFiles) -> Secret {
    let attempt = assignment.attempt;
    let files = files.source.iter().chain(&files.build);
    Secret {
        data: Some(
            files
                .map(|file| (file.name.clone(), ByteString(file.content.expose().to_vec())))
                .collect(),
        ),
        metadata: ObjectMeta {
            name: Some(name(attempt)),
            namespace: Some(config.namespace.clone()),
            labels: Some(labels(config, attempt, assignment.project.to_string()).into()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Pod".to_owned(),
                name: name(attempt),
                uid: pod_uid.to_owned(),
                ..Default::default()
            }]),
            ..Default::default()
        },
        type_: Some("Opaque".to_owned()),
        ..Default::default()
    }
}

/// By which the objects of an attempt are known.
fn labels(config: &Config, attempt: AttemptId, project: String) -> [(String, String); 5] {
    [
        ("app.kubernetes.io/managed-by", "kiln".to_owned()),
        (BUILD, attempt.build.to_string()),
        (ATTEMPT, attempt.number.to_string()),
        (PROJECT, project),
        (INSTALLATION, config.installation.clone()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
}

/// A pod like those of builds, for asking whether they would be admitted. Small, so that a quota lets it pass as long
/// as it lets anything pass.
pub(super) fn probe(config: &Config) -> Pod {
    let attempt = AttemptId {
        build: BuildId(uuid::Uuid::nil()),
        number: 0,
    };
    let resources = Resources {
        cpu: CpuMillis(1),
        memory: MemoryBytes(1 << 20),
        disk: MemoryBytes(1 << 20),
    };
    assemble(
        config,
        Outline {
            attempt,
            project: "probe".to_owned(),
            builder_image: config.buildkit_image.clone(),
            builder: Builder::Buildkit,
            resources,
            timeout_seconds: 1,
            plan: String::new(),
            credentials: FileNames::default(),
            log: None,
            avoid: AvoidedNodes::default(),
        },
    )
}

fn assemble(config: &Config, outline: Outline) -> Pod {
    let mut template = PodTemplateSpec {
        metadata: None,
        spec: Some(PodSpec {
            containers: vec![build_container(config, &outline)],
            image_pull_secrets: Some(
                config
                    .image_pull_secrets
                    .iter()
                    .map(|name| LocalObjectReference { name: name.clone() })
                    .collect(),
            ),
            init_containers: Some(init_containers(config, &outline)),
            security_context: Some(PodSecurityContext {
                fs_group: Some(USER),
                run_as_group: Some(USER),
                run_as_user: Some(USER),
                seccomp_profile: Some(seccomp("RuntimeDefault")),
                ..Default::default()
            }),
            service_account_name: config.service_account.clone(),
            termination_grace_period_seconds: Some(grace(config, &outline)),
            tolerations: Some(tolerations(config)),
            topology_spread_constraints: Some(vec![spread(config)]),
            volumes: Some(volumes(config, &outline)),
            ..Default::default()
        }),
    };
    let fixed = template.spec.clone().unwrap_or_default();
    template.merge_from(config.pod_template.0.clone());
    let mut spec = template.spec.unwrap_or_default();
    fix(&mut spec, fixed, config, outline.timeout_seconds);
    affinity::avoid(&mut spec, &outline.avoid);
    Pod {
        metadata: metadata(template.metadata.unwrap_or_default(), config, outline),
        spec: Some(spec),
        status: None,
    }
}

fn plan(config: &Config, registries: &[Registry], assignment: &Assignment) -> Result<String, Failure> {
    let plan = builder::plan(
        assignment,
        &Env {
            registries,
            // A folder inside the volume, so that it belongs to the user who fills it: git refuses others.
            source: Path::new("/kiln/source/tree"),
            scratch: Path::new(SCRATCH_DIR),
            storage: Path::new(STORAGE_DIR),
            credentials: &assignment.credentials,
            source_credentials: Path::new(SOURCE_CREDENTIALS_DIR),
            build_credentials: Path::new(BUILD_CREDENTIALS_DIR),
            // Overlay mounts need more than an ordinary container may.
            storage_driver: StorageDriver::Vfs,
            grace_seconds: config.stop_grace_seconds,
        },
    );
    let plan = serde_json::to_string(&plan)
        .map_err(|error| Failure::new(FailureCode::Internal, format!("The plan can't be written: {error}")))?;
    if plan.len() > MAX_PLAN {
        return Err(Failure::new(
            FailureCode::SourceFailed,
            format!(
                "Inline files, build arguments and labels come to {} bytes together and must stay below {MAX_PLAN}. Put the files into a git repository.",
                plan.len()
            ),
        ));
    }
    Ok(plan)
}

/// Metadata: the administrator's, with ours on top.
fn metadata(template: ObjectMeta, config: &Config, outline: Outline) -> ObjectMeta {
    let attempt = outline.attempt;
    let mut labels = template.labels.unwrap_or_default();
    labels.extend(self::labels(config, attempt, outline.project));
    let mut annotations = template.annotations.unwrap_or_default();
    annotations.insert(PLAN.to_owned(), outline.plan);
    if let Some(log) = outline.log {
        annotations.insert(LOG_TOKEN.to_owned(), log.token.expose().to_owned());
    }
    ObjectMeta {
        name: Some(name(attempt)),
        namespace: Some(config.namespace.clone()),
        labels: Some(labels),
        annotations: Some(annotations),
        ..Default::default()
    }
}

/// What no template may change: the fields on which isolation and the watching of the pod rest.
fn fix(spec: &mut PodSpec, ours: PodSpec, config: &Config, timeout_seconds: u32) {
    let deadline = i64::from(timeout_seconds) + i64::from(config.deadline_allowance_seconds);
    // Kubernetes takes no more.
    spec.active_deadline_seconds = Some(deadline.min(i32::MAX.into()));
    spec.automount_service_account_token = Some(false);
    spec.enable_service_links = Some(false);
    spec.host_ipc = None;
    spec.host_pid = None;
    spec.restart_policy = Some("Never".to_owned());
    // The agent is the first process of its container.
    spec.share_process_namespace = None;
    spec.termination_grace_period_seconds = ours.termination_grace_period_seconds;
    let merged = spec
        .containers
        .iter_mut()
        .chain(spec.init_containers.iter_mut().flatten());
    for container in merged {
        let ours = ours.containers.iter().chain(ours.init_containers.iter().flatten());
        if let Some(ours) = ours.into_iter().find(|ours| ours.name == container.name) {
            container.command.clone_from(&ours.command);
            container.args = None;
            // A sidecar must stay one, and a step must not become one.
            container.restart_policy.clone_from(&ours.restart_policy);
            container.termination_message_path = None;
            container.termination_message_policy = None;
            container.tty = None;
        }
        if let Some(context) = &mut container.security_context {
            context.privileged = None;
        }
    }
    // A template's list of tolerations takes the place of ours.
    let tolerations = spec.tolerations.get_or_insert_default();
    for toleration in ours.tolerations.into_iter().flatten() {
        if !tolerations.iter().any(|other| other.key == toleration.key) {
            tolerations.push(toleration);
        }
    }
}

/// The agent needs its own grace period, and a moment to write its report. The sidecar is ended after the steps and gets
/// what is left: the time that it may take to be rid of the log. Neither takes longer than it needs.
fn grace(config: &Config, outline: &Outline) -> i64 {
    let drain = if outline.log.is_some() {
        SHIP_PATIENCE_SECONDS
    } else {
        0
    };
    i64::from(config.stop_grace_seconds) + 2 + drain
}

fn builder_image(config: &Config, builder: Builder) -> Result<String, Failure> {
    match builder {
        Builder::Buildkit => Ok(config.buildkit_image.clone()),
        Builder::Buildah => config.buildah_image.clone().ok_or_else(|| {
            Failure::new(
                FailureCode::Internal,
                "This installation has no buildah: use the builder `buildkit`, or have the operator set `kubernetes.buildah_image`.",
            )
        }),
    }
}

/// How long pods stay on a node that doesn't answer; Kubernetes' own default is five minutes.
fn tolerations(config: &Config) -> Vec<Toleration> {
    ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"]
        .map(|key| Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some("NoExecute".to_owned()),
            toleration_seconds: Some(config.node_lost_seconds.into()),
            value: None,
        })
        .into()
}

/// Builds are spread over nodes where there is a choice.
fn spread(config: &Config) -> TopologySpreadConstraint {
    TopologySpreadConstraint {
        label_selector: Some(LabelSelector {
            match_expressions: None,
            match_labels: Some([(INSTALLATION.to_owned(), config.installation.clone())].into()),
        }),
        max_skew: 1,
        topology_key: "kubernetes.io/hostname".to_owned(),
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Container;

    use super::{
        containers::{BIN_DIR, INSTALLED_AGENT, SOURCE_DIR, STORAGE_VOLUME},
        *,
    };
    use crate::{
        domain::attempt_token::{AttemptKey, Purpose},
        runner::builder::tests::assignment,
    };

    fn made(config: &Config, builder: Builder) -> Pod {
        build(config, &[], &assignment(builder), &CredentialFiles::default()).unwrap()
    }

    fn container<'a>(pod: &'a Pod, name: &str) -> &'a Container {
        let spec = pod.spec.as_ref().unwrap();
        let all = spec.init_containers.iter().flatten().chain(&spec.containers);
        all.into_iter().find(|container| container.name == name).unwrap()
    }

    #[test]
    fn the_name_and_the_labels_tell_the_attempt() {
        let assignment = assignment(Builder::Buildkit);
        let pod = made(&Config::default(), Builder::Buildkit);
        assert_eq!(
            pod.metadata.name.as_deref(),
            Some("kiln-0191d2a0-7c1e-7000-8000-000000000001-2")
        );
        assert_eq!(attempt(&pod), Some(assignment.attempt));
        assert!(is_ours(&pod, "default", assignment.attempt));
        assert!(!is_ours(&pod, "other", assignment.attempt));
        let next = AttemptId {
            number: 3,
            ..assignment.attempt
        };
        assert!(!is_ours(&pod, "default", next));
    }

    #[test]
    fn the_plan_in_the_annotation_is_the_builders() {
        let pod = made(&Config::default(), Builder::Buildkit);
        let plan = &pod.metadata.annotations.as_ref().unwrap()[PLAN];
        let plan: kiln_agent::wire::plan::Plan = serde_json::from_str(plan).unwrap();
        assert!(plan.source.into.starts_with(SOURCE_DIR));
        assert_eq!(plan.build.commands.len(), 1);
    }

    #[test]
    fn a_build_is_kept_apart() {
        for builder in Builder::ALL {
            let config = Config {
                buildah_image: Some("buildah".to_owned()),
                source_image: Some("git".to_owned()),
                ..Config::default()
            };
            let pod = made(&config, builder);
            let spec = pod.spec.as_ref().unwrap();
            assert_eq!(spec.automount_service_account_token, Some(false));
            assert_eq!(spec.enable_service_links, Some(false));
            assert_eq!(spec.restart_policy.as_deref(), Some("Never"));
            assert_eq!(spec.active_deadline_seconds, Some(3600 + 1800));
            for name in ["agent", "source"] {
                let context = container(&pod, name).security_context.as_ref().unwrap();
                assert_eq!(context.allow_privilege_escalation, Some(false));
                assert_eq!(context.read_only_root_filesystem, Some(true));
                assert_eq!(context.seccomp_profile, None, "the pod's RuntimeDefault");
            }
            let context = container(&pod, "build").security_context.as_ref().unwrap();
            assert_eq!(context.privileged, None);
            assert_eq!(
                context.run_as_user,
                Some(if builder == Builder::Buildah { 0 } else { USER })
            );
            for name in ["agent", "source", "build"] {
                let resources = container(&pod, name).resources.as_ref().unwrap();
                assert_eq!(resources.requests, resources.limits);
                assert_eq!(resources.limits.as_ref().unwrap().len(), 3);
            }
        }
    }

    #[test]
    fn the_agent_comes_from_where_it_is() {
        let commands = |config: &Config| -> Vec<(String, String, bool)> {
            let pod = made(config, Builder::Buildkit);
            let spec = pod.spec.unwrap();
            let all = spec.init_containers.into_iter().flatten().chain(spec.containers);
            all.map(|container| {
                let command = container.command.unwrap();
                let installs = command.iter().any(|arg| arg == BIN_DIR);
                (container.name, command[0].clone(), installs)
            })
            .collect()
        };
        let entry = |name: &str, program: &str, installs| (name.to_owned(), program.to_owned(), installs);
        let mut config = Config::default();
        assert_eq!(
            commands(&config),
            [
                entry("source", "/kiln-agent", true),
                entry("build", INSTALLED_AGENT, false)
            ]
        );
        config.source_image = Some("git".to_owned());
        assert_eq!(
            commands(&config),
            [
                entry("agent", "/kiln-agent", true),
                entry("source", INSTALLED_AGENT, false),
                entry("build", INSTALLED_AGENT, false),
            ]
        );
    }

    /// An attempt that can push its log.
    fn pushing(config: &Config) -> Pod {
        let mut assignment = assignment(Builder::Buildkit);
        let key = AttemptKey::from_bytes([7; AttemptKey::LEN]);
        assignment.credentials.log = Some(LogAccess {
            url: "http://kiln/log".to_owned(),
            token: key.token(assignment.attempt, Purpose::Log),
        });
        build(config, &[], &assignment, &CredentialFiles::default()).unwrap()
    }

    #[test]
    fn a_sidecar_pushes_the_log() {
        let mut config = Config {
            log_spool: MemoryBytes(1 << 20),
            ..Config::default()
        };
        let pod = pushing(&config);
        let names = |pod: &Pod| -> Vec<String> {
            let init = pod.spec.as_ref().unwrap().init_containers.iter().flatten();
            init.map(|container| container.name.clone()).collect()
        };
        assert_eq!(names(&pod), ["ship", "source"]);
        let ship = container(&pod, "ship");
        assert_eq!(ship.restart_policy.as_deref(), Some("Always"));
        let command = ship.command.as_ref().unwrap().join(" ");
        assert!(
            command.starts_with("/kiln-agent ship --spool /kiln/spool --url http://kiln/log "),
            "{command}"
        );
        let token = pod.metadata.annotations.as_ref().unwrap()[LOG_TOKEN].clone();
        assert!(!command.contains(&token), "the token is in a file");
        for (name, spools, sees_token) in [("ship", true, true), ("source", true, false), ("build", true, false)] {
            let container = container(&pod, name);
            let mounts = container.volume_mounts.as_ref().unwrap();
            let mounted = |volume: &str| mounts.iter().any(|mount| mount.name == volume);
            assert_eq!((mounted("spool"), mounted("log-token")), (spools, sees_token), "{name}");
            assert!(!format!("{container:?}").contains(&token));
            let command = container.command.as_ref().unwrap().join(" ");
            let limited = command.contains("--spool /kiln/spool --spool-limit 1048576");
            assert_eq!(limited, name != "ship", "{command}");
        }
        let grace = pod.spec.as_ref().unwrap().termination_grace_period_seconds;
        assert_eq!(grace, Some(607), "10 minutes to be rid of the log");

        config.source_image = Some("git".to_owned());
        assert_eq!(names(&pushing(&config)), ["agent", "ship", "source"]);

        let without = made(&Config::default(), Builder::Buildkit);
        assert_eq!(names(&without), ["source"]);
        assert!(!format!("{without:?}").contains("spool"));
        assert_eq!(without.spec.unwrap().termination_grace_period_seconds, Some(7));
    }

    #[test]
    fn a_template_makes_no_step_a_sidecar_and_no_sidecar_a_step() {
        let config: Config = toml::from_str(
            r#"
            [pod_template.spec]
            terminationGracePeriodSeconds = 1
            [[pod_template.spec.initContainers]]
            name = "ship"
            restartPolicy = "Never"
            command = ["sh"]
            resources = { limits = { cpu = 1 } }
            [[pod_template.spec.initContainers]]
            name = "source"
            restartPolicy = "Always"
            "#,
        )
        .unwrap();
        let pod = pushing(&config);
        let ship = container(&pod, "ship");
        assert_eq!(ship.restart_policy.as_deref(), Some("Always"));
        assert_eq!(ship.command.as_ref().unwrap()[0], "/kiln-agent");
        let cpu = &ship.resources.as_ref().unwrap().limits.as_ref().unwrap()["cpu"];
        assert_ne!(cpu.0, "100m", "how much it may use is the administrator's affair");
        assert_eq!(container(&pod, "source").restart_policy, None);
        assert_eq!(pod.spec.unwrap().termination_grace_period_seconds, Some(607));
    }

    #[test]
    fn resources_and_overhead_are_added_up() {
        let mut config = Config::default();
        config.overhead.cpu = Some(CpuMillis(500));
        let pod = made(&config, Builder::Buildkit);
        let limits = container(&pod, "build")
            .resources
            .as_ref()
            .unwrap()
            .limits
            .clone()
            .unwrap();
        assert_eq!(limits["cpu"].0, "2500m");
        assert_eq!(limits["memory"].0, "4224Mi");
        assert_eq!(limits["ephemeral-storage"].0, "20Gi");
        let limits = container(&pod, "source")
            .resources
            .as_ref()
            .unwrap()
            .limits
            .clone()
            .unwrap();
        assert_eq!(limits["memory"].0, "4Gi");
    }

    #[test]
    fn a_template_is_merged_and_safety_wins() {
        let config: Config = toml::from_str(
            r#"
            [pod_template.metadata.labels]
            team = "infra"
            "kiln.build/installation" = "stolen"
            [pod_template.spec]
            automountServiceAccountToken = true
            hostNetwork = true
            hostPID = true
            restartPolicy = "Always"
            nodeSelector = { pool = "builds" }
            hostAliases = [{ ip = "10.0.0.1", hostnames = ["git.example"] }]
            tolerations = [{ key = "builds", operator = "Exists" }]
            volumes = [{ name = "ca", configMap = { name = "ca" } }]
            [[pod_template.spec.containers]]
            name = "build"
            command = ["sh"]
            env = [{ name = "HTTPS_PROXY", value = "http://proxy.example" }]
            volumeMounts = [{ name = "ca", mountPath = "/ca" }]
            securityContext = { privileged = true }
            [[pod_template.spec.containers]]
            name = "monitor"
            image = "monitor"
            "#,
        )
        .unwrap();
        let pod = made(&config, Builder::Buildkit);
        let labels = pod.metadata.labels.as_ref().unwrap();
        assert_eq!(
            (labels["team"].as_str(), labels[INSTALLATION].as_str()),
            ("infra", "default")
        );
        let spec = pod.spec.as_ref().unwrap();
        assert_eq!(spec.automount_service_account_token, Some(false));
        assert_eq!(spec.host_network, Some(true));
        assert_eq!(spec.host_pid, None);
        assert_eq!(spec.restart_policy.as_deref(), Some("Never"));
        assert_eq!(spec.node_selector.as_ref().unwrap()["pool"], "builds");
        assert_eq!(spec.host_aliases.as_ref().unwrap()[0].ip, "10.0.0.1");
        assert_eq!(spec.tolerations.as_ref().unwrap().len(), 3);
        assert!(spec.volumes.as_ref().unwrap().iter().any(|volume| volume.name == "ca"));
        let names: Vec<&str> = spec
            .containers
            .iter()
            .map(|container| container.name.as_str())
            .collect();
        assert_eq!(names, ["build", "monitor"]);
        let build = container(&pod, "build");
        assert_eq!(build.command.as_ref().unwrap()[0], "/kiln/bin/kiln-agent");
        assert_eq!(build.env.as_ref().unwrap()[0].name, "HTTPS_PROXY");
        assert_eq!(build.image.as_deref(), Some(Config::default().buildkit_image.as_str()));
        let context = build.security_context.as_ref().unwrap();
        assert_eq!((context.privileged, context.run_as_user), (None, Some(USER)));
        let mounts: Vec<&str> = build
            .volume_mounts
            .iter()
            .flatten()
            .map(|mount| mount.mount_path.as_str())
            .collect();
        assert!(mounts.contains(&"/ca") && mounts.contains(&STORAGE_VOLUME));
    }

    #[test]
    fn a_deadline_stays_within_what_kubernetes_takes() {
        let mut assignment = assignment(Builder::Buildkit);
        assignment.spec.timeout_seconds = u32::MAX;
        let pod = build(&Config::default(), &[], &assignment, &CredentialFiles::default()).unwrap();
        assert_eq!(pod.spec.unwrap().active_deadline_seconds, Some(i32::MAX.into()));
    }

    #[test]
    fn buildah_without_an_image_is_refused() {
        let failure = build(
            &Config::default(),
            &[],
            &assignment(Builder::Buildah),
            &CredentialFiles::default(),
        )
        .unwrap_err();
        assert!(failure.message.contains("kubernetes.buildah_image"));
    }

    #[test]
    fn what_no_annotation_can_hold_is_refused() {
        let mut assignment = assignment(Builder::Buildkit);
        for number in 0..70 {
            assignment
                .spec
                .build_args
                .insert(format!("A{number}").parse().unwrap(), "x".repeat(4096).parse().unwrap());
        }
        let failure = build(&Config::default(), &[], &assignment, &CredentialFiles::default()).unwrap_err();
        assert_eq!(failure.code, FailureCode::SourceFailed);
        assert!(failure.message.contains("git repository"));
    }
}
