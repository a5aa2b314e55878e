//! The manifests in deploy/ and scripts/ use only fields that Kubernetes has, fit together, and keep to the level
//! "restricted". The suite on the cluster has the API server check and run them, too.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use k8s_openapi::{
    Resource,
    api::{
        apps::v1::{Deployment, StatefulSet},
        core::v1::{ConfigMap, Container, Namespace, PodSpec, PodTemplateSpec, Service, ServiceAccount},
        networking::v1::NetworkPolicy,
        policy::v1::PodDisruptionBudget,
        rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
    },
};
use kiln::app::{
    config::{Config, Overrides},
    serve::LONGEST_DRAIN,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The YAML files below a folder of the repository.
fn files(folder: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "yaml") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The documents of a YAML file.
fn documents(path: &Path) -> Vec<Value> {
    serde_saphyr::from_multiple(&read(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A document as a type of Kubernetes, or what is wrong with it. The types let unknown fields pass, but lose them.
fn parse<T: DeserializeOwned + Serialize>(document: &Value) -> Result<T, String> {
    let object: T = serde_json::from_value(document.clone()).map_err(|error| error.to_string())?;
    let known = serde_json::to_value(&object).map_err(|error| error.to_string())?;
    match lost(document, &known, "") {
        Some(path) => Err(format!("{path} is no field of it")),
        None => Ok(object),
    }
}

/// The JSON pointer of something in `given` that `known` doesn't have. Empty values may be left out.
fn lost(given: &Value, known: &Value, path: &str) -> Option<String> {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => given.iter().find_map(|(key, value)| {
            let path = format!("{path}/{key}");
            match known.get(key) {
                Some(known) => lost(value, known, &path),
                None => (*value != Value::Object(serde_json::Map::new())).then_some(path),
            }
        }),
        (Value::Array(given), Value::Array(known)) if given.len() == known.len() => {
            let mut pairs = given.iter().zip(known).enumerate();
            pairs.find_map(|(index, (given, known))| lost(given, known, &format!("{path}/{index}")))
        }
        (given, known) => (given != known).then(|| path.to_owned()),
    }
}

type Check = fn(&Value) -> Result<(), String>;

/// Checks a document by its kind.
fn check(document: &Value) -> Result<(), String> {
    fn of<T: Resource + DeserializeOwned + Serialize>() -> (String, Check) {
        (format!("{} {}", T::API_VERSION, T::KIND), |document| {
            parse::<T>(document).map(drop)
        })
    }
    let kinds: BTreeMap<_, _> = [
        of::<ClusterRole>(),
        of::<ClusterRoleBinding>(),
        of::<ConfigMap>(),
        of::<Deployment>(),
        of::<Namespace>(),
        of::<NetworkPolicy>(),
        of::<PodDisruptionBudget>(),
        of::<Role>(),
        of::<RoleBinding>(),
        of::<Service>(),
        of::<ServiceAccount>(),
        of::<StatefulSet>(),
    ]
    .into();
    let text = |name: &str| document[name].as_str().unwrap_or_default().to_owned();
    let kind = format!("{} {}", text("apiVersion"), text("kind"));
    match kind.as_str() {
        "kustomize.config.k8s.io/v1beta1 Kustomization" | "kustomize.config.k8s.io/v1alpha1 Component" => {
            serde_json::from_value::<Kustomization>(document.clone()).map_err(|error| error.to_string())?;
            Ok(())
        }
        // The operator's own resource, of which no schema is at hand.
        "monitoring.coreos.com/v1 ServiceMonitor" | "kwok.x-k8s.io/v1alpha1 Stage" => Ok(()),
        _ => kinds.get(&kind).ok_or_else(|| format!("no kind `{kind}`"))?(document),
    }
}

/// The fields of a kustomization that are in use here.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "fields that only have to be known")]
struct Kustomization {
    api_version: String,
    kind: String,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    components: Vec<String>,
    #[serde(default)]
    config_map_generator: Vec<Generator>,
    #[serde(default)]
    images: Vec<BTreeMap<String, String>>,
    #[serde(default)]
    patches: Vec<Value>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "fields that only have to be known")]
struct Generator {
    name: String,
    namespace: String,
    behavior: Option<String>,
    files: Vec<String>,
}

#[test]
fn manifests_have_only_fields_that_kubernetes_knows() {
    let mut mistakes = Vec::new();
    let files = [files("deploy"), files("scripts")].concat();
    for path in &files {
        for document in documents(path) {
            if let Err(mistake) = check(&document) {
                let path = path.strip_prefix(root()).expect("below it").display();
                mistakes.push(format!("{path}: {}: {mistake}", document["kind"]));
            }
        }
    }
    assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
    assert!(files.len() > 12, "{files:?}");
}

#[test]
fn mistakes_would_be_found() {
    let deployment = &documents(&root().join("deploy/base/deployment.yaml"))[0];
    check(deployment).expect("is right");
    for (pointer, key, value) in [
        ("/spec/template/spec", "terminationGraceSeconds", Value::from(1)),
        ("/spec/template/spec/containers/0", "readynessProbe", Value::from("x")),
        ("/spec", "replicas", Value::from("two")),
        ("", "kind", Value::from("Deploiment")),
    ] {
        let mut wrong = deployment.clone();
        let place = wrong.pointer_mut(pointer).and_then(Value::as_object_mut);
        place.expect("is there").insert(key.to_owned(), value);
        check(&wrong).expect_err(key);
    }
}

#[test]
fn kustomizations_name_every_file_and_only_what_is_there() {
    let mut named = BTreeSet::new();
    let manifests = files("deploy");
    let (kustomizations, others): (Vec<_>, Vec<_>) = manifests
        .into_iter()
        .partition(|path| path.file_name().is_some_and(|name| name == "kustomization.yaml"));
    for path in &kustomizations {
        let kustomization: Kustomization = serde_json::from_value(documents(path)[0].clone()).expect("checked before");
        let folder = path.parent().expect("a folder");
        let generated = kustomization.config_map_generator.iter().flat_map(|map| &map.files);
        for name in kustomization
            .resources
            .iter()
            .chain(&kustomization.components)
            .chain(generated)
        {
            let target = folder.join(name);
            assert!(target.exists(), "{}: no {name}", path.display());
            named.insert(target.canonicalize().expect("is there"));
        }
    }
    for path in others {
        assert!(named.contains(&path), "no kustomization names {}", path.display());
    }
}

/// The objects of a kind in deploy/, by namespace and name.
fn objects<T: Resource + DeserializeOwned + Serialize>() -> BTreeMap<(String, String), T> {
    let documents = files("deploy").into_iter().flat_map(|path| documents(&path));
    documents
        .filter(|document| document["kind"] == T::KIND && document["apiVersion"] == T::API_VERSION)
        .map(|document| {
            let text = |name: &str| document["metadata"][name].as_str().unwrap_or_default().to_owned();
            let key = (text("namespace"), text("name"));
            (key, parse(&document).expect("checked before"))
        })
        .collect()
}

fn kiln<T: Resource + DeserializeOwned + Serialize>() -> T {
    let mut objects = objects::<T>();
    objects
        .remove(&("kiln".to_owned(), "kiln".to_owned()))
        .expect("is there")
}

type Labels = BTreeMap<String, String>;

fn labels(template: &PodTemplateSpec) -> Labels {
    let metadata = template.metadata.clone().expect("metadata");
    metadata.labels.expect("labels")
}

#[test]
fn selectors_select_what_they_are_to() {
    let deployment = kiln::<Deployment>().spec.expect("a spec");
    let ours = labels(&deployment.template);
    let selects = |labels: &Labels, selector: Option<Labels>| {
        let selector = selector.unwrap_or_default();
        !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value))
    };
    assert!(selects(&ours, deployment.selector.match_labels));
    let service = kiln::<Service>();
    assert!(selects(&ours, service.spec.expect("a spec").selector));
    let budget = kiln::<PodDisruptionBudget>().spec.expect("a spec");
    assert!(selects(
        &ours,
        budget.selector.and_then(|selector| selector.match_labels)
    ));
    let policy = kiln::<NetworkPolicy>().spec.expect("a spec");
    assert!(selects(
        &ours,
        policy.pod_selector.and_then(|selector| selector.match_labels)
    ));
    let spread = deployment.template.spec.expect("a spec").topology_spread_constraints;
    for constraint in spread.expect("is spread") {
        let selector = constraint.label_selector.expect("a selector");
        assert!(selects(&ours, selector.match_labels));
    }
    // A ServiceMonitor finds the Service by its labels.
    let labels = service.metadata.labels.expect("labels");
    let monitor = documents(&root().join("deploy/components/servicemonitor/servicemonitor.yaml"));
    let selector = serde_json::from_value(monitor[0]["spec"]["selector"]["matchLabels"].clone());
    assert!(selects(&labels, selector.expect("labels")));

    let databases = objects::<StatefulSet>();
    let (key, database) = databases.first_key_value().expect("a database");
    let theirs = crate::labels(&database.spec.clone().expect("a spec").template);
    assert!(selects(
        &theirs,
        objects::<Service>()[key].spec.clone().expect("a spec").selector
    ));
    let policy = objects::<NetworkPolicy>()[key].spec.clone().expect("a spec");
    assert!(selects(
        &theirs,
        policy.pod_selector.and_then(|selector| selector.match_labels)
    ));
    let from = policy
        .ingress
        .expect("rules")
        .remove(0)
        .from
        .expect("named callers")
        .remove(0);
    assert!(selects(
        &ours,
        from.pod_selector.and_then(|selector| selector.match_labels)
    ));
}

