//! A registry over TLS, whose certificate is signed by an authority of its own.

use serde_json::json;

use super::support::{Image, Installation, run, set, text, variable};

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_with_its_own_authority_is_pushed_to_and_pulled_from() {
    run(
        1,
        |_| {},
        async |kiln: &Installation| {
            let replica = kiln.start().await;
            let registry = variable("KILN_TEST_TLS_REGISTRY");
            for builder in ["buildkit", "buildah"] {
                let base = format!("{registry}/{}/{builder}-base:1", kiln.name);
                let image = format!("{registry}/{}/{builder}:1", kiln.name);
                for (dockerfile, name) in [
                    ("FROM busybox\nRUN echo base > /base\n".to_owned(), &base),
                    (format!("FROM {base}\nRUN cp /base /copy\n"), &image),
                ] {
                    let request = json!({
                        "source": {"type": "inline", "files": {"Dockerfile": dockerfile}},
                        "builder": builder,
                        "images": [name],
                    });
                    let build = replica.api.build(&request).await;
                    let id = text(&build, "/id");
                    assert_eq!(build["state"], "succeeded", "{build:#}\n{}", replica.api.logs(id).await);
                    assert_eq!(Image::pull(name).digest, text(&build, "/digest"));
                }
                assert_eq!(Image::pull(&image).file("copy").as_deref(), Some("base\n"));
            }
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_authority_the_message_names_it() {
    let unknown = |config: &mut toml::Table| set(config, "registry", Vec::<toml::Value>::new());
    run(1, unknown, async |kiln: &Installation| {
        let replica = kiln.start().await;
        for builder in ["buildkit", "buildah"] {
            let request = json!({
                "source": {"type": "inline", "files": {"Dockerfile": "FROM scratch\nCOPY Dockerfile /\n"}},
                "builder": builder,
                "images": [format!("{}/{}/x:1", variable("KILN_TEST_TLS_REGISTRY"), kiln.name)],
            });
            let failure = &replica.api.build(&request).await["failure"];
            assert_eq!(failure["code"], "push_failed", "{builder}: {failure:#}");
            let message = failure["message"].as_str().expect("a message");
            assert!(message.contains("`ca_file`"), "{builder}: {message}");
        }
    })
    .await;
}
