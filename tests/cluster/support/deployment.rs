//! Kiln inside the cluster: `deploy/overlays/postgres` with images and namespaces of a test's own.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use kube::Client;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt as _, process::Command};
use toml::Table;
use uuid::Uuid;

use super::{
    Api,
    environment::{configuration, variable},
    pods::Pods,
    set,
};

/// `kubectl` itself ends after this.
const KUBECTL_LIMIT: Duration = Duration::from_mins(3);
/// The value of `kubernetes.installation` when the configuration doesn't say.
const INSTALLATION: &str = "default";

/// The two images of the Dockerfile, by digest.
pub(in crate::cluster) struct Images {
    pub(in crate::cluster) service: String,
    pub(in crate::cluster) agent: String,
}

/// Puts the registries' own authorities into the configuration: in the pod, this machine's files aren't there.
fn carry_authorities(config: &mut Table) {
    let registries = config.get_mut("registry").and_then(toml::Value::as_array_mut);
    for registry in registries.into_iter().flatten() {
        let registry = registry.as_table_mut().expect("a table");
        if let Some(file) = registry.remove("ca_file") {
            let pem = fs::read_to_string(file.as_str().expect("a path")).expect("the authority");
            registry.insert("ca".to_owned(), pem.into());
        }
    }
}

/// Kiln's manifests, applied.
pub(in crate::cluster) struct Deployment {
    /// Calls the Service by its address.
    pub(in crate::cluster) api: Api,
    /// `http://` and the Service's address.
    pub(in crate::cluster) url: String,
    /// The pods of its builds.
    pub(in crate::cluster) pods: Pods,
    /// Where Kiln runs.
    pub(in crate::cluster) namespace: String,
    builds: String,
}

impl Deployment {
    /// Applies the overlay and waits until its replicas are ready. What is made goes with [`Self::remove`].
    pub(in crate::cluster) async fn apply(images: &Images, adjust: impl FnOnce(&mut Table)) -> Self {
        let name = format!("kiln-test-{}", &Uuid::new_v4().simple().to_string()[..12]);
        let builds = format!("{name}-builds");
        let objects = objects(images, &name, &builds, adjust).await;
        // As an administrator would: what is privileged first, then the secret, then the rest.
        let (spaces, rest): (Vec<_>, Vec<_>) = objects.into_iter().partition(|object| object["kind"] == "Namespace");
        assert_eq!(spaces.len(), 2);
        apply(&spaces).await;
        let client = Client::try_default().await.expect("KUBECONFIG");
        let pods = Pods::record(client, &builds, INSTALLATION).await;
        let mut deployment = Self {
            api: Api::new("nowhere", ""),
            url: String::new(),
            pods,
            namespace: name,
            builds,
        };
        let password = Uuid::new_v4().simple().to_string();
        let secret = format!("--from-literal=url=postgres://kiln:{password}@postgres/kiln");
        let password = format!("--from-literal=password={password}");
        deployment
            .kubectl(&["create", "secret", "generic", "kiln-database", &secret, &password])
            .await;
        let key = format!("--from-literal=keys={}", BASE64_STANDARD.encode([7; 32]));
        deployment
            .kubectl(&["create", "secret", "generic", "kiln-secrets-key", &key])
            .await;
        apply(&rest).await;
        deployment.rolled_out().await;

        let address = deployment
            .kubectl(&["get", "service", "kiln", "-o", "jsonpath={.spec.clusterIP}"])
            .await;
        let create = ["/kiln", "token", "create", "--scope", "project:admin"];
        let token = deployment
            .kubectl(&[["exec", "deploy/kiln", "-c", "kiln", "--"].as_slice(), &create].concat())
            .await;
        deployment.api = Api::new(&address, token.trim());
        deployment.url = format!("http://{address}");
        deployment
    }

