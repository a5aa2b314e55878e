//! Pods that never come to run.

use serde_json::json;
use toml::Table;

use super::{Case, Installation, by, expect_failures, inline, run, set};
use crate::cluster::support::variable;

fn toml(text: &str) -> Table {
    text.parse().expect("TOML")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_node_has_is_unschedulable() {
    run(
        1,
        |config| set(config, "engine.unscheduled_timeout_seconds", 3),
        async |kiln: &Installation| {
            let mut request = inline("FROM busybox\n");
            request["resources"] = json!({"cpu": "16"});
            let case = Case::new(request, "unschedulable", &["Insufficient cpu", "`resources`"]);
            expect_failures(kiln, vec![case]).await;
        },
    )
    .await;
}

/// The operator's settings of the images in a build's pod, each with a builder that uses it.
const IMAGES: [(&str, &str); 4] = [
    ("kubernetes.buildkit_image", "buildkit"),
    ("kubernetes.buildah_image", "buildah"),
    ("kubernetes.agent_image", "buildkit"),
    ("kubernetes.source_image", "buildkit"),
];

/// The setting names an image that can't be had: builds fail with these words, and with how the operator mends it.
async fn expect_pull_failure((setting, builder): (&str, &str), image: &str, patience: u32, words: &[&str]) {
    let image_is = |config: &mut Table| {
        set(config, setting, image);
        set(config, "engine.image_pull_timeout_seconds", patience);
        set(config, "engine.max_attempts", 2);
    };
    run(1, image_is, async |kiln: &Installation| {
        let advice = format!("`{setting}`");
        let words = [words, &[image, &advice, "For the operator"]].concat();
        let request = by(builder, inline("FROM busybox\n"));
        let case = Case::new(request, "image_pull_failed", &words).attempts(2);
        expect_failures(kiln, vec![case]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_not_there_is_named() {
    let image = format!("{}/kiln/no-such-image:1", variable("KILN_TEST_REGISTRY"));
    for setting in IMAGES {
        expect_pull_failure(setting, &image, 5, &["not found"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_wants_credentials_is_named() {
    let image = format!("{}/kiln/no-such-image:1", variable("KILN_TEST_AUTH_REGISTRY"));
    for setting in IMAGES {
        expect_pull_failure(setting, &image, 5, &["`kubernetes.image_pull_secrets`"]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_no_name_is_named() {
    for setting in IMAGES {
        // Nothing is waited for.
        expect_pull_failure(setting, "Not/An:Image:Name", 3600, &["InvalidImageName"]).await;
    }
}

/// A pod with this over it has a node, and still doesn't run.
async fn expect_pending(template: Table, words: &[&str]) {
    let never = |config: &mut Table| {
        // A kubelet looks again after 10 s, and only then shows what it met with beside a sidecar that runs.
        set(config, "engine.pending_timeout_seconds", 20);
        set(config, "kubernetes.pod_template", template);
    };
    run(1, never, async |kiln: &Installation| {
        let case = Case::new(inline("FROM busybox\n"), "pending_timeout", words);
        expect_failures(kiln, vec![case]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_cannot_be_made_is_explained_by_the_node() {
    let template = toml(
        r#"
        [[spec.initContainers]]
        name = "source"
        env = [{ name = "A", valueFrom = { secretKeyRef = { name = "no-such-secret", key = "a" } } }]
        "#,
    );
    let words = ["did not run within 20 s", "secret \"no-such-secret\" not found"];
    expect_pending(template, &words).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_never_comes_is_left_to_the_operator() {
    let template = toml(
        r#"
        [[spec.volumes]]
        name = "more"
        configMap = { name = "no-such-map" }
        [[spec.initContainers]]
        name = "source"
        volumeMounts = [{ name = "more", mountPath = "/more" }]
        "#,
    );
    expect_pending(template, &["did not run within 20 s", "pod's events", "operator"]).await;
}
