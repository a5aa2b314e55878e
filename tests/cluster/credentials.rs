//! Builds that log in: to a registry and to git servers, with what they mount, and what nobody else gets to see.

use std::{fs, process::Command};

use k8s_openapi::api::core::v1::Container;
use serde_json::{Value, json};

use super::support::{Api, DEADLINE, ENDLESS, Installation, Replica, Repository, eventually, run, text, variable};

const BUILDERS: [&str; 2] = ["buildkit", "buildah"];

/// User and password that the registry and the git server want.
fn login(password: &str) -> Value {
    json!({"username": variable("KILN_TEST_USER"), "password": password})
}

fn registry_login(password: &str) -> Value {
    let mut data = login(password);
    data["registry"] = json!(variable("KILN_TEST_AUTH_REGISTRY"));
    data
}

fn inline(dockerfile: &str, builder: &str) -> Value {
    json!({
        "source": {"type": "inline", "files": {"Dockerfile": dockerfile}},
        "push": false, "builder": builder, "timeout_seconds": 300,
    })
}

async fn succeeds(api: &Api, request: &Value) -> (Value, String) {
    let build = api.build(request).await;
    let log = api.logs(text(&build, "/id")).await;
    assert_eq!(build["state"], "succeeded", "{build:#}\n{log}");
    (build, log)
}

/// Builds what must fail with this code and these words.
async fn fails(api: &Api, request: &Value, code: &str, words: &[&str]) {
    let build = api.build(request).await;
    let log = api.logs(text(&build, "/id")).await;
    assert_eq!(build["failure"]["code"], code, "{build:#}\n{log}");
    let message = text(&build, "/failure/message");
    for word in words {
        assert!(message.contains(word), "{word} is not in: {message}\n{log}");
    }
}

/// Neither what the API tells nor what the replica logs holds any of the texts.
async fn shows_none_of(replica: &Replica, build: &str, texts: &[&str]) {
    let shown = [
        replica.api.get(build).await.to_string(),
        replica.api.logs(build).await,
        replica.api.secrets().await,
        replica.log(),
    ];
    for text in texts {
        for shown in &shown {
            assert!(!shown.contains(text), "{text} is in: {shown}");
        }
    }
}

/// A private key that opens nothing, and its public half.
fn ssh_key(kiln: &Installation) -> (String, String) {
    let path = kiln.folder().join("key");
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(&path)
        .status()
        .expect("ssh-keygen runs");
    assert!(made.success());
    let read = |path| fs::read_to_string(path).expect("the key");
    (read(path.clone()), read(path.with_extension("pub")))
}

