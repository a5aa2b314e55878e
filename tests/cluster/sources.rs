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
