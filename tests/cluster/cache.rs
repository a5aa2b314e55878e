//! Results of steps that one pod leaves in a registry and another takes from there.

use serde_json::{Value, json};

use super::support::{Api, Image, Installation, Transcript, run, text, variable};

/// What its first step makes is never the same twice.
const DOCKERFILE: &str = "FROM busybox\nRUN cat /proc/sys/kernel/random/uuid > /made\nCOPY file /file\n";

/// Builds; returns the image's `/made`, and whether that step was cached.
async fn build(kiln: &Installation, api: &Api, builder: &str, cache: Option<Value>) -> (String, bool) {
    let mut request = json!({
        "source": {"type": "inline", "files": {"Dockerfile": DOCKERFILE, "file": "x\n"}},
        "builder": builder,
        "images": [kiln.image(&format!("{builder}/cached"))],
    });
    if let Some(cache) = cache {
        request["cache"] = cache;
    }
    let build = api.build(&request).await;
    let id = text(&build, "/id");
    assert_eq!(build["state"], "succeeded", "{build:#}\n{}", api.logs(id).await);
    let mut transcript = Transcript::new(id);
    transcript.read_to_end(api).await;
    let end = transcript.of_kind("step").into_iter().rfind(|step| {
        step["phase"] == "succeeded" && step["name"].as_str().is_some_and(|name| name.contains("RUN cat"))
    });
    let cached = end.unwrap_or_else(|| panic!("{}", transcript.text()))["cached"] == true;
    let image = Image::pull(text(&build, "/images/0"));
    (image.file("made").expect("made"), cached)
}

#[tokio::test(flavor = "multi_thread")]
async fn another_pod_finds_what_the_first_left_in_the_registry() {
    run(1, |_| {}, async |kiln: &Installation| {
        let replica = kiln.start().await;
        let api = &replica.api;
        for builder in ["buildkit", "buildah"] {
            let repository = format!("{}/{}/cache-{builder}", variable("KILN_TEST_REGISTRY"), kiln.name);
            let cache = json!({"from": [repository], "to": repository, "mode": "max"});
            let first = build(kiln, api, builder, Some(cache.clone())).await;
            let second = build(kiln, api, builder, Some(cache)).await;
            assert_eq!((first.1, second.1), (false, true), "{builder}");
            assert_eq!(first.0, second.0, "{builder}");

            // The same as the project's default.
            let project = api.patch("/v1/projects/default", &json!({"cache": repository})).await;
            let stored = json!({"from": [format!("{repository}:latest")], "to": format!("{repository}:latest"), "mode": "min"});
            assert_eq!(project["cache"], stored);
            let third = build(kiln, api, builder, None).await;
            assert_eq!((third.0, third.1), (first.0.clone(), true), "{builder}");
            let without = build(kiln, api, builder, Some(json!(false))).await;
            assert!(without.0 != first.0 && !without.1, "{builder}");
        }
        let project = api.patch("/v1/projects/default", &json!({"cache": null})).await;
        assert_eq!(project["cache"], Value::Null);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_cannot_be_had_fails_no_build() {
    run(
        1,
        |_| {},
        async |kiln: &Installation| {
            let replica = kiln.start().await;
            // Nothing answers there.
            let nowhere = format!("{}:5999/cache", variable("KILN_TEST_HOST_IP"));
            let cache = json!({"from": [nowhere], "to": nowhere});
            let (_, cached) = build(kiln, &replica.api, "buildkit", Some(cache)).await;
            assert!(!cached);
        },
    )
    .await;
}
