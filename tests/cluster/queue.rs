//! What builds on a real cluster wait for, in its own words.

use serde_json::{Value, json};
use toml::Table;

use super::support::{Api, DEADLINE, ENDLESS, Installation, eventually, inline, run, set, text, variable};

/// Waits until a build is kept by this kind of thing, and returns what is told of it.
async fn blocked(api: &Api, id: &str, kind: &str) -> Value {
    eventually(&format!("the build waits for {kind}"), DEADLINE, || async {
        let seen = api.queue(id).await;
        (seen["blocked_by"]["kind"] == kind).then_some(seen)
    })
    .await
}

#[track_caller]
fn says(seen: &Value, words: &[&str]) {
    let message = text(seen, "/blocked_by/message");
    for words in words {
        assert!(message.contains(words), "`{words}` is not in: {message}");
    }
}

async fn cancel(api: &Api, id: &str) {
    api.cancel(id).await;
    assert_eq!(api.finished(id).await["state"], "cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_schedulers_words_reach_who_waits() {
    for (cpu, pool, words) in [
        ("16", None, "Insufficient cpu"),
        // A node may have the room and still not be one of those that are asked for.
        ("1", Some("nobody"), "didn't match Pod's node affinity/selector"),
    ] {
        let adjust = |config: &mut Table| {
            if let Some(pool) = pool {
                set(config, "kubernetes.pod_template.spec.nodeSelector.pool", pool);
            }
        };
        run(1, adjust, async |kiln: &Installation| {
            let replica = kiln.start().await;
            let mut request = inline("FROM busybox\n");
            request["resources"] = json!({"cpu": cpu});
            let id = replica.api.create(&request).await;
            let seen = blocked(&replica.api, &id, "unscheduled").await;
            assert_eq!((text(&seen, "/state"), &seen["position"]), ("starting", &Value::Null));
            says(&seen, &["0/2 nodes are available", words]);
            cancel(&replica.api, &id).await;
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_words_reach_who_waits() {
    let image = format!("{}/kiln/no-such-image:1", variable("KILN_TEST_REGISTRY"));
    let missing = |config: &mut Table| set(config, "kubernetes.agent_image", image.as_str());
    run(1, missing, async |kiln: &Installation| {
        let replica = kiln.start().await;
        let id = replica.api.create(&inline("FROM busybox\n")).await;
        let seen = blocked(&replica.api, &id, "image_pull").await;
        says(&seen, &[&image, "`kubernetes.agent_image`"]);
        cancel(&replica.api, &id).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_installation_and_one_without_a_worker() {
    let one = |config: &mut Table| set(config, "engine.max_live_builds", 1);
    run(1, one, async |kiln: &Installation| {
        let front = kiln.start_roles("api").await;
        let api = &front.api;
        let running = api.create(&inline(ENDLESS)).await;
        let seen = blocked(api, &running, "no_worker").await;
        assert_eq!(seen["position"], json!({"project": 1, "all": 1}));

        let worker = kiln.start().await;
        api.reaches(&running, "running").await;
        assert_eq!(api.queue(&running).await["blocked_by"], Value::Null);
        let waiting = api.create(&inline("FROM busybox\n")).await;
        let seen = blocked(api, &waiting, "limit").await;
        assert_eq!(seen["position"], json!({"project": 1, "all": 1}));
        says(&seen, &["a build is running"]);

        // With its last worker gone, nobody tells more than that; what runs is taken over later.
        assert!(worker.terminate().await.success());
        blocked(api, &waiting, "no_worker").await;
        kiln.start().await;
        blocked(api, &waiting, "limit").await;
        cancel(api, &running).await;
        assert_eq!(api.finished(&waiting).await["state"], "succeeded");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_out_of_reach_is_named() {
    run(
        1,
        |_| {},
        async |kiln: &Installation| {
            let config = std::fs::read_to_string(variable("KILN_TEST_KUBECONFIG")).expect("a kubeconfig");
            let (nowhere, path) = (
                format!("{}:5999", variable("KILN_TEST_HOST_IP")),
                kiln.folder().join("nowhere"),
            );
            let (_, server) = config.split_once("server:").expect("a server");
            let server = server.trim_start().trim_start_matches('"');
            let server = server.split(['"', ',', '\n']).next().expect("a URL");
            let elsewhere = config.replace(server, &format!("https://{nowhere}"));
            std::fs::write(&path, elsewhere).expect("a file");
            let replica = kiln.start_on(&path).await;
            let id = replica.api.create(&inline("FROM busybox\n")).await;
            let seen = blocked(&replica.api, &id, "cluster").await;
            assert_eq!((text(&seen, "/state"), &seen["position"]["all"]), ("queued", &json!(1)));
            says(&seen, &["no build can be launched: "]);
            cancel(&replica.api, &id).await;
        },
    )
    .await;
}
