//! From a request to an image that is really in the registry.

use serde_json::{Value, json};

use super::support::{Api, Image, Installation, Repository, Transcript, run, text};

/// Builds, and makes sure that everything in the answer says so.
async fn succeeds(api: &Api, request: &Value) -> Value {
    let build = api.build(request).await;
    assert_eq!(
        build["state"],
        "succeeded",
        "{build:#}\n{}",
        api.logs(text(&build, "/id")).await
    );
    assert_eq!(build["failure"], Value::Null);
    assert_eq!(build["attempts"].as_array().map(Vec::len), Some(1));
    assert_eq!(build["attempts"][0]["state"], "succeeded");
    build
}

/// The image under each of its names, with the digest that the build tells.
fn pull(build: &Value) -> Vec<Image> {
    let names = build["images"].as_array().expect("names");
    let images: Vec<_> = names
        .iter()
        .map(|name| Image::pull(name.as_str().expect("a name")))
        .collect();
    assert!(!images.is_empty());
    for image in &images {
        assert_eq!(image.digest, text(build, "/digest"));
    }
    images
}

const DOCKERFILE: &str = "\
FROM busybox AS base
ARG GREETING=none
ENV GREETING=$GREETING
COPY hello.txt /hello.txt

FROM base AS wanted
RUN echo \"$GREETING\" > /greeting.txt

FROM base AS last
RUN exit 7
";

#[tokio::test(flavor = "multi_thread")]
async fn a_git_repository_becomes_an_image() {
    run(
        1,
        |_| {},
        async |kiln: &Installation| {
            let repository = Repository::public();
            let old = repository.commit(&[
                ("services/web/Dockerfile", DOCKERFILE),
                ("services/web/hello.txt", "old\n"),
            ]);
            let new = repository.commit(&[("services/web/hello.txt", "new\n"), ("hello.txt", "not this one\n")]);
            let replica = kiln.start().await;
            let greeting = "--hello, $(world) 'x' \"y\" é";
            let mut request = json!({
                "source": {"type": "git", "url": repository.url, "ref": "main", "subdir": "services/web"},
                "build_args": {"GREETING": greeting},
                "labels": {"org.example/team": "a,b=c"},
                "target": "wanted",
                "images": [kiln.image("app"), kiln.image("other/app")],
            });

            let build = succeeds(&replica.api, &request).await;
            assert_eq!(text(&build, "/commit"), new);
            let images = pull(&build);
            assert_eq!(images.len(), 2);
            for image in images {
                assert_eq!(image.config["config"]["Labels"]["org.example/team"], "a,b=c");
                let environment = image.config["config"]["Env"].as_array().expect("a list");
                assert!(
                    environment.contains(&json!(format!("GREETING={greeting}"))),
                    "{environment:?}"
                );
                assert_eq!(image.file("hello.txt").as_deref(), Some("new\n"));
                assert_eq!(image.file("greeting.txt"), Some(format!("{greeting}\n")));
            }
            let mut transcript = Transcript::new(text(&build, "/id"));
            let end = transcript.read_to_end(&replica.api).await;
            assert_eq!(end["state"], "succeeded");
            assert_eq!(end["digest"], build["digest"]);
            assert_eq!(transcript.states(), ["queued", "starting", "running", "succeeded"]);
            assert_eq!(transcript.of_kind("gap"), [] as [&Value; 0]);

            // The commit wins over the branch.
            request["source"]["commit"] = json!(old);
            let build = succeeds(&replica.api, &request).await;
            assert_eq!(text(&build, "/commit"), old);
            assert_eq!(pull(&build)[0].file("hello.txt").as_deref(), Some("old\n"));

            // Neither branch nor commit: the repository's own default.
            request["source"] = json!({"type": "git", "url": repository.url, "subdir": "services/web"});
            let build = succeeds(&replica.api, &request).await;
            assert_eq!(text(&build, "/commit"), new);
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_in_the_request_become_an_image() {
    run(1, |_| {}, async |kiln: &Installation| {
        let replica = kiln.start().await;
        let dockerfile = "FROM busybox\nCOPY web/index.html /www/\nRUN wc -c < /www/index.html > /size\nCMD [\"httpd\"]\n";
        let mut request = json!({
            "source": {"type": "inline", "files": {"build/Dockerfile": dockerfile, "web/index.html": "<p>Hi</p>\n"}},
            "dockerfile": "build/Dockerfile",
            "images": [kiln.image("site")],
        });
        let build = succeeds(&replica.api, &request).await;
        assert_eq!(build["commit"], Value::Null);
        let image = &pull(&build)[0];
        assert_eq!(image.config["config"]["Cmd"], json!(["httpd"]));
        assert_eq!(image.file("www/index.html").as_deref(), Some("<p>Hi</p>\n"));
        assert_eq!(image.file("size").as_deref(), Some("10\n"));

        // The same again, for its result only.
        request["push"] = json!(false);
        request["images"] = json!([]);
        let build = succeeds(&replica.api, &request).await;
        assert_eq!(build["images"], json!([]));
    })
    .await;
}
