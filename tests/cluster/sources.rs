//! Where sources come from: uploads, archives, git with all that it has, Dockerfiles elsewhere and templates.

use std::{fs, net::TcpListener, path::Path, process::Command};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use super::support::{Api, Image, Installation, Repository, run, text, variable};

/// An address at which pods reach this test's servers.
fn reachable() -> String {
    let host = variable("KILN_TEST_HOST_IP");
    let free = TcpListener::bind((host.as_str(), 0)).expect("a port");
    free.local_addr().expect("an address").to_string()
}

/// Builds, and returns the pushed image.
async fn image(api: &Api, request: &Value) -> Image {
    let build = api.build(request).await;
    assert_eq!(
        build["state"],
        "succeeded",
        "{build:#}\n{}",
        api.logs(text(&build, "/id")).await
    );
    Image::pull(text(&build, "/images/0"))
}

/// Builds what must fail, and returns code and message.
async fn failure(api: &Api, request: &Value) -> (String, String) {
    let build = api.build(request).await;
    assert_eq!(build["state"], "failed", "{build:#}");
    assert_eq!(build["attempts"].as_array().map(Vec::len), Some(1), "{build:#}");
    (
        text(&build, "/failure/code").to_owned(),
        text(&build, "/failure/message").to_owned(),
    )
}

/// A source of several megabytes with a context in a folder, and what must not be in the image.
fn tree() -> TempDir {
    let folder = TempDir::new().expect("a folder");
    let write = |path: &str, content: &[u8]| {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, content).expect("writes");
    };
    write(
        "docker/Dockerfile",
        b"FROM busybox\nCOPY . /all/\nRUN ls -A /all > /listing\n",
    );
    write(
        "docker/templated",
        b"FROM {{ base }}\n{% for name in names %}LABEL name.{{ name }}=1\n{% endfor %}COPY hello /hello\n",
    );
    write("app/hello", b"hello from the context\n");
    write("app/.dockerignore", b"ignored\n*.log\n");
    write("app/ignored/file", b"x");
    write("app/a.log", b"x");
    let noise: Vec<u8> = (0..500_000u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    write("app/noise", &noise);
    std::os::unix::fs::symlink("hello", folder.path().join("app/link")).expect("a link");
    folder
}

