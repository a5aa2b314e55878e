//! Commands that need a database, where there is none.

use kiln::domain::project::Scope;
use sqlx::PgPool;

use super::{
    service::TestApp,
    support::{Ran, Shell, finish},
};

const COMMANDS: [&[&str]; 4] = [
    &["token", "create"],
    &["migrate"],
    &["serve", "--listen", "127.0.0.1:0"],
    &["serve", "--listen", "127.0.0.1:0", "--migrate"],
];

/// Runs a command where no server listens at the usual place.
async fn run(shell: &Shell, arguments: &[&str], url: Option<&str>) -> Ran {
    let mut command = shell.command(arguments);
    command.env("PGHOST", shell.folder());
    command.envs(url.map(|url| ("KILN_DATABASE_URL", url)));
    finish(&mut command).await
}

#[tokio::test]
async fn without_one_it_is_said_at_once_how_to_name_it() {
    let shell = Shell::bare();
    for arguments in COMMANDS {
        let ran = run(&shell, arguments, None).await.expect(2);
        ran.says(&[
            "no database is set",
            "KILN_DATABASE_URL",
            "--database-url",
            "`database.url`",
            "postgres://kiln:secret@db/kiln",
        ]);
        assert_eq!(ran.error.contains("kiln token create --api"), arguments[0] == "token");
        assert_eq!(ran.out, "");
    }
}

#[tokio::test]
async fn one_that_is_away_is_told_from_one_that_was_never_named() {
    let shell = Shell::bare();
    let port = {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        taken.local_addr().expect("an address").port()
    };
    let url = format!("postgres://kiln:hidden@127.0.0.1:{port}/kiln");
    for arguments in [COMMANDS[0], COMMANDS[1], COMMANDS[3]] {
        let ran = run(&shell, arguments, Some(&url)).await.expect(2);
        ran.says(&["the database can't be used", "Connection refused", "KILN_DATABASE_URL"]);
        assert!(!ran.error.contains("hidden"), "{ran:?}");
    }
    let wrong = run(&shell, COMMANDS[1], Some("db.example/kiln")).await.expect(2);
    wrong.says(&["KILN_DATABASE_URL", "not the URL of a Postgres database"]);
}

#[sqlx::test]
async fn one_that_is_there_is_used(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let shell = Shell::of(&app, Scope::BuildsRead).await;
    let named: String = sqlx::query_scalar("SELECT current_database()::text")
        .fetch_one(&pool)
        .await
        .expect("a name");
    let base = std::env::var("DATABASE_URL").expect("set for the tests");
    let mut url = url::Url::parse(&base).expect("a URL");
    url.set_path(&named);
    let made = run(
        &shell,
        &["token", "create", "--scope", "builds:read"],
        Some(url.as_str()),
    )
    .await
    .expect(0);
    assert!(made.out.starts_with("kiln_"), "{made:?}");
    run(&shell, &["migrate"], Some(url.as_str())).await.expect(0);
    app.stop().await;
}
