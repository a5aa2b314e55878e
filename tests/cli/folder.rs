//! Folders: packed, sent, and built from.

use std::sync::Arc;

use kiln::{
    domain::project::Scope,
    http::{UploadConfig, Uploads},
};
use reqwest::StatusCode;
use sqlx::PgPool;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
};

use super::{
    service::{Answer, TestApp, soon},
    support::Shell,
    wire::address,
};

fn app_folder(shell: &Shell) {
    shell.write("app/Dockerfile", "FROM scratch\nCOPY . /\n");
    shell.write("app/.dockerignore", "*.log\n");
    shell.write("app/src/main.c", "int main;\n");
    shell.write("app/noise.log", &"x".repeat(100_000));
}

#[sqlx::test]
async fn a_folder_is_sent_without_what_its_ignore_file_names(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let shell = Shell::of(&app, Scope::BuildsWrite).await;
    app_folder(&shell);
    let ran = shell
        .run(&["build", "app", "--no-push", "--detach", "--json"])
        .await
        .expect(0);
    ran.says(&["kiln: sent 3 files, 38 B"]);
    let build = ran.json();
    let source = &build["spec"]["source"];
    assert_eq!(
        (source["type"].as_str(), build["spec"]["dockerfile"].as_str()),
        (Some("upload"), Some("Dockerfile"))
    );
    let id = source["id"].as_str().expect("an id");
    let caller = app.bearer(shell.token.as_deref().expect("set"));
    let upload = Answer::of(caller.get(&format!("/v1/uploads/{id}"))).await.json();
    assert!(upload["bytes"].as_u64().expect("a number") < 2000, "{upload}");
    let ran = shell.run(&["list"]).await.expect(0);
    assert!(ran.out.contains("  app (folder)  "), "{ran:?}");
    app.stop().await;
}

#[sqlx::test]
async fn what_can_be_known_before_is_said_before_anything_is_sent(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let shell = Shell::of(&app, Scope::BuildsWrite).await;
    app_folder(&shell);
    shell
        .run(&["build", "app"])
        .await
        .expect(2)
        .says(&["  -t, --tag: required", "`--no-push`"]);
    let link = |target: &str, path: &str| {
        std::os::unix::fs::symlink(target, shell.folder().join("app").join(path)).expect("linked");
    };
    link("/etc", "etc");
    link("../../x", "src/x");
    link("main.c", "src/same.c");
    let ran = shell
        .run(&["build", "app", "--memory", "4GB", "-t", "App:1"])
        .await
        .expect(2);
    ran.says(&[
        "  --memory 4GB: ",
        "  --tag App:1: ",
        "symbolic links that lead out of the folder",
        "\n    etc -> /etc\n    src/x -> ../../x\n",
    ]);
    let uploads: i64 = sqlx::query_scalar("SELECT count(*) FROM uploads")
        .fetch_one(&pool)
        .await
        .expect("reads");
    assert_eq!(uploads, 0);
    app.stop().await;
}

#[sqlx::test]
async fn a_dockerfile_may_be_outside_of_the_folder(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let shell = Shell::of(&app, Scope::BuildsWrite).await;
    app_folder(&shell);
    shell.write("other/x.Dockerfile", "FROM scratch\n");
    let ran = shell
        .run(&["build", "app", "-f", "other/x.Dockerfile", "--no-push", "-d", "--json"])
        .await
        .expect(0);
    let spec = ran.json()["spec"].clone();
    assert_eq!(
        (spec["source"]["subdir"].as_str(), spec["dockerfile"].as_str()),
        (Some("context"), Some("/Dockerfile"))
    );
    app.stop().await;
}

#[sqlx::test]
async fn what_the_service_does_not_take_is_said_before_a_build_is_made(pool: PgPool) {
    let app = TestApp::start_with(&pool, |app| {
        let config = UploadConfig {
            max_entries: 2,
            ..UploadConfig::default()
        };
        app.uploads = Arc::new(Uploads::new(config, true));
    })
    .await;
    let shell = Shell::of(&app, Scope::BuildsWrite).await;
    app_folder(&shell);
    let ran = shell.run(&["build", "app", "--no-push"]).await;
    assert!([2, 6].contains(&ran.code) && ran.error.starts_with("kiln: "), "{ran:?}");
    let builds: i64 = sqlx::query_scalar("SELECT count(*) FROM builds")
        .fetch_one(&pool)
        .await
        .expect("reads");
    assert_eq!(builds, 0);
    app.stop().await;
}

#[sqlx::test]
async fn who_finds_no_turn_to_send_waits_for_one(pool: PgPool) {
    let app = TestApp::start_with(&pool, |app| {
        let config = UploadConfig {
            max_concurrent: 1,
            wait_seconds: 1,
            ..UploadConfig::default()
        };
        app.uploads = Arc::new(Uploads::new(config, true));
    })
    .await;
    let shell = Shell::of(&app, Scope::BuildsWrite).await;
    app_folder(&shell);
    // Somebody has the only turn, and sends nothing.
    let mut other = TcpStream::connect(address(&app)).await.expect("connects");
    let head = format!(
        "POST /v1/uploads HTTP/1.1\r\nHost: kiln\r\nAuthorization: Bearer {}\r\nContent-Length: 100000\r\n\r\nstart",
        shell.token.as_deref().expect("set")
    );
    other.write_all(head.as_bytes()).await.expect("sent");
    let caller = app.bearer(shell.token.as_deref().expect("set"));
    let taken = async {
        while Answer::of(caller.post("/v1/uploads").body("x")).await.status != StatusCode::SERVICE_UNAVAILABLE {}
    };
    soon("the only turn to be taken", taken).await;
    let mut client = shell
        .command(&["build", "app", "--no-push", "--detach"])
        .spawn()
        .expect("it runs");
    let mut said = BufReader::new(client.stderr.take().expect("piped")).lines();
    let waiting = async {
        while let Some(line) = said.next_line().await.expect("UTF-8") {
            if line.contains("waiting for a turn") {
                return;
            }
        }
        panic!("it did not wait");
    };
    soon("the client to wait", waiting).await;
    drop(other);
    let status = soon("the end of the client", client.wait()).await.expect("it ran");
    assert_eq!(status.code(), Some(0));
    app.stop().await;
}