fn packed(folder: &Path, compressed: bool) -> Vec<u8> {
    let mut tar = Command::new("tar");
    tar.arg("-C")
        .arg(folder)
        .args(compressed.then_some("-z"))
        .args(["-c", "."]);
    let output = tar.output().expect("tar runs");
    assert!(output.status.success());
    output.stdout
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_reach_their_builds() {
    run(
        1,
        |_| {},
        async |kiln: &Installation| {
            let replica = kiln.start().await;
            let api = &replica.api;
            let tree = tree();
            for (compressed, builder) in [(true, "buildkit"), (false, "buildah")] {
                let upload = api.upload(packed(tree.path(), compressed)).await;
                let request = json!({
                    "source": {"type": "upload", "id": upload["id"], "subdir": "app"},
                    "dockerfile": "/docker/Dockerfile",
                    "builder": builder,
                    "images": [kiln.image(&format!("upload-{builder}"))],
                });
                let image = image(api, &request).await;
                assert_eq!(
                    image.file("all/hello").as_deref(),
                    Some("hello from the context\n"),
                    "{builder}"
                );
                let listing = image.file("listing").expect("a listing");
                let listed: Vec<&str> = listing.lines().collect();
                assert_eq!(listed, [".dockerignore", "hello", "link", "noise"], "{builder}");
            }

            // A template, from the same archive once more; and one that doesn't hold together.
            let upload = api.upload(packed(tree.path(), true)).await;
            let mut request = json!({
                "source": {"type": "upload", "id": upload["id"], "subdir": "app"},
                "dockerfile": "/docker/templated",
                "template": {"base": "busybox", "names": ["a", "b"]},
                "images": [kiln.image("templated")],
            });
            let image = image(api, &request).await;
            assert_eq!(image.config["config"]["Labels"]["name.b"], "1");
            request["template"] = json!({"names": []});
            let (code, message) = failure(api, &request).await;
            assert_eq!(code, "dockerfile_invalid", "{message}");
            assert!(
                message.contains("line 1") && message.contains("not defined"),
                "{message}"
            );

            request["template"] = Value::Null;
            request["source"]["subdir"] = json!("nowhere");
            let (code, message) = failure(api, &request).await;
            assert_eq!(code, "source_failed", "{message}");
            assert!(message.contains("`source.subdir`"), "{message}");
        },
    )
    .await;
}

/// A web server for a folder, as pods reach it; ends with the value.
struct FileServer {
    url: String,
    child: std::process::Child,
}

impl FileServer {
    fn start(folder: &Path) -> Self {
        let address = reachable();
        let (host, port) = address.rsplit_once(':').expect("a port");
        let child = Command::new("python3")
            .args(["-m", "http.server", "--bind", host, port, "--directory"])
            .arg(folder)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("python3 runs");
        let url = format!("http://{address}");
        let deadline = std::time::Instant::now() + super::support::DEADLINE;
        while std::net::TcpStream::connect(&address).is_err() {
            assert!(std::time::Instant::now() < deadline, "the web server never listens");
            std::thread::yield_now();
        }
        Self { url, child }
    }
}

impl Drop for FileServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_are_fetched_and_checked() {
    run(1, |_| {}, async |kiln: &Installation| {
        let replica = kiln.start().await;
        let api = &replica.api;
        let web = TempDir::new().expect("a folder");
        let archive = packed(tree().path(), true);
        fs::write(web.path().join("app.tar.gz"), &archive).expect("writes");
        fs::write(web.path().join("page"), "<html>Log in</html>").expect("writes");
        let server = FileServer::start(web.path());
        let digest = hex::encode(Sha256::digest(&archive));
        let request = |path: &str, digest: &str| {
            json!({
                "source": {"type": "archive", "url": format!("{}/{path}", server.url), "sha256": digest, "subdir": "app"},
                "dockerfile": "/docker/Dockerfile",
                "images": [kiln.image("archive")],
            })
        };
        let image = image(api, &request("app.tar.gz", &digest)).await;
        assert_eq!(image.file("all/hello").as_deref(), Some("hello from the context\n"));

        let wrong = hex::encode(Sha256::digest(b"another"));
        let page = hex::encode(Sha256::digest(b"<html>Log in</html>"));
        for (path, digest, words) in [
            ("gone.tar.gz", &digest, "HTTP 404"),
            ("app.tar.gz", &wrong, "has the SHA-256"),
            ("page", &page, "it is a web page"),
        ] {
            let (code, message) = failure(api, &request(path, digest)).await;
            assert_eq!(code, "source_failed", "{message}");
            assert!(message.starts_with("`source.url`") && message.contains(words), "{message}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn git_brings_submodules_and_tags() {
    run(
        1,
        |_| {},
        async |kiln: &Installation| {
            let replica = kiln.start().await;
            let api = &replica.api;
            let library = Repository::public();
            let pinned = library.commit(&[("library.txt", "from the submodule\n")]);
            let app = Repository::public();
            let name = library.url.rsplit('/').next().expect("a name").to_owned();
            app.commit(&[
                (
                    "services/web/Dockerfile",
                    "FROM busybox\nCOPY vendor/library.txt /library.txt\n",
                ),
                (
                    ".gitmodules",
                    &format!("[submodule \"lib\"]\n\tpath = services/web/vendor\n\turl = ../{name}\n"),
                ),
            ]);
            app.git(&[
                "update-index",
                "--add",
                "--cacheinfo",
                &format!("160000,{pinned},services/web/vendor"),
            ]);
            app.git(&["commit", "-q", "-m", "Add the submodule"]);
            app.git(&["tag", "-a", "-m", "annotated", "v1"]);
            app.git(&["push", "-q", "origin", "HEAD:main", "v1"]);
            let tagged = app.git(&["rev-parse", "HEAD"]);
            app.commit(&[("services/web/Dockerfile", "FROM busybox\nRUN exit 7\n")]);
            let request = json!({
                "source": {"type": "git", "url": app.url, "ref": "v1", "subdir": "services/web", "submodules": true},
                "images": [kiln.image("submodule")],
            });
            let build = api.build(&request).await;
            assert_eq!(
                build["state"],
                "succeeded",
                "{build:#}\n{}",
                api.logs(text(&build, "/id")).await
            );
            assert_eq!(text(&build, "/commit"), tagged);
            let image = Image::pull(text(&build, "/images/0"));
            assert_eq!(image.file("library.txt").as_deref(), Some("from the submodule\n"));
        },
    )
    .await;
}

/// Bytes that tell one large file from another.
fn large(seed: u8) -> Vec<u8> {
    (0..400_000u32).map(|n| (n % 251) as u8 ^ seed).collect()
}

/// Commits a file that git LFS keeps, and where the image takes it from. Returns the commit.
fn keep_large(repository: &Repository, content: &[u8]) -> String {
    repository.git(&["lfs", "install", "--local"]);
    fs::write(repository.folder().join("data.bin"), content).expect("a file");
    repository.commit(&[
        (".gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n"),
        (
            "Dockerfile",
            "FROM busybox\nCOPY data.bin /copied/\nRUN sha256sum /copied/* >/sums\n",
        ),
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn git_brings_large_files() {
    run(
        1,
        |_| {},
        async |kiln: &Installation| {
            let replica = kiln.start().await;
            let api = &replica.api;
            let login = json!({"username": variable("KILN_TEST_USER"), "password": variable("KILN_TEST_PASSWORD")});
            api.put_secret("forge", "git", &login).await;
            let (public, private) = (Repository::public(), Repository::private());
            for (repository, credentials, seed) in [(&public, Value::Null, 1), (&private, json!("forge"), 2)] {
                let commit = keep_large(repository, &large(seed));
                let pointer = repository.git(&["show", "HEAD:data.bin"]);
                assert!(
                    pointer.starts_with("version https://git-lfs"),
                    "the repository holds the file itself"
                );
                let request = json!({
                    "source": {"type": "git", "url": repository.url, "credentials": credentials},
                    "images": [kiln.image(&format!("lfs-{seed}"))],
                });
                let image = image(api, &request).await;
                let sum = hex::encode(Sha256::digest(large(seed)));
                assert_eq!(
                    image.file("sums"),
                    Some(format!("{sum}  /copied/data.bin\n")),
                    "{commit}"
                );
            }
            // A submodule's are brought from where the submodule is.
            let name = public.url.rsplit('/').next().expect("a name");
            let app = Repository::public();
            app.git(&[
                "-c",
                "protocol.file.allow=always",
                "submodule",
                "--quiet",
                "add",
                &public.url,
                "library",
            ]);
            app.git(&[
                "config",
                "-f",
                ".gitmodules",
                "submodule.library.url",
                &format!("../{name}"),
            ]);
            app.commit(&[(
                "Dockerfile",
                "FROM busybox\nCOPY library/data.bin /data.bin\nRUN sha256sum </data.bin >/sums\n",
            )]);
            let request = json!({
                "source": {"type": "git", "url": app.url, "submodules": true}, "images": [kiln.image("lfs-module")],
            });
            let image = image(api, &request).await;
            assert_eq!(
                image.file("sums"),
                Some(format!("{}  -\n", hex::encode(Sha256::digest(large(1)))))
            );

            // What was never pushed can't be brought; a pointer is not taken for the file.
            let forgetful = Repository::public();
            forgetful.git(&["config", "lfs.allowincompletepush", "true"]);
            let pointer =
                "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 5\n".replace("{}", &"0".repeat(64));
            forgetful.commit(&[
                (".gitattributes", "*.bin filter=lfs\n"),
                ("data.bin", &pointer),
                ("Dockerfile", "FROM busybox\nCOPY data.bin /\n"),
            ]);
            let request = json!({"source": {"type": "git", "url": forgetful.url}, "push": false});
            let (code, message) = failure(api, &request).await;
            assert_eq!(code, "source_failed", "{message}");
            assert!(message.contains("git lfs push --all"), "{message}");
            // Nor without the login that its server wants.
            let request = json!({"source": {"type": "git", "url": private.url}, "push": false});
            let (code, message) = failure(api, &request).await;
            assert_eq!(code, "source_failed", "{message}");
            assert!(message.contains("wants a login"), "{message}");
        },
    )
    .await;
}