    /// `kubectl rollout status`: all replicas are of the newest generation, ready, and the old ones are on their way.
    pub(in crate::cluster) async fn rolled_out(&self) {
        self.kubectl(&["rollout", "status", "statefulset/postgres", "--timeout=120s"])
            .await;
        self.kubectl(&["rollout", "status", "deploy/kiln", "--timeout=120s"])
            .await;
    }

    /// Names of the service's pods that aren't being deleted.
    pub(in crate::cluster) async fn replicas(&self) -> Vec<String> {
        let selector = "app.kubernetes.io/component=service";
        let pods = self.kubectl(&["get", "pods", "-l", selector, "-o", "json"]).await;
        let pods: Value = serde_json::from_str(&pods).expect("JSON");
        let items = pods["items"].as_array().expect("a list");
        let staying = items.iter().map(|pod| &pod["metadata"]);
        staying
            .filter(|metadata| metadata["deletionTimestamp"].is_null())
            .map(|metadata| metadata["name"].as_str().expect("a name").to_owned())
            .collect()
    }

    /// Asks for an eviction, as `kubectl drain` does. Returns the API server's answer.
    pub(in crate::cluster) async fn evict(&self, pod: &str) -> http::StatusCode {
        let mut config = kube::Config::infer().await.expect("KUBECONFIG");
        // It would ask until the answer is yes.
        config.default_retry = false;
        let client = Client::try_from(config).expect("a client");
        let pods: kube::Api<k8s_openapi::api::core::v1::Pod> = kube::Api::namespaced(client, &self.namespace);
        match pods.evict(pod, &kube::api::EvictParams::default()).await {
            Ok(_) => http::StatusCode::CREATED,
            Err(kube::Error::Api(status)) => http::StatusCode::from_u16(status.code).expect("a status"),
            Err(error) => panic!("{error}"),
        }
    }

    /// `kubectl` in the namespace of the service; what it prints.
    pub(in crate::cluster) async fn kubectl(&self, arguments: &[&str]) -> String {
        kubectl([["-n", &self.namespace].as_slice(), arguments].concat(), None).await
    }

    /// Prints what helps to understand a failure.
    pub(in crate::cluster) async fn tell(&self) {
        for arguments in [
            ["get", "all", "-o", "wide"].as_slice(),
            &["describe", "pods"],
            &[
                "logs",
                "-l",
                "app.kubernetes.io/component=service",
                "--all-containers",
                "--prefix",
                "--tail=60",
            ],
        ] {
            let command = Command::new("kubectl")
                .args(["-n", &self.namespace])
                .args(arguments)
                .output();
            let output = command.await.expect("kubectl runs").stdout;
            eprintln!(
                "---- kubectl {}:\n{}",
                arguments.join(" "),
                String::from_utf8_lossy(&output)
            );
        }
    }

    /// Removes everything, whatever state it is in.
    pub(in crate::cluster) async fn remove(&self) {
        for namespace in [&self.builds, &self.namespace] {
            // Its controllers are to make no new ones; nobody waits for the old.
            let all = "deployments,statefulsets,pods";
            let pods = ["-n", namespace, "delete", all, "--all", "--force", "--wait=false"];
            kubectl(pods.to_vec(), None).await;
        }
        let both = ["delete", "namespace", &self.builds, &self.namespace, "--timeout=90s"];
        kubectl(both.to_vec(), None).await;
    }
}

