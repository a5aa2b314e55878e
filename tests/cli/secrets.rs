//! `kiln secret`: values come from files and pipes, and never come back.

use std::process::Stdio;

use kiln::domain::project::Scope;
use sqlx::PgPool;
use tokio::io::AsyncWriteExt as _;

use super::{
    service::{TestApp, soon},
    support::{Ran, Shell},
};

async fn piped(shell: &Shell, arguments: &[&str], input: &[u8]) -> Ran {
    let mut child = shell.command(arguments).stdin(Stdio::piped()).spawn().expect("starts");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input).await.expect("taken");
    drop(stdin);
    let output = soon("the end of the client", child.wait_with_output())
        .await
        .expect("waited for");
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).expect("UTF-8"),
        error: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

#[sqlx::test]
async fn secrets_are_set_listed_and_deleted(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let shell = Shell::of(&app, Scope::ProjectAdmin).await;
    let ran = piped(&shell, &["secret", "set", "npm"], b"hunter2\n").await.expect(0);
    ran.says(&["secret npm is stored in project default"]);
    shell.write("password", "hunter3\n");
    let registry = [
        "secret",
        "set",
        "push",
        "--kind",
        "registry",
        "--registry",
        "registry.example",
        "--username",
        "me",
        "--from",
        "password",
        "--json",
    ];
    let ran = shell.run(&registry).await.expect(0);
    assert_eq!(ran.json()["kind"], "registry");
    let list = shell.run(&["secret", "list"]).await.expect(0);
    let lines: Vec<_> = list
        .out
        .lines()
        .map(|line| line.split_whitespace().take(3).collect::<Vec<_>>())
        .collect();
    assert_eq!(
        lines[1..],
        [["npm", "build", "-"], ["push", "registry", "registry.example"]]
    );
    let all = format!("{}{}", shell.run(&["secret", "list", "--json"]).await.out, list.out);
    assert!(!all.contains("hunter"), "{all}");
    // A build may name it now, and only it.
    let build = |name: &'static str| {
        let shell = &shell;
        async move {
            shell
                .run(&[
                    "build",
                    "https://git.example/a.git",
                    "--no-push",
                    "-d",
                    "--secret",
                    name,
                ])
                .await
        }
    };
    build("token=npm").await.expect(0);
    build("token=other").await.expect(2).says(&["--secret token: project"]);
    shell.run(&["secret", "delete", "npm"]).await.expect(0);
    shell.run(&["secret", "delete", "npm"]).await.expect(6);
    app.stop().await;
}

#[sqlx::test]
async fn what_is_wrong_with_a_secret_is_said(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let shell = Shell::of(&app, Scope::ProjectAdmin).await;
    shell
        .run(&["secret", "set", "x", "--from", "nowhere"])
        .await
        .expect(2)
        .says(&["can't read nowhere"]);
    shell
        .run(&["secret", "set", "x", "--kind", "registry"])
        .await
        .expect(2)
        .says(&["--username"]);
    piped(&shell, &["secret", "set", "Bad Name"], b"")
        .await
        .expect(2)
        .says(&["  the NAME: ", "  --from: "]);
    let weak = Shell::of(&app, Scope::BuildsWrite).await;
    piped(&weak, &["secret", "set", "x"], b"y")
        .await
        .expect(4)
        .says(&["project:admin"]);
    app.stop().await;
}
