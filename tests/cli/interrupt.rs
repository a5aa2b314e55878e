//! Ctrl-C, at a terminal and in a pipe.

use kiln::domain::{event::StepName, project::Scope};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sqlx::PgPool;

use super::{
    service::TestApp,
    support::Shell,
    terminal::Terminal,
    wire::{Wire, address},
    worker::Hand,
};

const BUILD: [&str; 3] = ["build", "https://git.example/app.git", "--no-push"];
const QUESTION: &str = "[c]ancel the build, [d]etach and let it go on, or [Enter] to keep following?";

async fn state(pool: &PgPool) -> String {
    let query = "SELECT state::text FROM builds ORDER BY id DESC LIMIT 1";
    sqlx::query_scalar(query).fetch_one(pool).await.expect("a build")
}

#[sqlx::test]
async fn at_a_terminal_one_is_asked_and_can_cancel(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let shell = Shell::of(&app, Scope::BuildsWrite).await;
    let mut terminal = Terminal::start(&shell, &BUILD);
    terminal.until("queued").await;
    terminal.types("\u{3}");
    terminal.until(QUESTION).await;
    // A slip: it goes on.
    terminal.types("\n");
    terminal.until_unasked().await;
    terminal.until("queued").await;
    terminal.types("\u{3}");
    terminal.until(QUESTION).await;
    terminal.types("c\n");
    terminal.until("kiln: cancelled").await;
    assert_eq!(terminal.ends().await.0, 3);
    assert_eq!(state(&pool).await, "cancelled");
    app.stop().await;
}

#[sqlx::test]
async fn at_a_terminal_a_build_can_be_left_to_itself(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let shell = Shell::of(&app, Scope::BuildsWrite).await;
    // By the answer, and by another Ctrl-C.
    for answer in ["d\n", "\u{3}"] {
        let mut terminal = Terminal::start(&shell, &BUILD);
        terminal.until("queued").await;
        terminal.types("\u{3}");
        terminal.until(QUESTION).await;
        terminal.types(answer);
        terminal.until("detached; the build goes on").await;
        let (code, rest) = terminal.ends().await;
        assert_eq!(code, 130);
        assert!(
            rest.contains("kiln logs -f ") && rest.contains("kiln cancel "),
            "{rest}"
        );
        assert_eq!(state(&pool).await, "queued");
    }
    app.stop().await;
}

#[sqlx::test]
async fn a_build_that_ends_takes_the_question_back(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let shell = Shell::of(&app, Scope::BuildsWrite).await;
    let mut terminal = Terminal::start(&shell, &BUILD);
    terminal.until("queued").await;
    terminal.until_silent().await;
    let mut hand = Hand::claim(&pool, &app.signals).await;
    hand.run().await;
    terminal.until("running").await;
    terminal.types("\u{3}");
    terminal.until(QUESTION).await;
    // Meanwhile it goes on, and is seen to.
    hand.print(StepName::Build, "meanwhile\n").await;
    terminal.until("meanwhile").await;
    // No answer.
    terminal.types("x");
    hand.succeed().await;
    let (code, _) = terminal.ends().await;
    assert_eq!(code, 0);
    assert!(terminal.echoes());
    let text = terminal.text().join("\n");
    assert!(text.contains("\nmeanwhile\nkiln: succeeded after "), "{text}");
    assert!(!text.contains("[c]ancel"), "{text}");
    app.stop().await;
}

#[sqlx::test]
async fn a_service_that_is_away_is_asked_again_to_cancel(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let mut shell = Shell::of(&app, Scope::BuildsWrite).await;
    let wire = Wire::to(&app, &[]).await;
    shell.url = Some(wire.url.clone());
    for comes_back in [true, false] {
        wire.set(Some(address(&app)));
        let mut terminal = Terminal::start(&shell, &BUILD);
        terminal.until("queued").await;
        wire.set(None);
        terminal.types("\u{3}");
        terminal.until(QUESTION).await;
        terminal.types("c\n");
        terminal
            .until("the service doesn't answer; it is asked again to cancel the build")
            .await;
        if comes_back {
            wire.set(Some(address(&app)));
            terminal.until("kiln: cancelling").await;
            terminal.until("kiln: cancelled").await;
            assert_eq!(terminal.ends().await.0, 3);
            assert_eq!(state(&pool).await, "cancelled");
        } else {
            terminal.types("\u{3}");
            let (code, rest) = terminal.ends().await;
            assert_eq!(code, 130);
            assert!(rest.contains("could not be told to cancel the build"), "{rest}");
            assert!(rest.contains("Stop it with `kiln cancel 0"), "{rest}");
            assert_eq!(state(&pool).await, "queued");
        }
    }
    app.stop().await;
}

#[sqlx::test]
async fn in_a_pipe_it_detaches_and_says_how_to_go_on(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let shell = Shell::of(&app, Scope::BuildsWrite).await;
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut child = shell.command(&BUILD).spawn().expect("starts");
        let mut errors = tokio::io::BufReader::new(child.stderr.take().expect("piped"));
        let mut said = String::new();
        let pid = Pid::from_raw(child.id().expect("runs").try_into().expect("fits"));
        super::service::soon("the first state", async {
            while !said.contains("kiln: queued\n") {
                let read = tokio::io::AsyncBufReadExt::read_line(&mut errors, &mut said)
                    .await
                    .expect("reads");
                assert!(read > 0, "{said}");
            }
        })
        .await;
        kill(pid, signal).expect("signalled");
        let status = super::service::soon("the end of the client", child.wait())
            .await
            .expect("waited for");
        assert_eq!(status.code(), Some(130));
        tokio::io::AsyncReadExt::read_to_string(&mut errors, &mut said)
            .await
            .expect("reads");
        assert!(
            said.contains("kiln: detached; the build goes on. Follow it again with `kiln logs -f "),
            "{said}"
        );
        assert_eq!(state(&pool).await, "queued");
    }
    app.stop().await;
}
