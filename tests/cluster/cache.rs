//! Results of steps that one pod leaves in a registry and another takes from there.

use serde_json::{Value, json};

use super::support::{Api, Image, Installation, Transcript, run, text, variable};

const BUILDERS: [&str; 2] = ["buildkit", "buildah"];

/// What its first step makes is never the same twice.
const DOCKERFILE: &str = "FROM busybox\nRUN cat /proc/sys/kernel/random/uuid > /made\nCOPY file /file\n";

fn request(kiln: &Installation, builder: &str) -> Value {
    json!({
        "source": {"type": "inline", "files": {"Dockerfile": DOCKERFILE, "file": "x\n"}},
        "builder": builder,
        "images": [kiln.image(&format!("{builder}/cached"))],
    })
}

/// The request, with a cache that is read and written.
fn cached(kiln: &Installation, builder: &str, repository: &str) -> Value {
    let mut request = request(kiln, builder);
    request["cache"] = json!({"from": [repository], "to": repository, "mode": "max"});
    request
}

/// Builds; returns the image's `/made`, and whether that step was cached.
async fn build(api: &Api, request: &Value) -> (String, bool) {
    let build = api.build(request).await;
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
        for builder in BUILDERS {
            let repository = format!("{}/{}/cache-{builder}", variable("KILN_TEST_REGISTRY"), kiln.name);
            let first = build(api, &cached(kiln, builder, &repository)).await;
            let second = build(api, &cached(kiln, builder, &repository)).await;
            assert_eq!((first.1, second.1), (false, true), "{builder}");
            assert_eq!(first.0, second.0, "{builder}");

            // The same as the project's default.
            let project = api.patch("/v1/projects/default", &json!({"cache": repository})).await;
            let stored = json!({"from": [format!("{repository}:latest")], "to": format!("{repository}:latest"), "mode": "min"});
            assert_eq!(project["cache"], stored);
            let third = build(api, &request(kiln, builder)).await;
            assert_eq!((third.0, third.1), (first.0.clone(), true), "{builder}");
            let mut without = request(kiln, builder);
            without["cache"] = json!(false);
            let without = build(api, &without).await;
            assert!(without.0 != first.0 && !without.1, "{builder}");
        }
        let project = api.patch("/v1/projects/default", &json!({"cache": null})).await;
        assert_eq!(project["cache"], Value::Null);
    })
    .await;
}

/// Builds twice with a cache there: the second finds what the first left.
async fn is_kept_there(api: &Api, request: &Value) {
    let first = build(api, request).await;
    let second = build(api, request).await;
    assert_eq!((first.1, second.1), (false, true), "{request:#}");
    assert_eq!(first.0, second.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_in_a_registry_that_wants_a_password() {
    run(1, |_| {}, async |kiln: &Installation| {
        let replica = kiln.start().await;
        let api = &replica.api;
        let registry = variable("KILN_TEST_AUTH_REGISTRY");
        let login = json!({
            "registry": registry, "username": variable("KILN_TEST_USER"), "password": variable("KILN_TEST_PASSWORD"),
        });
        api.put_secret("hub", "registry", &login).await;
        for builder in BUILDERS {
            let mut request = cached(kiln, builder, &format!("{registry}/{}/cache-{builder}", kiln.name));
            request["registry_credentials"] = json!("hub");
            is_kept_there(api, &request).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_in_a_registry_with_its_own_authority() {
    run(
        1,
        |_| {},
        async |kiln: &Installation| {
            let replica = kiln.start().await;
            for builder in BUILDERS {
                let repository = format!("{}/{}/cache-{builder}", variable("KILN_TEST_TLS_REGISTRY"), kiln.name);
                is_kept_there(&replica.api, &cached(kiln, builder, &repository)).await;
            }
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_that_cannot_be_had_fails_no_build() {
    run(
        1,
        |_| {},
        async |kiln: &Installation| {
            let replica = kiln.start().await;
            for registry in [
                // Nothing answers there.
                format!("{}:5999", variable("KILN_TEST_HOST_IP")),
                // It wants a login.
                variable("KILN_TEST_AUTH_REGISTRY"),
            ] {
                for builder in BUILDERS {
                    let request = cached(kiln, builder, &format!("{registry}/{}/cache", kiln.name));
                    let (_, cached) = build(&replica.api, &request).await;
                    // What buildah has made before it finds that it can't leave it there is there for its second try.
                    assert!(!cached || builder == "buildah", "{registry}, {builder}");
                }
            }
        },
    )
    .await;
}
