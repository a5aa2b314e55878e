//! `GET /v1/events`.

use chrono::Utc;
use kiln::{
    domain::{failure::FailureCode, id::BuildId, project::Scope},
    store::changes,
};
use reqwest::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;

use super::{
    builds::events::{Received, Stream},
    support::{Answer, Caller, TestApp, id},
    worker::Hand,
};

async fn take(stream: &mut Stream, count: usize) -> Vec<Received> {
    let mut events = Vec::new();
    for _ in 0..count {
        events.push(stream.next().await.expect("no end"));
    }
    events
}

fn states(events: &[Received]) -> Vec<&str> {
    events
        .iter()
        .map(|event| event.data["state"].as_str().expect("a state"))
        .collect()
}

async fn cancelled(caller: &Caller<'_>) -> String {
    let build = id(&caller.create().await).to_owned();
    Answer::of(caller.post(&format!("/v1/builds/{build}/cancel"))).await;
    build
}

#[sqlx::test]
async fn a_project_is_followed_from_now_on_and_resumed_anywhere(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let before = cancelled(&caller).await;
    let mut stream = Stream::open(caller.get("/v1/events?project=default")).await;
    // What was before isn't sent; from where to go on is known before anything happens.
    let begin = stream.position().await;
    assert_eq!(begin, 2);
    let stranger = app.caller_of("other", Scope::BuildsWrite).await;
    cancelled(&stranger).await;
    let build = id(&caller.create().await).to_owned();
    let mut hand = Hand::claim(&pool, &app.signals).await;
    hand.run().await;
    let digest = hand.succeed().await;
    let events = take(&mut stream, 4).await;
    assert_eq!(states(&events), ["queued", "starting", "running", "succeeded"]);
    assert!(
        events
            .iter()
            .all(|event| event.event == "status" && event.data["build"] == build.as_str())
    );
    let last = &events[3].data;
    assert_eq!(
        (&last["seq"], &last["digest"]),
        (&json!(events[3].id), &json!(digest.as_str()))
    );
    assert_eq!((&last["attempt"], &last["project"]), (&json!(1), &json!("default")));
    assert_eq!(events[0].data["attempt"], Value::Null);
    drop(stream);

    // Another replica knows as much.
    let replica = TestApp::start(&pool).await;
    let token = app.caller(Scope::BuildsWrite).await;
    for request in [
        token.get("/v1/events").header("last-event-id", events[1].id),
        token.get(&format!("/v1/events?from={}", events[1].id)),
    ] {
        let mut stream = Stream::open(request).await;
        assert_eq!(take(&mut stream, 2).await, events[2..]);
    }
    let everything = take(&mut Stream::open(token.get("/v1/events?from=0")).await, 6).await;
    assert_eq!(states(&everything[..2]), ["queued", "cancelled"]);
    assert_eq!(everything[0].data["build"], before);
    assert_eq!(everything[2..], events);
    // Only what is asked for.
    let mut some = Stream::open(token.get("/v1/events?from=0&state=running&state=cancelled")).await;
    assert_eq!(states(&take(&mut some, 2).await), ["cancelled", "running"]);
    drop(some);
    // The scope admin sees all projects.
    let admin = app.caller(Scope::Admin).await;
    let all = take(&mut Stream::open(admin.get("/v1/events?from=0")).await, 8).await;
    assert_eq!(all.iter().filter(|event| event.data["project"] == "other").count(), 2);
    replica.stop().await;
    app.stop().await;
}

#[sqlx::test]
async fn what_commits_late_is_not_passed_over(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let early = caller.create().await;
    let late = caller.create().await;
    let mut stream = Stream::open(caller.get("/v1/events?from=0")).await;
    take(&mut stream, 2).await;

    // Its row is inserted first, and committed last.
    let mut transaction = pool.begin().await.expect("begins");
    let late_id: BuildId = id(&late).parse().expect("an id");
    sqlx::query("UPDATE builds SET state = 'cancelled', available_at = NULL, finished_at = now() WHERE id = $1")
        .bind(late_id.0)
        .execute(&mut *transaction)
        .await
        .expect("updates");
    Answer::of(caller.post(&format!("/v1/builds/{}/cancel", id(&early)))).await;
    let first = take(&mut stream, 1).await;
    assert_eq!(first[0].data["build"], early["id"]);
    transaction.commit().await.expect("commits");
    app.signals.status(late_id, 1);
    let second = take(&mut stream, 1).await;
    assert_eq!(second[0].data["build"], late["id"]);
    assert!(second[0].id > first[0].id);
    drop(stream);
    app.stop().await;
}

/// Writers and readers at the same time: every reader gets every change, once, and of each build in order.
#[sqlx::test]
async fn readers_miss_nothing_while_many_write(pool: PgPool) {
    const WRITERS: usize = 4;
    const BUILDS: usize = 15;
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let write = || async {
        for _ in 0..BUILDS {
            cancelled(&caller).await;
        }
    };
    let read = || async {
        let mut stream = Stream::open(caller.get("/v1/events?from=0")).await;
        take(&mut stream, WRITERS * BUILDS * 2).await
    };
    // A second replica numbers against the first.
    let number = async {
        for _ in 0..50 {
            changes::number(&pool).await.expect("numbers");
        }
    };
    let (one, two, ..) = tokio::join!(read(), read(), write(), write(), write(), write(), number);
    assert_eq!(one, two);
    assert!(one.is_sorted_by(|a, b| a.id < b.id));
    let mut of_build = std::collections::HashMap::<String, Vec<&str>>::new();
    for event in &one {
        let state = event.data["state"].as_str().expect("a state");
        of_build.entry(event.data["build"].to_string()).or_default().push(state);
    }
    assert_eq!(of_build.len(), WRITERS * BUILDS);
    assert!(of_build.values().all(|states| *states == ["queued", "cancelled"]));
    app.stop().await;
}

#[sqlx::test]
async fn a_failure_is_told_with_its_reason(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    caller.create().await;
    let mut hand = Hand::claim(&pool, &app.signals).await;
    hand.run().await;
    hand.fail(FailureCode::BuildFailed).await;
    let mut stream = Stream::open(caller.get("/v1/events?from=0&state=failed")).await;
    let failed = take(&mut stream, 1).await.remove(0).data;
    assert_eq!(
        failed["failure"],
        json!({"code": "build_failed", "message": "it broke"})
    );
    let at: chrono::DateTime<Utc> = failed["at"].as_str().expect("a time").parse().expect("RFC 3339");
    assert!(at <= Utc::now());
    drop(stream);
    app.stop().await;
}

#[sqlx::test]
async fn another_project_is_not_there(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    app.caller_of("other", Scope::BuildsRead).await;
    let caller = app.caller(Scope::BuildsRead).await;
    for project in ["other", "nobody"] {
        Answer::of(caller.get(&format!("/v1/events?project={project}")))
            .await
            .problem(404, "project_not_found");
    }
    let bad = Answer::of(caller.get("/v1/events?state=x&from=-1&since=1")).await;
    assert_eq!(
        bad.problem(400, "invalid_query")["errors"].as_array().map(Vec::len),
        Some(3)
    );
    let form = Answer::of(caller.get("/v1/events").header("accept", "application/json")).await;
    assert_eq!(form.status, StatusCode::NOT_ACCEPTABLE);
    app.stop().await;
}
