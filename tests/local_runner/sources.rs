//! Every kind of source, from a request to a finished build.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use axum::{Router, routing::get};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use sqlx::PgPool;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    git::{BINARY, GitServer},
    service::Kiln,
};

/// Shows in the log what the context holds.
const DOCKERFILE: &str =
    "FROM scratch\nCOPY . /\nRUN [\"/p\", \"show\", \"/hello\"]\nRUN [\"/p\", \"list\", \"/kept\"]\n";

/// What `DOCKERFILE` shows of `tree`.
const SHOWN: [&str; 3] = ["hello from the context", "entry one", "entry two"];

/// A source with a context in one folder and Dockerfiles in another.
fn tree() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |path: &str, content: &[u8]| {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, content).expect("written");
    };
    write("docker/Dockerfile", DOCKERFILE.as_bytes());
    let template =
        b"FROM {{ base }}\nCOPY . /\n{% for path in paths %}RUN [\"/p\", \"show\", \"{{ path }}\"]\n{% endfor %}";
    write("docker/templated", template);
    write("app/hello", b"hello from the context\n");
    write("app/.dockerignore", b"ignored\nkept/*.log\n");
    write("app/ignored/file", b"x");
    write("app/kept/a.log", b"x");
    write("app/kept/one", b"first\n");
    write("app/kept/two", b"second\n");
    write("app/p", &BINARY);
    let program = folder.path().join("app/p");
    fs::set_permissions(program, fs::Permissions::from_mode(0o755)).expect("made executable");
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

fn request(source: &Value) -> Value {
    json!({"source": source, "dockerfile": "/docker/Dockerfile", "push": false, "builder": "buildah"})
}

/// Builds what must succeed, and looks into its log.
async fn shows(kiln: &Kiln, request: &Value, words: &[&str]) -> Value {
    let (build, log) = kiln.build(request).await;
    assert_eq!(build["state"], "succeeded", "{build:#}\n{log}");
    for words in words {
        assert!(log.lines().any(|line| line == *words), "`{words}` is not in:\n{log}");
    }
    for hidden in ["entry a.log", "entry ignored"] {
        assert!(!log.contains(hidden), "{log}");
    }
    build
}

/// Builds what must fail with this code and these words.
async fn fails(kiln: &Kiln, request: &Value, code: &str, words: &[&str]) {
    let (build, log) = kiln.build(request).await;
    assert_eq!(build["failure"]["code"], code, "{build:#}\n{log}");
    let message = build["failure"]["message"].as_str().expect("a message");
    for words in words {
        assert!(message.contains(words), "`{words}` is not in: {message}");
    }
}

#[sqlx::test]
async fn uploads(pool: PgPool) {
    let kiln = Kiln::start(&pool).await;
    let tree = tree();
    for compressed in [true, false] {
        let id = kiln.upload(packed(tree.path(), compressed)).await;
        let source = json!({"type": "upload", "id": id, "subdir": "app"});
        shows(&kiln, &request(&source), &SHOWN).await;
    }
    let id = kiln.upload(packed(tree.path(), true)).await;
    let mut wrong = request(&json!({"type": "upload", "id": id, "subdir": "nowhere"}));
    fails(&kiln, &wrong, "source_failed", &["`source.subdir`", "nowhere"]).await;
    wrong["source"]["subdir"] = json!("app");
    wrong["dockerfile"] = json!("Dockerfile");
    fails(&kiln, &wrong, "dockerfile_invalid", &["`dockerfile`", "`Dockerfile`"]).await;
    kiln.stop().await;
}

#[sqlx::test]
async fn templates(pool: PgPool) {
    let kiln = Kiln::start(&pool).await;
    let id = kiln.upload(packed(tree().path(), true)).await;
    let mut request = request(&json!({"type": "upload", "id": id, "subdir": "app"}));
    request["dockerfile"] = json!("/docker/templated");
    request["template"] = json!({"base": "scratch", "paths": ["/hello", "/kept/one", "/kept/two"]});
    let shown = ["hello from the context", "first", "second"];
    shows(&kiln, &request, &shown).await;
    request["template"] = json!({"base": "scratch"});
    fails(&kiln, &request, "dockerfile_invalid", &["line 3", "not defined"]).await;

    // The same without a source to fetch.
    let dockerfile = "FROM scratch\nCOPY {{ file }} /\n";
    let source = json!({"type": "inline", "files": {"Dockerfile": dockerfile, "a": "x"}});
    let mut request = json!({"source": source, "template": {"file": "a"}, "push": false, "builder": "buildah"});
    shows(&kiln, &request, &[]).await;
    request["template"] = json!({"file": "gone"});
    fails(&kiln, &request, "build_failed", &["gone"]).await;
    kiln.stop().await;
}

#[sqlx::test]
async fn archives(pool: PgPool) {
    let archive = packed(tree().path(), true);
    let digest = hex::encode(Sha256::digest(&archive));
    let pages = Router::new()
        .route("/app.tar.gz", get(async move || archive.clone()))
        .route("/page", get(async || "<html>Log in</html>"));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let web = format!("http://{}", listener.local_addr().expect("an address"));
    let _server = AbortOnDropHandle::new(tokio::spawn(async move {
        axum::serve(listener, pages).await.expect("serves");
    }));

    let kiln = Kiln::start(&pool).await;
    let from = |path: &str, digest: &str| {
        request(&json!({"type": "archive", "url": format!("{web}/{path}"), "sha256": digest, "subdir": "app"}))
    };
    shows(&kiln, &from("app.tar.gz", &digest), &SHOWN).await;
    let page = hex::encode(Sha256::digest(b"<html>Log in</html>"));
    for (path, digest, words) in [
        ("gone.tar.gz", &digest, "HTTP 404"),
        ("app.tar.gz", &page, "has the SHA-256"),
        ("page", &page, "it is a web page"),
    ] {
        fails(&kiln, &from(path, digest), "source_failed", &["`source.url`", words]).await;
    }
    kiln.stop().await;
}

#[sqlx::test]
async fn git_with_submodules(pool: PgPool) {
    let server = GitServer::empty().await;
    server.add(
        "library.git",
        &[("hello", "hello from the submodule\n"), ("kept/one", "")],
        None,
    );
    let commit = server.add(
        "app.git",
        &[("docker/Dockerfile", DOCKERFILE), ("README", "")],
        Some(("services/web", "library.git")),
    );
    let kiln = Kiln::start(&pool).await;
    let mut request = request(&json!({
        "type": "git", "url": server.url("app.git"), "ref": "main", "subdir": "services/web", "submodules": true,
    }));
    let build = shows(&kiln, &request, &["hello from the submodule", "entry one"]).await;
    assert_eq!(build["commit"], commit);
    request["source"]["commit"] = json!(commit);
    shows(&kiln, &request, &["hello from the submodule"]).await;

    // Without them the folder is there, and empty.
    request["source"]["submodules"] = json!(false);
    fails(&kiln, &request, "build_failed", &["/p"]).await;
    kiln.stop().await;
}
