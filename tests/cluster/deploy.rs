//! Kiln builds its own images from this repository's Dockerfile, and runs from them as `deploy/` says: with the rights of
//! its own account, behind its Service, through a rolling update and the loss of replicas.

use std::{
    panic::AssertUnwindSafe,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt, future::join_all};
use http::StatusCode;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::task::JoinHandle;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::support::{
    Api, DEADLINE, Deployment, Image, Images, Installation, Repository, Stop, Transcript, agent_binary, eventually,
    inline, kiln_lines, kubectl, repository, run, set, strip, text,
};

/// Builds that a rolling update and two losses of replicas meet.
const BUILDS: usize = 3;
/// Deleting a build's pod gives its containers a few seconds.
const CLEARED: Duration = Duration::from_secs(40);

fn small(config: &mut toml::Table) {
    set(config, "limits.default_resources.cpu", "500m");
    set(config, "limits.default_resources.memory", "384Mi");
    set(config, "limits.default_resources.disk", "1Gi");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_server_knows_every_field_of_the_manifests() {
    for folder in ["deploy/rbac", "deploy/base", "deploy/overlays/postgres"] {
        let path = repository().join(folder);
        let path = path.to_str().expect("UTF-8");
        kubectl(vec!["apply", "--dry-run=server", "--validate=strict", "-k", path], None).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kiln_runs_in_the_cluster_from_images_that_it_built_itself() {
    run(
        2,
        |_| {},
        async |kiln: &Installation| {
            let images = build_images(kiln).await;
            let deployment = Deployment::apply(&images, |config| {
                small(config);
                set(config, "engine.lease_seconds", 3);
                set(config, "engine.sweep_interval_seconds", 2);
            })
            .await;
            let outcome = AssertUnwindSafe(async {
                builds_reach_the_service_by_name(&deployment, &kiln.image("from-inside")).await;
                uploads_and_secrets_reach_builds(&deployment).await;
                no_build_is_lost(&deployment).await;
                deployment.pods.wait_until_none(None, CLEARED).await;
            })
            .catch_unwind()
            .await;
            if outcome.is_err() {
                deployment.tell().await;
            }
            deployment.remove().await;
            if let Err(panic) = outcome {
                std::panic::resume_unwind(panic);
            }
        },
    )
    .await;
}

/// Both images of the Dockerfile, from programs that were compiled outside: the cluster reaches no package registry.
async fn build_images(kiln: &Installation) -> Images {
    let source = Repository::public();
    let programs = source.folder().join("dist");
    std::fs::create_dir(&programs).expect("a folder");
    strip(Path::new(env!("CARGO_BIN_EXE_kiln")), &programs, "kiln");
    strip(&agent_binary(), &programs, "kiln-agent");
    for file in ["Dockerfile", ".dockerignore"] {
        std::fs::copy(repository().join(file), source.folder().join(file)).expect("a copy");
    }
    let commit = source.commit(&[]);
    let replica = kiln.start().await;
    let build = async |name: &str, target: Option<&str>| {
        let mut arguments = json!({"BINARIES": "prebuilt", "VERSION": commit});
        // Packages can't be had, either.
        if let Ok(image) = std::env::var("KILN_TEST_GIT_IMAGE") {
            arguments["AGENT_BASE"] = image.into();
        }
        let image = kiln.image(name);
        let request = json!({
            "source": {"type": "git", "url": source.url, "ref": "main"},
            "images": [image], "target": target, "build_args": arguments,
        });
        let build = replica.api.build(&request).await;
        let log = replica.api.logs(text(&build, "/id")).await;
        assert_eq!(build["state"], "succeeded", "{build:#}\n{log}");
        let (name, _) = image.rsplit_once(':').expect("a tag");
        (format!("{name}@{}", text(&build, "/digest")), Image::pull(&image))
    };
    let ((service, image), (agent, _)) = tokio::join!(build("kiln", None), build("agent", Some("agent")));
    assert_eq!(image.config["config"]["User"], "65532:65532");
    assert_eq!(
        image.config["config"]["Labels"]["org.opencontainers.image.version"],
        commit
    );
    assert_eq!(image.file("bin/sh"), None);
    assert!(image.file("etc/ssl/certs/ca-certificates.crt").is_some());
    Images { service, agent }
}

/// A build finds the Service by the cluster's DNS, and what it makes is in the registry.
async fn builds_reach_the_service_by_name(deployment: &Deployment, image: &str) {
    let api = &deployment.api;
    let (ready, answer) = api.ready().await;
    assert!(ready, "{answer:#}");
    let url = format!("http://kiln.{}.svc.cluster.local/readyz", deployment.namespace);
    let mut request = inline(&format!("FROM busybox\nRUN wget -qO- {url} | tee /readyz\n"));
    request["push"] = json!(true);
    request["images"] = json!([image]);
    let build = api.build(&request).await;
    let log = api.logs(text(&build, "/id")).await;
    assert_eq!(build["state"], "succeeded", "{build:#}\n{log}");
    let pulled = Image::pull(image);
    assert_eq!(pulled.digest, text(&build, "/digest"));
    let answer: Value = serde_json::from_str(&pulled.file("readyz").expect("the answer")).expect("JSON");
    assert_eq!(answer, json!({"database": {"ok": true}, "cluster": {"ok": true}}));
}

/// The agent fetches an upload from the Service by its name; the account may make a pod's Secret.
async fn uploads_and_secrets_reach_builds(deployment: &Deployment) {
    let api = &deployment.api;
    let source = tempfile::tempdir().expect("a folder");
    let dockerfile = "FROM busybox\nRUN --mount=type=secret,id=word sha256sum /run/secrets/word\n";
    std::fs::write(source.path().join("Dockerfile"), dockerfile).expect("a file");
    let tar = std::process::Command::new("tar")
        .arg("-cC")
        .arg(source.path())
        .arg(".")
        .output();
    let upload = api.upload(tar.expect("tar runs").stdout).await;
    api.put_secret("word", "build", &json!({"value": "kiln"})).await;
    let request = json!({
        "source": {"type": "upload", "id": upload["id"]}, "secrets": {"word": "word"}, "push": false,
    });
    let build = api.build(&request).await;
    let log = api.logs(text(&build, "/id")).await;
    assert_eq!(build["state"], "succeeded", "{build:#}\n{log}");
    let sum = hex::encode(Sha256::digest("kiln"));
    assert!(log.contains(&sum), "no {sum} in {log}");
}

/// Prints lines until a Service of this name is there, which it asks DNS for.
fn until_told(name: &str) -> String {
    let name = format!("{name}.svc.cluster.local");
    format!(
        "FROM busybox\nRUN for i in $(seq 3000); do echo \"kiln line $i\"; \
         nslookup {name} >/dev/null 2>&1 && echo told && exit 0; sleep 0.05; done; exit 1\n"
    )
}

/// A rolling update, the eviction of one replica and the death of another, while builds run and are read.
async fn no_build_is_lost(deployment: &Deployment) {
    let api = &deployment.api;
    let signal = format!("finish.{}", deployment.namespace);
    let request = inline(&until_told(&signal));
    let ids = join_all((0..BUILDS).map(|_| api.create(&request))).await;
    let readers: Vec<_> = ids.iter().map(|id| AbortOnDropHandle::new(read(api, id))).collect();
    for id in &ids {
        api.reaches(id, "running").await;
    }
    let before = deployment.replicas().await;
    assert_eq!(before.len(), 2);

    // Each call on a connection of its own; none may fail.
    let callers = Callers::start(&deployment.url);
    deployment.kubectl(&["rollout", "restart", "deploy/kiln"]).await;
    deployment.rolled_out().await;
    let after = gone(deployment, &before).await;
    let answered = callers.stop().await;
    assert!(answered > 20, "only {answered} calls");

    // As a node is drained. The budget lets only one go at a time.
    assert_eq!(deployment.evict(&after[0]).await, StatusCode::CREATED);
    assert_eq!(deployment.evict(&after[1]).await, StatusCode::TOO_MANY_REQUESTS);
    deployment.rolled_out().await;

    // As when its node dies.
    deployment
        .kubectl(&["delete", "pod", &after[1], "--grace-period=0", "--force"])
        .await;
    deployment.rolled_out().await;

    deployment
        .kubectl(&["create", "service", "clusterip", "finish", "--tcp=80"])
        .await;
    for (id, reader) in ids.iter().zip(readers) {
        let (transcript, connections) = reader.await.expect("reads");
        let end = &transcript.events.last().expect("events").data;
        let log = transcript.text();
        assert_eq!(end["state"], "succeeded", "{end}\n{log}");
        let build = api.get(id).await;
        assert_eq!(build["attempts"].as_array().map(Vec::len), Some(1), "{build:#}");
        assert_eq!(deployment.pods.of(id), 1, "{:?}", deployment.pods.all());
        assert_eq!(transcript.of_kind("gap"), [] as [&Value; 0]);
        let lines = kiln_lines(&log);
        let count = u32::try_from(lines.len()).expect("not many");
        let all: Vec<u32> = (1..=count).collect();
        assert_eq!(lines, all);
        assert!(log.contains("told"), "{log}");
        assert!(api.logs(id).await == log, "the text isn't what was streamed");
        // Every replica that was there when it began is gone.
        assert!(connections > 1, "{connections} connections");
    }
    assert_eq!(deployment.pods.all().len(), BUILDS + 2);
}

/// Waits until these pods don't exist any more. Returns those that do.
async fn gone(deployment: &Deployment, pods: &[String]) -> Vec<String> {
    eventually("the old replicas are gone", DEADLINE, || async {
        let list = deployment.kubectl(&["get", "pods", "-o", "name"]).await;
        (!pods.iter().any(|pod| list.contains(pod.as_str()))).then_some(())
    })
    .await;
    let replicas = deployment.replicas().await;
    assert_eq!(replicas.len(), 2, "{replicas:?}");
    replicas
}

/// Reads a build's events to their end, over as many connections as it takes. Returns how many those were.
fn read(api: &Api, id: &str) -> JoinHandle<(Transcript, usize)> {
    let api = api.clone();
    let mut transcript = Transcript::new(id);
    tokio::spawn(async move {
        let (mut connections, mut broken) = (0, 0);
        while transcript.events.last().is_none_or(|event| event.kind != "end") {
            // While a dead replica is still in the Service, nobody may answer.
            let connect = || transcript.try_connect(&api);
            let mut connection = eventually("the Service answers", DEADLINE, connect).await;
            connections += 1;
            let stop = transcript.read(&mut connection, |_| false).await;
            broken += usize::from(stop == Stop::Broken);
        }
        // Replicas that are told to end close their streams; only one wasn't told.
        assert!(broken <= 1, "{broken} of {connections} connections broke");
        transcript.read_to_end(&api).await;
        (transcript, connections)
    })
}

/// Somebody who calls a Service all the time.
struct Callers {
    answered: Arc<AtomicUsize>,
    stop: CancellationToken,
    task: AbortOnDropHandle<()>,
}

impl Callers {
    fn start(url: &str) -> Self {
        let answered = Arc::new(AtomicUsize::new(0));
        let stop = CancellationToken::new();
        let client = reqwest::Client::builder()
            .pool_max_idle_per_host(0)
            .timeout(Duration::from_secs(20))
            .build()
            .expect("a client");
        let (url, count, stopping) = (
            format!("{url}/readyz?exclude=cluster"),
            Arc::clone(&answered),
            stop.clone(),
        );
        let task = tokio::spawn(async move {
            while !stopping.is_cancelled() {
                let answer = client.get(&url).send().await;
                let status = answer
                    .unwrap_or_else(|error| panic!("a call failed: {error:?}"))
                    .status();
                assert_eq!(status, StatusCode::OK);
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self {
            answered,
            stop,
            task: AbortOnDropHandle::new(task),
        }
    }

    /// Stops calling. Returns how many calls were answered.
    async fn stop(self) -> usize {
        self.stop.cancel();
        self.task.await.expect("every call was answered");
        self.answered.load(Ordering::Relaxed)
    }
}
