//! Builds that are stopped: by their owner in each state, and by their time limit.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::support::{Api, ENDLESS, Installation, Transcript, inline, kiln_lines, run, set, text};

/// From the call to the last trace of the pod: far less than a pod's own grace period, and than the build would take.
const LIMIT: Duration = Duration::from_mins(1);

/// Cancels and waits until the pod is gone and the build is cancelled.
async fn cancel(kiln: &Installation, api: &Api, id: &str) -> Value {
    let begun = Instant::now();
    let answer = api.cancel(id).await;
    assert!(
        matches!(text(&answer, "/state"), "cancelling" | "cancelled"),
        "{answer:#}"
    );
    kiln.pods.wait_until_none(Some(id), LIMIT).await;
    let build = api.finished(id).await;
    eprintln!("cancelled and cleared up after {:.1?}", begun.elapsed());
    assert_eq!(build["state"], "cancelled", "{build:#}");
    assert_eq!(build["failure"], Value::Null);
    // Asking again changes nothing.
    assert_eq!(api.cancel(id).await["state"], "cancelled");
    build
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queued_build_is_cancelled_at_once_and_never_has_a_pod() {
    run(
        1,
        |config| set(config, "engine.max_live_builds", 1),
        async |kiln: &Installation| {
            let replica = kiln.start().await;
            let api = &replica.api;
            let running = api.create(&inline(ENDLESS)).await;
            api.reaches(&running, "running").await;
            let queued = api.create(&inline("FROM scratch\n")).await;
            assert_eq!(api.cancel(&queued).await["state"], "cancelled");
            let mut transcript = Transcript::new(&queued);
            assert_eq!(transcript.read_to_end(api).await["state"], "cancelled");
            assert_eq!(transcript.states(), ["queued", "cancelled"]);

            // Whoever waits behind the other gets the room.
            let next = api.create(&inline("FROM busybox\nRUN true\n")).await;
            cancel(kiln, api, &running).await;
            assert_eq!(api.finished(&next).await["state"], "succeeded");
            assert_eq!(kiln.pods.of(&queued), 0);
            assert_eq!(api.get(&queued).await["attempts"], json!([]));
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_starting_build_is_cancelled_with_its_pod() {
    // No node is like that: the pod waits.
    let nowhere = |config: &mut toml::Table| set(config, "kubernetes.pod_template.spec.nodeSelector.pool", "none");
    run(1, nowhere, async |kiln: &Installation| {
        let replica = kiln.start().await;
        let id = replica.api.create(&inline("FROM scratch\n")).await;
        replica.api.reaches(&id, "starting").await;
        super::support::eventually("there is a pod", LIMIT, || async {
            (kiln.pods.of(&id) == 1).then_some(())
        })
        .await;
        let build = cancel(kiln, &replica.api, &id).await;
        assert_eq!(build["started_at"], Value::Null);
        assert_eq!(kiln.pods.of(&id), 1);

        // And one whose pod may or may not have been created yet.
        for _ in 0..5 {
            let id = replica.api.create(&inline("FROM scratch\n")).await;
            cancel(kiln, &replica.api, &id).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_build_is_cancelled_and_its_log_is_kept() {
    run(
        1,
        |_| {},
        async |kiln: &Installation| {
            let replica = kiln.start().await;
            let api = &replica.api;
            let id = api.create(&inline(ENDLESS)).await;
            let mut transcript = Transcript::new(&id);
            let mut connection = transcript.connect(api).await;
            transcript.read_lines(&mut connection, 1).await;
            let build = cancel(kiln, api, &id).await;
            assert!(build["started_at"].is_string());
            assert_eq!(build["attempts"][0]["state"], "cancelled");

            let end = transcript.read_to_end(api).await;
            assert_eq!(end["state"], "cancelled");
            assert_eq!(
                transcript.states(),
                ["queued", "starting", "running", "cancelling", "cancelled"]
            );
            assert_eq!(transcript.of_kind("gap"), [] as [&Value; 0]);
            assert_eq!(kiln_lines(&api.logs(&id).await), [1]);
            assert_eq!(kiln.pods.of(&id), 1);
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_build_is_stopped_by_whoever_is_left() {
    run(
        1,
        |_| {},
        async |kiln: &Installation| {
            let first = kiln.start().await;
            let id = first.api.create(&inline(ENDLESS)).await;
            let mut transcript = Transcript::new(&id);
            let mut connection = transcript.connect(&first.api).await;
            transcript.read_lines(&mut connection, 1).await;
            // The wish is stored before the call is answered, so it outlives the replica that took it.
            assert_eq!(first.api.cancel(&id).await["state"], "cancelling");
            first.kill().await;

            let second = kiln.start().await;
            let build = second.api.finished(&id).await;
            assert_eq!(build["state"], "cancelled", "{build:#}");
            assert_eq!(kiln_lines(&second.api.logs(&id).await), [1]);
            assert_eq!(kiln.pods.of(&id), 1);
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_takes_too_long_is_stopped_and_its_log_is_kept() {
    run(
        1,
        |_| {},
        async |kiln: &Installation| {
            let replica = kiln.start().await;
            let mut request = inline(ENDLESS);
            request["timeout_seconds"] = json!(15);
            let build = replica.api.build(&request).await;
            assert_eq!(build["state"], "failed");
            assert_eq!(build["failure"]["code"], "timeout");
            let message = text(&build, "/failure/message");
            assert!(message.contains("`timeout_seconds` of 15"), "{message}");
            assert_eq!(build["attempts"].as_array().map(Vec::len), Some(1));
            assert_eq!(kiln_lines(&replica.api.logs(text(&build, "/id")).await), [1]);
        },
    )
    .await;
}
