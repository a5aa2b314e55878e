//! Archives that come slowly or not at all, over sockets of their own.

use std::sync::Arc;

use kiln::{
    domain::project::Scope,
    http::{UploadConfig, Uploads},
};
use reqwest::StatusCode;
use sqlx::PgPool;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{count, send, tar};
use crate::api::support::{Answer, Caller, TestApp, soon, token};

async fn app(pool: &PgPool, config: UploadConfig) -> TestApp {
    TestApp::start_with(pool, |app| app.uploads = Arc::new(Uploads::new(config, true))).await
}

/// An upload that says how long it is, sends its first bytes, and then nothing.
async fn begin(app: &TestApp, token: &str) -> TcpStream {
    let address = app.base().strip_prefix("http://").expect("http");
    let mut connection = TcpStream::connect(address).await.expect("connects");
    let request = format!(
        "POST /v1/uploads HTTP/1.1\r\nHost: kiln\r\nAuthorization: Bearer {token}\r\nContent-Length: 100000\r\n\r\nstart"
    );
    connection.write_all(request.as_bytes()).await.expect("sent");
    connection
}

/// Sends archives until the answer is this one.
async fn until(caller: &Caller<'_>, status: StatusCode) -> Answer {
    let tries = async {
        loop {
            let answer = Answer::of(caller.post("/v1/uploads").body(tar(&[("a", b"x")]))).await;
            if answer.status == status {
                return answer;
            }
        }
    };
    soon("another answer", tries).await
}

#[sqlx::test]
async fn one_project_can_not_keep_the_others_waiting(pool: PgPool) {
    let config = UploadConfig {
        wait_seconds: 1,
        ..UploadConfig::default()
    };
    let app = app(&pool, config).await;
    let greedy = app.caller_of("greedy", Scope::BuildsWrite).await;
    let token = token(&pool, "greedy", Scope::BuildsWrite, None).await;
    let mut held = Vec::new();
    for _ in 0..5 {
        held.push(begin(&app, &token).await);
    }
    let busy = until(&greedy, StatusCode::SERVICE_UNAVAILABLE).await;
    busy.problem(503, "uploads_busy");
    assert_eq!(busy.header("retry-after"), "5");
    // While it waits for its own, others are taken at once.
    let modest = app.caller_of("modest", Scope::BuildsWrite).await;
    send(&modest, tar(&[("a", b"x")])).await;
    drop(held);
    until(&greedy, StatusCode::CREATED).await;
    app.stop().await;
}

#[sqlx::test]
async fn who_sends_too_slowly_gives_way(pool: PgPool) {
    let spool = tempfile::tempdir().expect("a folder");
    let config = UploadConfig {
        max_concurrent: 1,
        min_bytes_per_second: 1 << 20,
        grace_seconds: 1,
        spool_dir: Some(spool.path().to_owned()),
        ..UploadConfig::default()
    };
    let app = app(&pool, config).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let token = token(&pool, "default", Scope::BuildsWrite, None).await;
    let mut connection = begin(&app, &token).await;
    let mut answer = String::new();
    soon("the answer and the end", connection.read_to_string(&mut answer))
        .await
        .expect("text");
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("\"code\":\"upload_too_slow\""), "{answer}");
    assert_eq!(std::fs::read_dir(spool.path()).expect("a folder").count(), 0);
    send(&caller, tar(&[("a", b"x")])).await;
    assert_eq!(count(&pool, "SELECT count(*) FROM uploads").await, 1);
    app.stop().await;
}
