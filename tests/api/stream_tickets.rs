//! `POST /v1/stream-tickets`, and what tickets open.

use std::sync::{Arc, Mutex};

use chrono::{DateTime, TimeDelta, Utc};
use kiln::domain::{clock::Clock, project::Scope};
use reqwest::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;

use super::{
    builds::events::Stream,
    support::{Answer, Caller, TestApp, id},
};

async fn ticket(caller: &Caller<'_>, of: Value) -> (String, Value) {
    let answer = Answer::of(caller.post("/v1/stream-tickets").json(&of)).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
    let view = answer.json();
    (view["ticket"].as_str().expect("a ticket").to_owned(), view)
}

#[sqlx::test]
async fn a_ticket_opens_the_streams_of_its_build_only(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let build = caller.create().await;
    let path = format!("/v1/builds/{}", id(&build));
    let (secret, view) = ticket(&caller, json!({"build": build["id"]})).await;
    assert_eq!(
        view["streams"],
        json!([format!("{path}/events"), format!("{path}/logs")])
    );
    let nobody = app.anonymous();
    // EventSource comes back with the same address.
    for _ in 0..2 {
        let mut stream = Stream::open(nobody.get(&format!("{path}/events?ticket={secret}"))).await;
        assert_eq!(stream.next().await.expect("an event").data["state"], "queued");
    }
    let logs = Answer::of(nobody.get(&format!("{path}/logs?ticket={secret}"))).await;
    assert_eq!(logs.status, StatusCode::OK);

    // Nothing else: not the build, not another's streams, not the project's.
    Answer::of(nobody.get(&path)).await.problem(401, "unauthenticated");
    Answer::of(nobody.get(&format!("{path}?ticket={secret}")))
        .await
        .problem(401, "unauthenticated");
    let other = format!("/v1/builds/{}/events?ticket={secret}", id(&caller.create().await));
    Answer::of(nobody.get(&other)).await.problem(404, "build_not_found");
    Answer::of(nobody.get(&format!("/v1/events?ticket={secret}")))
        .await
        .problem(404, "project_not_found");
    for bad in ["", "x", "kilnst_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"] {
        let answer = Answer::of(nobody.get(&format!("{path}/events?ticket={bad}"))).await;
        assert!(!answer.text.contains("kilnst_A"), "{}", answer.text);
        answer.problem(401, "unauthenticated");
    }
    // A ticket is no token.
    Answer::of(app.bearer(&secret).get(&path))
        .await
        .problem(401, "unauthenticated");
    app.stop().await;
}

#[sqlx::test]
async fn a_ticket_opens_the_changes_of_its_project(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    caller.create().await;
    let stranger = app.caller_of("other", Scope::BuildsWrite).await;
    stranger.create().await;
    let nobody = app.anonymous();
    for of in [json!({}), json!({"project": "default"})] {
        let (secret, view) = ticket(&caller, of).await;
        assert_eq!(view["streams"], json!(["/v1/events?project=default"]));
        for project in ["", "&project=default"] {
            let path = format!("/v1/events?from=0&ticket={secret}{project}");
            let mut stream = Stream::open(nobody.get(&path)).await;
            assert_eq!(stream.next().await.expect("an event").data["project"], "default");
        }
        Answer::of(nobody.get(&format!("/v1/events?ticket={secret}&project=other")))
            .await
            .problem(404, "project_not_found");
    }
    let (secret, _) = ticket(&app.caller(Scope::Admin).await, json!({})).await;
    let mut stream = Stream::open(nobody.get(&format!("/v1/events?from=0&ticket={secret}"))).await;
    stream.next().await.expect("one project");
    assert_eq!(stream.next().await.expect("another").data["project"], "other");
    drop(stream);
    app.stop().await;
}

#[derive(Debug)]
struct Hands(Mutex<DateTime<Utc>>);

impl Clock for Hands {
    fn now(&self) -> DateTime<Utc> {
        *self.0.lock().expect("whole")
    }
}

#[sqlx::test]
async fn a_ticket_ends_soon_and_with_its_token(pool: PgPool) {
    let clock = Arc::new(Hands(Mutex::new(Utc::now())));
    let hands = Arc::clone(&clock);
    let app = TestApp::start_with(&pool, |app| app.clock = hands).await;
    let caller = app.caller(Scope::BuildsRead).await;
    let nobody = app.anonymous();
    let (secret, view) = ticket(&caller, json!({})).await;
    let path = format!("/v1/events?ticket={secret}");
    let expires_at: DateTime<Utc> = view["expires_at"].as_str().expect("a time").parse().expect("RFC 3339");
    let later = |seconds| *clock.0.lock().expect("whole") = expires_at + TimeDelta::seconds(seconds);
    later(-1);
    drop(Stream::open(nobody.get(&path)).await);
    later(1);
    Answer::of(nobody.get(&path)).await.problem(401, "unauthenticated");

    // Making one removes those that have ended.
    let (secret, _) = ticket(&caller, json!({})).await;
    let kept: i64 = sqlx::query_scalar("SELECT count(*) FROM stream_tickets")
        .fetch_one(&pool)
        .await
        .expect("counts");
    assert_eq!(kept, 1);
    sqlx::query("DELETE FROM tokens").execute(&pool).await.expect("deletes");
    Answer::of(nobody.get(&format!("/v1/events?ticket={secret}")))
        .await
        .problem(401, "unauthenticated");
    app.stop().await;
}

#[sqlx::test]
async fn tickets_are_made_for_what_one_may_read(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsRead).await;
    let other = app.caller_of("other", Scope::BuildsWrite).await.create().await;
    let ask = |body: Value| Answer::of(caller.post("/v1/stream-tickets").json(&body));
    ask(json!({"build": other["id"]})).await.problem(404, "build_not_found");
    ask(json!({"project": "other"})).await.problem(404, "project_not_found");
    for bad in [
        json!({"build": "x"}),
        json!({"project": "A"}),
        json!({"builds": []}),
        json!({"build": other["id"], "project": "other"}),
    ] {
        ask(bad).await.problem(422, "invalid_request");
    }
    app.stop().await;
}
