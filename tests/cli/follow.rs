//! Following a build over connections that break and replicas that go away: no line is lost, none is printed twice.

use std::time::Duration;

use kiln::{
    domain::{event::StepName, failure::FailureCode, project::Scope},
    http::StreamTiming,
};
use serde_json::Value;
use sqlx::PgPool;

use super::{
    service::{TestApp, soon},
    support::{Ran, Shell, finish},
    wire::{Wire, address},
    worker::Hand,
};

async fn start(pool: &PgPool) -> TestApp {
    TestApp::start_with(pool, |app| {
        app.streams = StreamTiming {
            retry: (Duration::from_millis(1), Duration::from_millis(5)),
            ..StreamTiming::default()
        };
    })
    .await
}

const BUILD: [&str; 3] = ["build", "https://git.example/app.git", "--no-push"];

/// Starts to follow a new build.
fn follow(shell: &Shell, arguments: &[&str]) -> tokio::task::JoinHandle<Ran> {
    let mut command = shell.command(arguments);
    tokio::spawn(async move { finish(&mut command).await })
}

async fn queued(pool: &PgPool, app: &TestApp) -> Hand {
    soon("a queued build", async {
        loop {
            let queued: i64 = sqlx::query_scalar("SELECT count(*) FROM builds")
                .fetch_one(pool)
                .await
                .expect("reads");
            if queued > 0 {
                return;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    Hand::claim(pool, &app.signals).await
}

fn line(number: usize) -> String {
    format!("line {number} {}\n", "x".repeat(number * 7 % 90))
}

#[sqlx::test]
async fn the_output_of_a_build_arrives_once_over_connections_that_break(pool: PgPool) {
    let app = start(&pool).await;
    let mut shell = Shell::of(&app, Scope::BuildsWrite).await;
    // In the middle of the headers, of an event, at once.
    let cuts = [40, 400, 0, 333, 334, 900, 1200, 1, 5000, 777];
    let wire = Wire::to(&app, &cuts).await;
    shell.url = Some(wire.url.clone());
    let client = follow(&shell, &BUILD);
    let mut hand = queued(&pool, &app).await;
    hand.run().await;
    for number in 0..150 {
        hand.print(StepName::Build, &line(number)).await;
    }
    hand.succeed().await;
    let ran = soon("the end of the client", client).await.expect("no panic").expect(0);
    assert_eq!(ran.out, (0..150).map(line).collect::<String>());
    ran.says(&[
        "kiln: build ",
        "kiln: the connection is gone",
        "connected again",
        "kiln: succeeded after",
    ]);
    assert_eq!(wire.streams(), cuts.len() + 1);
    app.stop().await;
}

#[sqlx::test]
async fn a_replica_that_restarts_is_waited_for(pool: PgPool) {
    let first = start(&pool).await;
    let mut shell = Shell::of(&first, Scope::BuildsWrite).await;
    let wire = Wire::to(&first, &[]).await;
    shell.url = Some(wire.url.clone());
    let client = follow(&shell, &BUILD);
    let mut hand = queued(&pool, &first).await;
    hand.run().await;
    for number in 0..20 {
        hand.print(StepName::Build, &line(number)).await;
    }
    soon("the stream is open", async {
        while wire.streams() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    wire.set(None);
    first.stop().await;
    for number in 20..40 {
        hand.print(StepName::Build, &line(number)).await;
    }
    let second = start(&pool).await;
    wire.set(Some(address(&second)));
    for number in 40..60 {
        hand.print(StepName::Build, &line(number)).await;
    }
    hand.fail(FailureCode::BuildFailed).await;
    let ran = soon("the end of the client", client).await.expect("no panic").expect(1);
    assert_eq!(ran.out, (0..60).map(line).collect::<String>());
    ran.says(&["kiln: failed after", "build_failed: it broke"]);
    second.stop().await;
}

#[sqlx::test]
async fn a_retried_attempt_is_told_and_json_stands_alone(pool: PgPool) {
    let app = start(&pool).await;
    let shell = Shell::of(&app, Scope::BuildsWrite).await;
    let mut arguments = BUILD.to_vec();
    arguments.push("--json");
    let client = follow(&shell, &arguments);
    let mut hand = queued(&pool, &app).await;
    hand.run().await;
    hand.print(StepName::Build, "first\n").await;
    hand.fail(FailureCode::NodeLost).await;
    let mut hand = Hand::claim(&pool, &app.signals).await;
    hand.run().await;
    hand.print(StepName::Build, "second\n").await;
    hand.succeed().await;
    let ran = soon("the end of the client", client).await.expect("no panic").expect(0);
    let build = ran.json();
    assert_eq!(
        (&build["state"], build["attempts"].as_array().map(Vec::len)),
        (&Value::from("succeeded"), Some(2))
    );
    ran.says(&[
        "first\n",
        "attempt 1 failed (node_lost): it broke; it is tried again",
        "second\n",
        ", 2 attempts",
    ]);
    app.stop().await;
}

#[sqlx::test]
async fn a_reader_that_goes_away_is_no_panic(pool: PgPool) {
    let app = start(&pool).await;
    let shell = Shell::of(&app, Scope::BuildsWrite).await;
    let id = shell
        .run(&["build", "https://git.example/app.git", "--no-push", "-d"])
        .await
        .expect(0)
        .out;
    let mut hand = Hand::claim(&pool, &app.signals).await;
    hand.run().await;
    for number in 0..50 {
        hand.print(StepName::Build, &format!("{}{}", line(number), "y".repeat(8000)))
            .await;
    }
    let mut command = shell.command(&["logs", id.trim()]);
    let mut child = command.spawn().expect("starts");
    drop(child.stdout.take());
    let ended = soon("the end of the client", child.wait_with_output())
        .await
        .expect("waited for");
    assert_eq!(ended.status.code(), Some(141));
    assert_eq!(String::from_utf8_lossy(&ended.stderr), "");
    app.stop().await;
}
