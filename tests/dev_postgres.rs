//! The private Postgres of `kiln dev`, with the programs that the machine has.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::{Duration, Instant},
};

use kiln::app::postgres::{DevPostgres, DevPostgresError};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sqlx::{Connection, PgConnection, Row};
use tempfile::TempDir;

/// A folder that the user `postgres` may enter, whatever the umask.
fn folder() -> TempDir {
    folder_with_mode(0o755)
}

fn folder_with_mode(mode: u32) -> TempDir {
    let folder = tempfile::tempdir().expect("temporary folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).expect("mode set");
    folder
}

async fn connect(postgres: &DevPostgres) -> PgConnection {
    PgConnection::connect(postgres.url()).await.expect("connects")
}

fn server_pid(folder: &Path) -> Option<Pid> {
    let text = fs::read_to_string(folder.join("postgres/data/postmaster.pid")).ok()?;
    Some(Pid::from_raw(text.lines().next()?.parse().ok()?))
}

fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::yield_now();
    }
}

fn is_gone(pid: Pid) -> bool {
    // A zombie is gone too; its parent just hasn't looked.
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

#[tokio::test]
async fn data_outlive_the_server() {
    let folder = folder();
    let postgres = DevPostgres::start(folder.path()).await.expect("starts");
    let mut connection = connect(&postgres).await;
    sqlx::raw_sql("CREATE TABLE kept (n int); INSERT INTO kept VALUES (42)")
        .execute(&mut connection)
        .await
        .expect("writes");
    let pid = server_pid(folder.path()).expect("runs");
    // The connection stays open: a fast shutdown doesn't wait for clients.
    postgres.stop().await;
    assert!(is_gone(pid), "nothing is left of the server");

    let postgres = DevPostgres::start(folder.path()).await.expect("starts again");
    let row = sqlx::query("SELECT n FROM kept")
        .fetch_one(&mut connect(&postgres).await)
        .await
        .expect("reads");
    assert_eq!(row.get::<i32, _>("n"), 42);
    postgres.stop().await;
}

#[tokio::test]
async fn a_second_one_on_the_same_folder_is_told_who_has_it() {
    let folder = folder();
    let postgres = DevPostgres::start(folder.path()).await.expect("starts");
    let error = DevPostgres::start(folder.path())
        .await
        .expect_err("the folder is taken");
    assert!(matches!(error, DevPostgresError::InUse { .. }), "{error}");
    assert!(
        error.to_string().contains(&format!("(process {})", std::process::id())),
        "{error}"
    );
    connect(&postgres)
        .await
        .ping()
        .await
        .expect("the first one is unharmed");
    postgres.stop().await;
}

#[tokio::test]
async fn a_killed_server_recovers() {
    let folder = folder();
    let mut postgres = DevPostgres::start(folder.path()).await.expect("starts");
    kill(server_pid(folder.path()).expect("runs"), Signal::SIGKILL).expect("killed");
    postgres.ended().await.expect("its end is noticed");
    postgres.stop().await;
    assert!(server_pid(folder.path()).is_some(), "it had no time to clean up");

    let postgres = DevPostgres::start(folder.path()).await.expect("recovers");
    connect(&postgres).await.ping().await.expect("answers");
    postgres.stop().await;
}

#[tokio::test]
async fn a_number_in_use_by_another_process_does_not_keep_it_from_starting() {
    let folder = folder();
    DevPostgres::start(folder.path()).await.expect("starts").stop().await;
    let file = folder.path().join("postgres/data/postmaster.pid");
    let text = format!(
        "{}\n{}\n0\n5432\n\n\n0 0\nready\n",
        std::process::id(),
        folder.path().display()
    );
    fs::write(&file, text).expect("written");

    let postgres = DevPostgres::start(folder.path()).await.expect("starts");
    postgres.stop().await;
}

#[tokio::test]
async fn a_server_that_was_left_behind_is_replaced() {
    let folder = folder();
    let postgres = DevPostgres::start(folder.path()).await.expect("starts");
    let left = server_pid(folder.path()).expect("runs");
    // What a killed `kiln dev` leaves: a server, and a lock that nobody holds.
    let (kept, taken_over) = (postgres, folder.path().join("lock"));
    fs::remove_file(&taken_over).expect("removed");

    let postgres = DevPostgres::start(folder.path()).await.expect("takes over");
    assert_ne!(server_pid(folder.path()), Some(left));
    connect(&postgres).await.ping().await.expect("answers");
    kept.stop().await;
    postgres.stop().await;
}

#[tokio::test]
async fn a_dropped_one_ends_by_itself() {
    let folder = folder();
    let postgres = DevPostgres::start(folder.path()).await.expect("starts");
    let pid = server_pid(folder.path()).expect("runs");
    drop(postgres);
    eventually("the server ends", || is_gone(pid));
}

#[tokio::test]
async fn a_failed_start_says_why_and_leaves_nothing() {
    let folder = folder();
    DevPostgres::start(folder.path()).await.expect("starts").stop().await;
    fs::write(
        folder.path().join("postgres/data/postgresql.conf"),
        "no_such_setting = 1\n",
    )
    .expect("written");
    let error = DevPostgres::start(folder.path())
        .await
        .expect_err("the configuration is bad");
    assert!(error.to_string().contains("no_such_setting"), "{error}");
}

#[tokio::test]
async fn an_interrupted_initialisation_is_done_again() {
    let folder = folder();
    fs::create_dir_all(folder.path().join("postgres/data.new/base")).expect("made");
    let postgres = DevPostgres::start(folder.path()).await.expect("starts");
    postgres.stop().await;
}

#[tokio::test]
async fn paths_that_a_socket_can_not_have_are_refused() {
    let folder = folder();
    let deep = folder.path().join("d".repeat(100));
    let error = DevPostgres::start(&deep).await.expect_err("too long");
    assert!(matches!(error, DevPostgresError::PathTooLong { .. }), "{error}");
}

#[tokio::test]
async fn odd_characters_in_the_path_do_no_harm() {
    let folder = folder();
    let odd = folder.path().join("a b,c'd\"e&f%g");
    let postgres = DevPostgres::start(&odd).await.expect("starts");
    connect(&postgres).await.ping().await.expect("answers");
    postgres.stop().await;
}

#[tokio::test]
async fn root_is_told_which_folder_is_closed() {
    let folder = folder_with_mode(0o700);
    let result = DevPostgres::start(folder.path()).await;
    if nix::unistd::geteuid().is_root() {
        let error = result.expect_err("only root can enter");
        assert!(
            error.to_string().contains(&folder.path().display().to_string()),
            "{error}"
        );
    } else {
        result.expect("everything is one's own").stop().await;
    }
}