fn file(name: &str) -> String {
    fs::read_to_string(variable(name)).expect("a file of the cluster")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_wants_a_password() {
    run(
        1,
        |_| {},
        async |kiln: &Installation| {
            let replica = kiln.start().await;
            let (api, password) = (&replica.api, variable("KILN_TEST_PASSWORD"));
            api.put_secret("right", "registry", &registry_login(&password)).await;
            api.put_secret("wrong", "registry", &registry_login("not-the-password"))
                .await;
            for builder in BUILDERS {
                let image = format!("{}/{}/{builder}:1", variable("KILN_TEST_AUTH_REGISTRY"), kiln.name);
                let mut push = inline("FROM busybox\nRUN echo hello > /hello\n", builder);
                push["push"] = json!(true);
                push["images"] = json!([image]);
                let words = [image.as_str(), "wants credentials", "`registry_credentials`"];
                fails(api, &push, "push_failed", &words).await;
                push["registry_credentials"] = json!("wrong");
                fails(api, &push, "push_failed", &words).await;
                push["registry_credentials"] = json!("right");
                let (build, _) = succeeds(api, &push).await;
                assert!(text(&build, "/digest").starts_with("sha256:"));
                let encoded = "a2lsbjpraWxuLXNlY3JldA==";
                shows_none_of(&replica, text(&build, "/id"), &[&password, encoded]).await;

                // What is there now can only be begun from with the password, too.
                let mut pull = inline(&format!("FROM {image}\nRUN cat /hello\n"), builder);
                let words = [image.as_str(), "`registry_credentials`"];
                fails(api, &pull, "build_failed", &words).await;
                pull["registry_credentials"] = json!(["right"]);
                let (_, log) = succeeds(api, &pull).await;
                assert!(log.contains("hello"), "{log}");
            }
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_wants_a_password() {
    run(
        1,
        |_| {},
        async |kiln: &Installation| {
            let repository = Repository::private();
            let commit = repository.commit(&[("Dockerfile", "FROM busybox\nRUN echo hello\n")]);
            let replica = kiln.start().await;
            let (api, password) = (&replica.api, variable("KILN_TEST_PASSWORD"));
            api.put_secret("right", "git", &login(&password)).await;
            api.put_secret("wrong", "git", &login("not-the-password")).await;
            let mut request = json!({"source": {"type": "git", "url": repository.url}, "push": false});
            let hint = "name a secret of kind `git` in `source.credentials`";
            fails(api, &request, "source_failed", &[&repository.url, hint]).await;
            request["source"]["credentials"] = json!("wrong");
            let hint = "refuses the login in `source.credentials`";
            fails(api, &request, "source_failed", &[hint]).await;
            request["source"]["credentials"] = json!("right");
            let (build, _) = succeeds(api, &request).await;
            assert_eq!(text(&build, "/commit"), commit);
            shows_none_of(&replica, text(&build, "/id"), &[&password]).await;
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_by_ssh() {
    run(
        1,
        |_| {},
        async |kiln: &Installation| {
            let repository = Repository::public();
            let commit = repository.commit(&[("Dockerfile", "FROM busybox\nRUN echo hello\n")]);
            let replica = kiln.start().await;
            let api = &replica.api;
            let (key, hosts) = (file("KILN_TEST_GIT_SSH_KEY"), file("KILN_TEST_GIT_KNOWN_HOSTS"));
            let (other, _) = ssh_key(kiln);
            let strangers = format!("[git.example]:2222 {}", hosts.split_once(' ').expect("a host").1);
            for (name, key, hosts) in [
                ("right", &key, &hosts),
                ("other-key", &other, &hosts),
                ("other-host", &key, &strangers),
            ] {
                let data = json!({"ssh_private_key": key, "known_hosts": hosts});
                api.put_secret(name, "git", &data).await;
            }
            let mut request = json!({"source": {"type": "git", "url": repository.ssh_url()}, "push": false});
            for (secret, words) in [
                (None, "`ssh_private_key` and `known_hosts`"),
                (Some("other-key"), "refuses the login in `source.credentials`"),
                (Some("other-host"), "is not the one in the secret's `known_hosts`"),
            ] {
                request["source"]["credentials"] = json!(secret);
                fails(api, &request, "source_failed", &[words]).await;
            }
            request["source"]["credentials"] = json!("right");
            let (build, _) = succeeds(api, &request).await;
            assert_eq!(text(&build, "/commit"), commit);
            let secret = key.lines().nth(1).expect("a key has lines");
            shows_none_of(&replica, text(&build, "/id"), &[secret]).await;
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dockerfile_mounts() {
    run(
        1,
        |_| {},
        async |kiln: &Installation| {
            let replica = kiln.start().await;
            let api = &replica.api;
            let (key, public) = ssh_key(kiln);
            let ssh = json!({"ssh_private_key": key, "known_hosts": file("KILN_TEST_GIT_KNOWN_HOSTS")});
            api.put_secret("deploy-key", "git", &ssh).await;
            api.put_secret("npm-token", "build", &json!({"value": "npm-v4lue"}))
                .await;
            api.put_secret("bytes", "build", &json!({"value_base64": "AAECAw=="}))
                .await;
            // Its digest, so that the log has no need of the value itself.
            let dockerfile = format!(
                "FROM {}\n\
             RUN --mount=type=secret,id=NPM_TOKEN sha256sum < /run/secrets/NPM_TOKEN\n\
             RUN --mount=type=secret,id=raw,target=/raw wc -c < /raw > /size && cat /size\n\
             RUN --mount=type=ssh ssh-add -L\n\
             RUN test ! -s /run/secrets/NPM_TOKEN && test ! -s /raw && test -z \"$SSH_AUTH_SOCK\"\n",
                variable("KILN_TEST_GIT_IMAGE")
            );
            for builder in BUILDERS {
                let mut request = inline(&dockerfile, builder);
                request["secrets"] = json!({"NPM_TOKEN": "npm-token", "raw": "bytes"});
                request["ssh"] = json!("deploy-key");
                let (build, log) = succeeds(api, &request).await;
                let public = public.split(' ').nth(1).expect("a key");
                for said in ["7d6b021a71fdad995952c49f1eb0a149", public] {
                    assert!(log.contains(said), "{said} is not in {log}");
                }
                let secret = key.lines().nth(1).expect("a key has lines");
                shows_none_of(&replica, text(&build, "/id"), &["npm-v4lue", secret]).await;

                // The builder's own files are out of reach of the commands that it runs.
                let thief =
                    "FROM busybox\nRUN cat /proc/[0-9]*/root/kiln/credentials/build/secret-0 2>/dev/null | sha256sum\n";
                let mut request = inline(thief, builder);
                request["secrets"] = json!({"NPM_TOKEN": "npm-token"});
                let (_, log) = succeeds(api, &request).await;
                assert!(log.contains("e3b0c44298fc1c149afbf4c8996fb924"), "{log}");

                // One that isn't given is missed by its name.
                let wanting = "FROM busybox\nRUN --mount=type=secret,id=NPM_TOKEN,required=true true\n";
                fails(api, &inline(wanting, builder), "build_failed", &["NPM_TOKEN"]).await;
            }
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_container_has_its_own_and_all_goes_with_the_pod() {
    run(
        1,
        |_| {},
        async |kiln: &Installation| {
            let repository = Repository::private();
            repository.commit(&[("Dockerfile", ENDLESS)]);
            let replica = kiln.start().await;
            let (api, password) = (&replica.api, variable("KILN_TEST_PASSWORD"));
            api.put_secret("forge", "git", &login(&password)).await;
            api.put_secret("hub", "registry", &registry_login("registry-passw0rd"))
                .await;
            api.put_secret("value", "build", &json!({"value": "mounted-v4lue"}))
                .await;
            let request = json!({
                "source": {"type": "git", "url": repository.url, "credentials": "forge"},
                "push": false, "registry_credentials": "hub", "secrets": {"V": "value"},
            });
            let id = api.create(&request).await;
            eventually("the build step runs", DEADLINE, || async {
                api.logs(&id).await.contains("kiln line 1").then_some(())
            })
            .await;
            let build = api.get(&id).await;
            let name = text(&build, "/attempts/0/pod");
            let pod = kiln.pods.get(name).await;
            let shown = serde_json::to_string(&pod).expect("JSON");
            let secrets = [password.as_str(), "registry-passw0rd", "mounted-v4lue"];
            for secret in secrets {
                assert!(!shown.contains(secret), "{secret} is in {shown}");
            }
            shows_none_of(&replica, &id, &secrets).await;
            let secret = kiln.pods.secret(name).await.expect("the pod's Secret");
            let owners = secret.metadata.owner_references.expect("an owner");
            assert_eq!(Some(&owners[0].uid), pod.metadata.uid.as_ref());

            let mounts = |container: &Container| -> Vec<String> {
                let mounts = container.volume_mounts.clone().unwrap_or_default();
                let paths = mounts.into_iter().map(|mount| mount.mount_path);
                paths.filter(|path| path.contains("credentials")).collect()
            };
            let spec = pod.spec.expect("a specification");
            for container in spec.init_containers.expect("init containers") {
                let own: &[&str] = match container.name.as_str() {
                    "source" => &["/kiln/credentials/source"],
                    _ => &[],
                };
                assert_eq!(mounts(&container), own, "{}", container.name);
            }
            let listed = async |folder: &str| kiln.pods.exec(name, "build", &["ls", folder]).await;
            assert_eq!(listed("/kiln/credentials").await, "build\n");
            assert_eq!(listed("/kiln/credentials/build").await, "config.json\nsecret-0\n");

            api.cancel(&id).await;
            api.finished(&id).await;
            kiln.pods.wait_until_none(Some(&id), DEADLINE).await;
            eventually("the Secret goes with its pod", DEADLINE, || async {
                kiln.pods.secret(name).await.is_none().then_some(())
            })
            .await;
        },
    )
    .await;
}