fn containers(pod: &PodSpec) -> impl Iterator<Item = &Container> {
    pod.init_containers.iter().flatten().chain(&pod.containers)
}

#[test]
fn pods_keep_to_the_restricted_level() {
    let templates = [
        objects::<Deployment>()
            .into_values()
            .map(|object| object.spec.expect("a spec").template)
            .collect::<Vec<_>>(),
        objects::<StatefulSet>()
            .into_values()
            .map(|object| object.spec.expect("a spec").template)
            .collect(),
    ]
    .concat();
    assert_eq!(templates.len(), 2);
    for template in templates {
        let pod = template.spec.expect("a spec");
        let context = pod.security_context.clone().expect("a security context");
        assert_eq!(context.run_as_non_root, Some(true));
        assert!(context.run_as_user.is_some_and(|user| user > 0));
        assert_eq!(
            context.seccomp_profile.map(|profile| profile.type_).as_deref(),
            Some("RuntimeDefault")
        );
        assert_eq!(pod.enable_service_links, Some(false));
        assert!(containers(&pod).count() > 0);
        for container in containers(&pod) {
            let context = container.security_context.clone().expect("a security context");
            assert_eq!(context.allow_privilege_escalation, Some(false), "{}", container.name);
            assert_eq!(context.read_only_root_filesystem, Some(true), "{}", container.name);
            let dropped = context.capabilities.and_then(|capabilities| capabilities.drop);
            assert_eq!(dropped, Some(vec!["ALL".to_owned()]), "{}", container.name);
            let resources = container.resources.clone().expect("resources");
            assert!(resources.requests.expect("requests").contains_key("cpu"));
            assert!(resources.limits.expect("limits").contains_key("memory"));
        }
    }
}

