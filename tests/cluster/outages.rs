//! A cluster that can't be used, and pods that others delete.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use k8s_openapi::api::{
    core::v1::Namespace,
    rbac::v1::{Role, RoleBinding},
};
use kube::{
    Client,
    api::{Api as Objects, DeleteParams, PostParams},
    config::Kubeconfig,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::support::{
    DEADLINE, Installation, Replica, Transcript, inline, kiln_lines, printing, run, set, text, variable,
};

/// It isn't ready and says so in these words.
async fn expect_not_ready(replica: &Replica, words: &[&str]) {
    let mut said = Value::Null;
    let look = async || {
        let (ready, readiness) = replica.api.ready().await;
        assert!(!ready, "ready without a usable cluster");
        readiness
    };
    let readiness = tokio::time::timeout(DEADLINE, async {
        loop {
            said = look().await;
            let reason = text(&said, "/cluster/reason");
            if words.iter().all(|words| reason.contains(words)) {
                return said.clone();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("{words:?} is not in {said:#}"));
    assert_eq!(readiness["cluster"]["ok"], false);
    assert_eq!(readiness["database"]["ok"], true);
}

/// It isn't ready and says so in these words; nothing is launched, and a build stays queued.
async fn expect_queued(replica: &Replica, words: &[&str]) -> String {
    expect_not_ready(replica, words).await;
    let id = replica.api.create(&inline("FROM busybox\nRUN true\n")).await;
    // The queue is looked at every second.
    let build = replica.api.wait(&id, 3).await;
    assert_eq!(build["state"], "queued", "{build:#}");
    assert_eq!(build["attempts"], json!([]));
    id
}

/// The kubeconfig of Kiln's own account, with a change.
pub(super) fn changed_kubeconfig(folder: &Path, change: impl FnOnce(&mut Value)) -> PathBuf {
    let kubeconfig = Kubeconfig::read_from(variable("KILN_TEST_KUBECONFIG")).expect("a kubeconfig");
    let mut document = serde_json::to_value(kubeconfig).expect("JSON");
    change(&mut document);
    let path = folder.join("kubeconfig");
    std::fs::write(&path, document.to_string()).expect("a file");
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_cluster_builds_wait_for_one() {
    run(
        1,
        |_| {},
        async |kiln: &Installation| {
            // Nobody listens on port 9, "discard".
            let closed = changed_kubeconfig(kiln.folder(), |document| {
                document["clusters"][0]["cluster"]["server"] = json!("https://127.0.0.1:9");
            });
            let replica = kiln.start_on(&closed).await;
            let one = expect_queued(
                &replica,
                &[
                    "at https://127.0.0.1:9 can't be reached",
                    "Check the server in the kubeconfig",
                ],
            )
            .await;
            assert!(replica.terminate().await.success());

            let stranger = changed_kubeconfig(kiln.folder(), |document| {
                document["users"][0]["user"] = json!({"token": "nobody"});
            });
            let replica = kiln.start_on(&stranger).await;
            let two = expect_queued(&replica, &["credentials", "Renew the token"]).await;
            assert!(replica.terminate().await.success());

            let missing = kiln.folder().join("no-such-kubeconfig");
            let replica = kiln.start_on(&missing).await;
            let three = expect_queued(
                &replica,
                &["no usable kubeconfig", "no-such-kubeconfig", "Set KUBECONFIG"],
            )
            .await;
            assert!(replica.terminate().await.success());
            assert_eq!(kiln.pods.all().len(), 0);

            let replica = kiln.start().await;
            for id in [one, two, three] {
                let build = replica.api.finished(&id).await;
                assert_eq!(build["state"], "succeeded", "{build:#}");
            }
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_namespace_is_waited_for() {
    let namespace = format!("kiln-test-{}", uuid::Uuid::new_v4().simple());
    let elsewhere = |config: &mut toml::Table| set(config, "kubernetes.namespace", namespace.as_str());
    run(1, elsewhere, async |kiln: &Installation| {
        // Who may see namespaces can say more.
        let replica = kiln.start_on(Path::new(&variable("KUBECONFIG"))).await;
        expect_not_ready(&replica, &[&format!("kubectl create namespace {namespace}")]).await;
        assert!(replica.terminate().await.success());

        let replica = kiln.start_on(Path::new(&variable("KILN_TEST_KUBECONFIG"))).await;
        let words = [namespace.as_str(), "Check that the namespace exists", "deploy/rbac"];
        let id = expect_queued(&replica, &words).await;

        let client = Client::try_default().await.expect("KUBECONFIG");
        create_namespace(&client, &namespace).await;
        // Without a restart.
        let build = replica.api.finished(&id).await;
        assert_eq!(build["state"], "succeeded", "{build:#}");
        assert!(replica.api.ready().await.0);
        kiln.pods.wait_until_none(None, DEADLINE).await;
        let namespaces: Objects<Namespace> = Objects::all(client);
        namespaces
            .delete(&namespace, &DeleteParams::default())
            .await
            .expect("deletes the namespace");
    })
    .await;
}

/// A namespace with what `deploy/rbac` puts into the one for builds.
async fn create_namespace(client: &Client, name: &str) {
    async fn create<K>(objects: Objects<K>, object: Value)
    where
        K: Clone + std::fmt::Debug + DeserializeOwned + serde::Serialize,
    {
        let object: K = serde_json::from_value(object).expect("an object");
        objects
            .create(&PostParams::default(), &object)
            .await
            .expect("creates it");
    }
    let level = json!({"pod-security.kubernetes.io/enforce": "privileged"});
    create::<Namespace>(
        Objects::all(client.clone()),
        json!({"metadata": {"name": name, "labels": level}}),
    )
    .await;
    let source: Objects<Role> = Objects::namespaced(client.clone(), "kiln-builds");
    let rules = source.get("kiln").await.expect("the role of deploy/rbac").rules;
    create::<Role>(
        Objects::namespaced(client.clone(), name),
        json!({"metadata": {"name": "kiln"}, "rules": rules}),
    )
    .await;
    create::<RoleBinding>(
        Objects::namespaced(client.clone(), name),
        json!({
            "metadata": {"name": "kiln"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "kiln"},
            "subjects": [{"kind": "ServiceAccount", "name": "kiln", "namespace": "kiln"}],
        }),
    )
    .await;
}

/// The pod is deleted while the build prints; the second attempt makes it.
async fn survive_deletion(force: bool) {
    const LINES: u32 = 300;
    run(
        1,
        |_| {},
        async |kiln: &Installation| {
            let replica = kiln.start().await;
            let api = &replica.api;
            let id = api.create(&inline(&printing(LINES, "0.02"))).await;
            let mut transcript = Transcript::new(&id);
            let mut connection = transcript.connect(api).await;
            transcript.read_lines(&mut connection, 50).await;
            kiln.pods
                .delete(text(&api.get(&id).await, "/attempts/0/pod"), force)
                .await;

            let end = transcript.read_to_end(api).await;
            assert_eq!(end["state"], "succeeded", "{end}");
            let build = api.get(&id).await;
            assert_eq!(build["failure"], Value::Null);
            let attempts = build["attempts"].as_array().expect("a list");
            assert_eq!(attempts.len(), 2, "{build:#}");
            assert_eq!(attempts[0]["state"], "failed");
            assert!(
                matches!(
                    text(&attempts[0], "/failure/code"),
                    "internal" | "evicted" | "node_lost"
                ),
                "{build:#}"
            );
            assert_eq!(attempts[1]["state"], "succeeded");
            assert_ne!(attempts[0]["pod"], attempts[1]["pod"]);
            assert_eq!(
                transcript.states(),
                [
                    "queued",
                    "starting",
                    "running",
                    "queued",
                    "starting",
                    "running",
                    "succeeded"
                ]
            );
            assert_eq!(kiln.pods.of(&id), 2);

            // The first attempt's lines without a hole, then the second's, whole.
            let lines = kiln_lines(&transcript.text());
            let (first, second) = lines.split_at(lines.len() - LINES as usize);
            assert!(
                first.len() >= 50 && first.len() < LINES as usize,
                "{} lines",
                first.len()
            );
            assert!(
                first.iter().copied().eq(1..=u32::try_from(first.len()).expect("small")),
                "{first:?}"
            );
            assert!(second.iter().copied().eq(1..=LINES), "{second:?}");
            // What has not come to its end is said to be short.
            let whole = attempts[0]["log"]["sealed"] == true;
            assert_eq!(transcript.of_kind("gap").is_empty(), whole, "{build:#}");
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_pod_is_replaced() {
    survive_deletion(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_deleted_by_force_is_replaced() {
    survive_deletion(true).await;
}
