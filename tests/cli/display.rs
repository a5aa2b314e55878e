//! What is seen on a terminal.

use kiln::domain::{event::StepName, project::Scope};
use sqlx::PgPool;

use super::{
    service::TestApp,
    support::Shell,
    terminal::Terminal,
    wire::{Wire, address},
    worker::Hand,
};

const BUILD: [&str; 3] = ["build", "https://git.example/app.git", "--no-push"];

#[sqlx::test]
async fn output_on_a_terminal_is_harmless_and_the_cursor_stays_visible(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let shell = Shell::of(&app, Scope::BuildsWrite).await;
    let mut terminal = Terminal::start(&shell, &BUILD);
    terminal.until("queued").await;
    let mut hand = Hand::claim(&pool, &app.signals).await;
    hand.run().await;
    terminal.until("running").await;
    hand.print(StepName::Build, "before\n\u{1b}]0;owned\u{7}10%\r\u{1b}[2Jafter\n")
        .await;
    terminal.until("before").await;
    hand.succeed().await;
    let (code, rest) = terminal.ends().await;
    assert_eq!(code, 0);
    assert!(rest.contains("after") && rest.contains("kiln: succeeded"), "{rest:?}");
    assert!(!rest.contains("owned\u{7}") && !rest.contains("\u{1b}[2J"), "{rest:?}");
    let last = |mode: &str| rest.rfind(mode);
    assert!(
        last("\u{1b}[?25l") <= last("\u{1b}[?25h"),
        "the cursor is hidden: {rest:?}"
    );
    app.stop().await;
}

#[sqlx::test]
async fn a_terminal_that_is_resized_keeps_every_line_and_no_old_status(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let shell = Shell::of(&app, Scope::BuildsWrite).await;
    let mut terminal = Terminal::start(&shell, &BUILD);
    terminal.until("queued").await;
    let mut hand = Hand::claim(&pool, &app.signals).await;
    hand.run().await;
    terminal.until("running").await;
    let sizes = [(40, 24), (100, 24), (17, 10), (80, 6), (12, 30), (200, 24), (80, 24)];
    let mut printed = Vec::new();
    for (columns, rows) in sizes {
        terminal.resize(columns, rows);
        for length in [5, 150] {
            let line = format!("<{}{}>", printed.len(), "x".repeat(length));
            hand.print(StepName::Build, &format!("{line}\n")).await;
            terminal.until(&format!("{line}\r\n")).await;
            printed.push(line);
            // Drawn once more below the line, for this size.
            terminal.until("\u{1b}[?7h").await;
        }
    }
    hand.succeed().await;
    assert_eq!(terminal.ends().await.0, 0);
    let text = terminal.text();
    let lines: Vec<_> = text.iter().filter(|line| line.starts_with('<')).cloned().collect();
    assert_eq!(lines, printed, "{text:#?}");
    let begins = text.iter().position(|line| line.starts_with('<')).expect("printed");
    assert!(
        text[..begins].iter().all(|line| line.starts_with("kiln: build ")),
        "{text:#?}"
    );
    assert!(
        text[begins + printed.len()].starts_with("kiln: succeeded after "),
        "{text:#?}"
    );
    app.stop().await;
}

#[sqlx::test]
async fn a_terminal_that_cannot_redraw_gets_lines(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let shell = Shell::of(&app, Scope::BuildsWrite).await;
    for term in [Some("dumb"), None] {
        let mut terminal = Terminal::of_kind(&shell, &BUILD, term);
        terminal.until("kiln: queued").await;
        let mut hand = Hand::claim(&pool, &app.signals).await;
        hand.run().await;
        hand.print(StepName::Build, "one\n").await;
        hand.succeed().await;
        let (code, rest) = terminal.ends().await;
        assert_eq!(code, 0);
        assert!(rest.contains("one\r\n") && rest.contains("kiln: succeeded"), "{rest:?}");
        // Colours are no lines that move.
        for moves in ["\u{1b}[J", "\u{1b}[?7l", "\u{1b}[1A"] {
            assert!(!rest.contains(moves), "{rest:?}");
        }
    }
    app.stop().await;
}

const NO_WORKER: &str = "queued · no worker runs: the operator has to start one";

#[sqlx::test]
async fn what_a_build_waits_for_is_shown_until_it_goes_on(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let shell = Shell::of(&app, Scope::BuildsWrite).await;
    let mut terminal = Terminal::start(&shell, &BUILD);
    terminal.until(NO_WORKER).await;
    let ran = shell.run(&["list", "--json"]).await.expect(0);
    let id = ran.json()["items"][0]["id"].as_str().expect("an id").to_owned();
    let told = shell.run(&["get", &id]).await.expect(0).out;
    assert!(
        told.contains("\nwaits      no worker runs: the operator has to start one\n"),
        "{told}"
    );
    let mut hand = Hand::claim(&pool, &app.signals).await;
    hand.run().await;
    terminal.until("running").await;
    hand.succeed().await;
    assert_eq!(terminal.ends().await.0, 0);
    let text = terminal.text().join("\n");
    assert!(!text.contains("no worker runs"), "{text}");
    let told = shell.run(&["get", &id]).await.expect(0).out;
    assert!(!told.contains("\nwaits"), "{told}");
    app.stop().await;
}

#[sqlx::test]
async fn what_a_build_waits_for_is_one_line_where_nothing_is_redrawn(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let shell = Shell::of(&app, Scope::BuildsWrite).await;
    let mut terminal = Terminal::of_kind(&shell, &BUILD, Some("dumb"));
    terminal
        .until("kiln: queued: no worker runs: the operator has to start one")
        .await;
    let mut hand = Hand::claim(&pool, &app.signals).await;
    hand.run().await;
    hand.succeed().await;
    let (code, rest) = terminal.ends().await;
    assert_eq!(code, 0);
    assert!(!rest.contains("no worker runs"), "{rest:?}");
    app.stop().await;
}

#[sqlx::test]
async fn a_service_that_is_away_when_a_build_ends_is_waited_for(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let mut shell = Shell::of(&app, Scope::BuildsWrite).await;
    let wire = Wire::to(&app, &[]).await;
    shell.url = Some(wire.url.clone());
    for interrupted in [false, true] {
        wire.set(Some(address(&app)));
        let mut terminal = Terminal::start(&shell, &BUILD);
        terminal.until("queued").await;
        let mut hand = Hand::claim(&pool, &app.signals).await;
        hand.run().await;
        terminal.until("running").await;
        wire.set(None);
        hand.succeed().await;
        terminal.until("the connection is gone; trying to get it back").await;
        if interrupted {
            terminal.types("\u{3}");
            let (code, rest) = terminal.ends().await;
            assert_eq!(code, 130);
            assert!(rest.contains("the build is over, but the service is away"), "{rest}");
        } else {
            wire.set(Some(address(&app)));
            terminal.until("connected again").await;
            let (code, rest) = terminal.ends().await;
            assert_eq!(code, 0);
            assert!(rest.contains("kiln: succeeded"), "{rest}");
        }
    }
    app.stop().await;
}