#[test]
fn the_image_runs_as_the_manifest_says() {
    let dockerfile = read(&root().join("Dockerfile"));
    let value = |instruction: &str| {
        let mut lines = dockerfile.lines().rev();
        let found = lines.find_map(|line| line.strip_prefix(instruction)?.strip_prefix(' '));
        found.unwrap_or_else(|| panic!("no {instruction}")).to_owned()
    };
    let pod = kiln::<Deployment>()
        .spec
        .and_then(|spec| spec.template.spec)
        .expect("a pod");
    let context = pod.security_context.clone().expect("a security context");
    let (user, group) = (
        context.run_as_user.expect("a user"),
        context.run_as_group.expect("a group"),
    );
    assert_eq!(value("USER"), format!("{user}:{group}"));
    let port = pod.containers[0].ports.as_ref().expect("ports")[0].container_port;
    assert_eq!(value("EXPOSE"), port.to_string());
    let manifest: toml::Table = read(&root().join("Cargo.toml")).parse().expect("TOML");
    let version = manifest["workspace"]["package"]["rust-version"]
        .as_str()
        .expect("a version");
    let compiler = format!("ARG RUST=rust:{version}-");
    assert!(dockerfile.lines().any(|line| line.starts_with(&compiler)), "{compiler}");
}

#[test]
fn replicas_have_the_time_that_they_need_to_end() {
    let pod = kiln::<Deployment>()
        .spec
        .and_then(|spec| spec.template.spec)
        .expect("a pod");
    let before = pod.containers[0]
        .lifecycle
        .as_ref()
        .and_then(|lifecycle| lifecycle.pre_stop.as_ref()?.sleep.as_ref())
        .expect("a pause before SIGTERM");
    let needed = before.seconds + i64::try_from(LONGEST_DRAIN.as_secs()).expect("a few seconds");
    let grace = pod.termination_grace_period_seconds.expect("a grace period");
    assert!(grace > needed, "{grace} s, but {needed} s are needed");
}

#[test]
fn configurations_can_be_used() {
    let found: Vec<_> = ["base", "overlays/postgres"]
        .map(|folder| root().join("deploy").join(folder).join("kiln.toml"))
        .into();
    let port = kiln::<Deployment>()
        .spec
        .and_then(|spec| spec.template.spec)
        .and_then(|pod| pod.containers.into_iter().next()?.ports)
        .map(|ports| ports[0].container_port)
        .expect("a port");
    let builds = objects::<Role>().into_keys().next().expect("a role").0;
    for file in found {
        let overrides = Overrides {
            config: Some(file),
            ..Overrides::default()
        };
        let config = Config::load(&overrides).unwrap_or_else(|error| panic!("{error}"));
        assert!(config.listen.ip().is_unspecified());
        assert_eq!(i32::from(config.listen.port()), port);
        assert_eq!(config.kubernetes.namespace, builds);
    }
}