/// The overlay's objects for these namespaces.
async fn objects(images: &Images, service: &str, builds: &str, adjust: impl FnOnce(&mut Table)) -> Vec<Value> {
    let folder = TempDir::new().expect("a folder");
    let manifests = folder.path().join("deploy");
    copy(&repository().join("deploy"), &manifests);
    let overlay = manifests.join("overlays/test");
    fs::create_dir(&overlay).expect("a folder");

    let mut config = configuration();
    // These the manifests set.
    config.retain(|key, _| !["agent_url", "secrets"].contains(&key));
    carry_authorities(&mut config);
    set(&mut config, "listen", "0.0.0.0:8080");
    set(&mut config, "agent_url", format!("http://kiln.{service}.svc"));
    set(&mut config, "kubernetes.namespace", builds);
    set(&mut config, "kubernetes.agent_image", images.agent.as_str());
    set(&mut config, "log.filter", "info,kiln=debug,kiln::http=info");
    adjust(&mut config);
    fs::write(overlay.join("kiln.toml"), config.to_string()).expect("the configuration");

    let (name, digest) = images.service.split_once('@').expect("an image by digest");
    let mut replaced = vec![json!({"name": "registry.example/kiln", "newName": name, "digest": digest})];
    // A cluster with outside network takes the image that the overlay names.
    if let Ok(image) = std::env::var("KILN_TEST_POSTGRES_IMAGE") {
        let (name, tag) = image.rsplit_once(':').expect("an image with a tag");
        replaced.push(json!({"name": "postgres", "newName": name, "newTag": tag}));
    }
    let kustomization = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["../postgres"],
        "components": ["../../components/postgres-emptydir"],
        "images": replaced,
        "configMapGenerator": [
            {"name": "kiln-config", "namespace": "kiln", "behavior": "replace", "files": ["kiln.toml"]},
        ],
    });
    fs::write(overlay.join("kustomization.yaml"), kustomization.to_string()).expect("a kustomization");
    let rendered = kubectl([OsStr::new("kustomize"), overlay.as_os_str()].to_vec(), None).await;
    let mut objects: Vec<Value> = serde_saphyr::from_multiple(&rendered).expect("YAML");
    for object in &mut objects {
        if object["kind"] == "Namespace" {
            let name = &mut object["metadata"]["name"];
            *name = renamed(name, service, builds);
        }
        rename(object, service, builds);
    }
    objects
}

/// Changes every field `namespace`.
fn rename(value: &mut Value, service: &str, builds: &str) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                if key == "namespace" {
                    *value = renamed(value, service, builds);
                } else {
                    rename(value, service, builds);
                }
            }
        }
        Value::Array(elements) => elements.iter_mut().for_each(|value| rename(value, service, builds)),
        _ => {}
    }
}

fn renamed(name: &Value, service: &str, builds: &str) -> Value {
    match name.as_str() {
        Some("kiln") => service.into(),
        Some("kiln-builds") => builds.into(),
        other => panic!("a namespace {other:?}"),
    }
}

/// `kubectl apply`, with unknown and doubled fields as errors.
async fn apply(objects: &[Value]) {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    kubectl(
        ["apply", "--validate=strict", "-f", "-"].to_vec(),
        Some(list.to_string()),
    )
    .await;
}

/// Runs `kubectl`, which must succeed.
pub(in crate::cluster) async fn kubectl<A: AsRef<OsStr>>(arguments: Vec<A>, input: Option<String>) -> String {
    let mut child = Command::new("kubectl")
        .args(&arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("kubectl runs");
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.unwrap_or_default();
    let exchange = async {
        // A kubectl that wants no input may have ended.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        child.wait_with_output().await.expect("its output")
    };
    let words: Vec<_> = arguments.iter().map(|word| word.as_ref().to_string_lossy()).collect();
    let words = words.join(" ");
    let output = tokio::time::timeout(KUBECTL_LIMIT, exchange).await;
    let output = output.unwrap_or_else(|_| panic!("kubectl {words} hangs"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "kubectl {words}: {said}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The repository's folder.
pub(in crate::cluster) fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("a copy");
        }
    }
}

/// A program of this build, without what only debuggers need, in this folder.
pub(in crate::cluster) fn strip(program: &Path, folder: &Path, name: &str) {
    let status = std::process::Command::new("strip")
        .arg("-o")
        .arg(folder.join(name))
        .arg(program)
        .status()
        .expect("strip runs");
    assert!(status.success(), "strip: {status}");
}

/// The statically linked agent that the cluster's own image has.
pub(in crate::cluster) fn agent_binary() -> PathBuf {
    variable("KILN_TEST_AGENT_BINARY").into()
}
