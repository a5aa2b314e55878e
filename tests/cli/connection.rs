//! Which service is called, as whom; and what is said when that doesn't work.

use std::{fs, os::unix::fs::PermissionsExt as _};

use kiln::domain::project::Scope;
use sqlx::PgPool;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::{service::TestApp, support::Shell};

#[tokio::test]
async fn without_a_token_it_is_said_where_one_goes() {
    let shell = Shell::bare();
    let ran = shell.run(&["list"]).await.expect(4);
    ran.says(&[
        "no token for http://127.0.0.1:8080",
        "export KILN_URL=",
        "config.toml",
        "kiln token create --api",
    ]);
    assert_eq!(ran.out, "");
}

#[sqlx::test]
async fn a_wrong_token_is_told_apart_from_a_weak_one(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let mut shell = Shell::of(&app, Scope::BuildsRead).await;
    shell.run(&["list"]).await.expect(0);
    let weak = shell
        .run(&["build", "https://git.example/app.git", "--no-push", "--detach"])
        .await
        .expect(4);
    weak.says(&["builds:write"]);
    shell.token = Some(format!("kiln_{}", "A".repeat(43)));
    let wrong = shell.run(&["list"]).await.expect(4);
    wrong.says(&["the token is not known", "KILN_TOKEN"]);
    app.stop().await;
}

#[tokio::test]
async fn where_nothing_listens_it_is_asked_whether_it_runs() {
    let port = {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        taken.local_addr().expect("an address").port()
    };
    let mut shell = Shell::bare();
    shell.token = Some("kiln_x".to_owned());
    shell.url = Some(format!("http://127.0.0.1:{port}"));
    for arguments in [
        &["list"][..],
        &["build", "https://git.example/a.git", "--no-push"],
        &["logs", "-f", "019f0000-0000-7000-8000-000000000000"],
    ] {
        let ran = shell.run(arguments).await.expect(5);
        ran.says(&[
            "can't be reached: Connection refused",
            "is `make run`, `kiln dev` or `kiln serve` running?",
        ]);
    }
    shell.url = Some("http://kiln.invalid".to_owned());
    shell.run(&["list"]).await.expect(5).says(&["--url, KILN_URL"]);
}

/// Answers every connection with these bytes.
async fn answer(bytes: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let mut request = [0; 4096];
            // What is asked doesn't matter.
            let _ = connection.read(&mut request).await;
            let _ = connection.write_all(bytes.as_bytes()).await;
        }
    });
    url
}

#[tokio::test]
async fn what_is_not_kiln_gets_no_second_chance_to_see_the_token() {
    let mut shell = Shell::bare();
    shell.token = Some("kiln_x".to_owned());
    shell.url = Some(answer("HTTP/1.1 200 OK\r\ncontent-length: 6\r\nconnection: close\r\n\r\n<html>").await);
    shell.run(&["list"]).await.expect(5).says(&["not as Kiln does"]);
    shell.url = Some(answer("HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await);
    shell.run(&["list"]).await.expect(5).says(&["502 Bad Gateway"]);
    shell.url = Some(
        answer(
            "HTTP/1.1 302 Found\r\nlocation: http://login.example/\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        )
        .await,
    );
    shell
        .run(&["list"])
        .await
        .expect(5)
        .says(&["redirects to http://login.example/"]);
}

#[sqlx::test]
async fn flags_win_over_variables_and_those_over_the_file(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let mut shell = Shell::of(&app, Scope::BuildsRead).await;
    let (url, token) = (shell.url.take().expect("set"), shell.token.take().expect("set"));
    let file = |url: &str, token: &str| shell_file(&shell, &format!("url = \"{url}\"\ntoken = \"{token}\"\n"), 0o600);

    file(&url, &token);
    let ran = shell.run(&["list"]).await.expect(0);
    assert_eq!(ran.error, "kiln: no builds\n");
    file("http://kiln.invalid", "kiln_x");
    let with = |variables: [(&str, &str); 2], arguments: &[&str]| {
        let mut command = shell.command(arguments);
        command.envs(variables);
        command
    };
    let good = [("KILN_URL", url.as_str()), ("KILN_TOKEN", token.as_str())];
    super::support::finish(&mut with(good, &["list"])).await.expect(0);
    // Empty is as good as not set.
    let empty = [("KILN_URL", ""), ("KILN_TOKEN", "")];
    super::support::finish(&mut with(empty, &["list"]))
        .await
        .expect(5)
        .says(&["kiln.invalid"]);
    let bad = [("KILN_URL", "http://other.invalid"), ("KILN_TOKEN", "kiln_y")];
    super::support::finish(&mut with(bad, &["list"]))
        .await
        .expect(5)
        .says(&["other.invalid"]);
    super::support::finish(&mut with(bad, &["list", "--url", &url, "--token", &token]))
        .await
        .expect(0);
    shell.write("token", &format!("{token}\n"));
    super::support::finish(&mut with(bad, &["list", "--url", &url, "--token-file", "token"]))
        .await
        .expect(0);
    app.stop().await;
}

fn shell_file(shell: &Shell, text: &str, mode: u32) {
    shell.write(".config/kiln/config.toml", text);
    let path = shell.folder().join(".config/kiln/config.toml");
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("set");
}

#[sqlx::test]
async fn a_token_that_others_can_read_is_warned_of_and_a_bad_file_is_an_error(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let mut shell = Shell::of(&app, Scope::BuildsRead).await;
    let token = shell.token.take().expect("set");
    shell_file(&shell, &format!("token = \"{token}\"\n"), 0o644);
    shell
        .run(&["list"])
        .await
        .expect(0)
        .says(&["others can read the token", "chmod 600"]);
    // The token in a broken line isn't repeated.
    shell_file(&shell, "tokens = \"kiln_secret\"\n", 0o600);
    let ran = shell.run(&["list"]).await.expect(2);
    ran.says(&["config.toml, line 1", "known keys: url, token, project"]);
    assert!(!ran.error.contains("kiln_secret"), "{ran:?}");
    app.stop().await;
}
