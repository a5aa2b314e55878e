//! `[kubernetes]` in the configuration.

use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::Value;

use crate::domain::spec::{CpuMillis, MemoryBytes};

/// How build pods are made and where.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Namespace of the build pods. It must exist, and admit pods with seccomp and AppArmor unconfined.
    pub namespace: String,
    /// Tells the pods of several installations in one namespace apart: the value of a label, so at most 63 letters,
    /// digits, `-`, `_` and `.`.
    pub installation: String,
    /// Image of the source step: holds git and the agent, `/kiln-agent`, which the build step gets from there.
    pub agent_image: String,
    /// Image with git, for where the agent's has none. It costs another container and so about a second a build: the
    /// kubelet takes that long to notice that one has ended.
    pub source_image: Option<String>,
    /// Image of rootless BuildKit.
    pub buildkit_image: String,
    /// Image of buildah; builds that ask for buildah are refused when there is none.
    pub buildah_image: Option<String>,
    /// Names of Secrets in the namespace with the credentials for these images.
    pub image_pull_secrets: Vec<String>,
    /// Service account of the build pods; its token is never mounted.
    pub service_account: Option<String>,
    /// A `PodTemplateSpec` that is merged over the pod by Kubernetes' strategic rules: node selector, tolerations,
    /// host aliases, more volumes. Lists with a merge key (containers by name) are merged element by element.
    pub pod_template: PodTemplate,
    /// What a build pod is given beyond what its build asks for: the builder's own needs.
    pub overhead: Overhead,
    /// How much of a build's log its pod holds while the service can't be reached, for each step. A build that prints
    /// more waits, and in the end loses lines, which its log says.
    pub log_spool: MemoryBytes,
    /// Seconds between SIGTERM and SIGKILL when an attempt is stopped.
    pub stop_grace_seconds: u32,
    /// Seconds that a pod may spend on a node before and after its build (pulling images, winding up) until
    /// Kubernetes itself ends it. A backstop: the service's own limits are shorter.
    pub deadline_allowance_seconds: u32,
    /// Seconds after which pods leave a node that doesn't answer.
    pub node_lost_seconds: u32,
    /// Pods that are created at the same time, at most.
    pub launch_concurrency: usize,
    /// Requests to the API server that are under way at the same time, at most; watches and log streams not counted.
    pub request_concurrency: usize,
    /// Log streams that are open at the same time, at most. Each costs a connection and, on the node, an inotify
    /// instance.
    pub log_concurrency: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            namespace: "kiln-builds".to_owned(),
            installation: "default".to_owned(),
            agent_image: concat!("kiln/agent:", env!("CARGO_PKG_VERSION")).to_owned(),
            source_image: None,
            buildkit_image: "docker.io/moby/buildkit:v0.34.2-rootless".to_owned(),
            buildah_image: None,
            image_pull_secrets: Vec::new(),
            service_account: None,
            pod_template: PodTemplate::default(),
            overhead: Overhead::default(),
            log_spool: MemoryBytes(1 << 30),
            stop_grace_seconds: 5,
            deadline_allowance_seconds: 1800,
            node_lost_seconds: 60,
            launch_concurrency: 64,
            request_concurrency: 128,
            log_concurrency: 1000,
        }
    }
}

/// Added to what a build asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Overhead {
    /// Processor time.
    pub cpu: Option<CpuMillis>,
    /// Memory; BuildKit's daemon and client take about as much as the default.
    pub memory: Option<MemoryBytes>,
}

impl Default for Overhead {
    fn default() -> Self {
        Self {
            cpu: None,
            memory: Some(MemoryBytes(128 << 20)),
        }
    }
}

/// What an administrator lays over every build pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodTemplate(pub PodTemplateSpec);

impl<'de> Deserialize<'de> for PodTemplate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let template = PodTemplateSpec::deserialize(&value).map_err(D::Error::custom)?;
        // Kubernetes' types let unknown fields pass: a misspelt one would silently do nothing.
        let known = serde_json::to_value(&template).map_err(D::Error::custom)?;
        match unknown_field(&value, &known, "") {
            Some(path) => Err(D::Error::custom(format!(
                "`{path}` is no field of a Kubernetes PodTemplateSpec"
            ))),
            None => Ok(Self(template)),
        }
    }
}

/// JSON pointer of a field of `given` that `known`, the same thing read and written again, has lost.
fn unknown_field(given: &Value, known: &Value, path: &str) -> Option<String> {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => given.iter().find_map(|(key, value)| {
            let path = format!("{path}/{key}");
            match known.get(key) {
                Some(known) => unknown_field(value, known, &path),
                None => (!is_empty(value)).then_some(path),
            }
        }),
        (Value::Array(given), Value::Array(known)) => {
            let mut pairs = given.iter().zip(known).enumerate();
            pairs.find_map(|(index, (given, known))| unknown_field(given, known, &format!("{path}/{index}")))
        }
        _ => None,
    }
}

/// Whether a value may be left out when it is written.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_has_a_default() {
        assert_eq!(toml::from_str::<Config>("").unwrap(), Config::default());
    }

    #[test]
    fn a_template_is_read_in_kubernetes_words() {
        let config: Config = toml::from_str(
            r#"
            namespace = "builds"
            overhead = { memory = "1Gi" }
            [pod_template.metadata.annotations]
            "example.com/queue" = "builds"
            [pod_template.spec]
            hostNetwork = true
            nodeSelector = { pool = "builds" }
            tolerations = [{ key = "builds", operator = "Exists" }]
            [[pod_template.spec.containers]]
            name = "build"
            resources = { limits = { cpu = 1 } }
            "#,
        )
        .unwrap();
        let spec = config.pod_template.0.spec.unwrap();
        assert_eq!(spec.host_network, Some(true));
        assert_eq!(spec.containers[0].name, "build");
        assert_eq!(config.overhead.memory, Some(MemoryBytes(1 << 30)));
    }

    #[test]
    fn a_misspelt_field_is_an_error() {
        for (text, words) in [
            ("name_space = \"x\"", "name_space"),
            (
                "[pod_template.spec]\nnodeselector = { pool = \"x\" }",
                "`/spec/nodeselector`",
            ),
            (
                "[[pod_template.spec.containers]]\nname = \"build\"\nenvs = [{ name = \"A\" }]",
                "`/spec/containers/0/envs`",
            ),
            ("[pod_template.spec]\nhostNetwork = \"yes\"", "expected a boolean"),
        ] {
            let error = toml::from_str::<Config>(text).unwrap_err().to_string();
            assert!(error.contains(words), "{words} is not in: {error}");
        }
    }
}
