//! `coalesce` of `POST /v1/builds`: identical requests in flight share a build.

use std::collections::BTreeSet;

use kiln::domain::{failure::FailureCode, project::Scope};
use reqwest::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::api::{
    support::{Answer, Caller, TestApp, id, minimal},
    worker::Hand,
};

fn request() -> Value {
    let mut request = minimal();
    request["coalesce"] = json!(true);
    request
}

async fn ask(caller: &Caller<'_>, request: &Value) -> Answer {
    Answer::of(caller.post("/v1/builds").json(request)).await
}

#[track_caller]
fn created(answer: &Answer) -> String {
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
    assert!(!answer.headers.contains_key("kiln-coalesced"));
    id(&answer.json()).to_owned()
}

#[track_caller]
fn shared(answer: &Answer) -> String {
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    assert_eq!(answer.header("kiln-coalesced"), "true");
    id(&answer.json()).to_owned()
}

#[sqlx::test]
async fn identical_requests_share_a_build_while_it_is_in_flight(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    // Who doesn't ask for it shares nothing.
    let alone = id(&caller.create().await).to_owned();
    Answer::of(caller.post(&format!("/v1/builds/{alone}/cancel"))).await;
    let first = created(&ask(&caller, &request()).await);
    assert_ne!(first, id(&caller.create().await));

    let mut same = request();
    same["push"] = json!(true);
    same["annotations"] = json!({"delivery": 2});
    let answer = ask(&caller, &same).await;
    assert_eq!(shared(&answer), first);
    assert_eq!(answer.header("location"), format!("/v1/builds/{first}"));
    let mut other = request();
    other["target"] = json!("x");
    created(&ask(&caller, &other).await);
    let stranger = app.caller_of("other", Scope::BuildsWrite).await;
    created(&ask(&stranger, &request()).await);
    app.stop().await;
}

#[sqlx::test]
async fn what_is_over_or_being_stopped_is_shared_with_nobody(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let failed = created(&ask(&caller, &request()).await);
    let mut hand = Hand::claim(&pool, &app.signals).await;
    hand.run().await;
    assert_eq!(shared(&ask(&caller, &request()).await), failed);
    hand.fail(FailureCode::BuildFailed).await;

    let retry = Answer::of(caller.post(&format!("/v1/builds/{failed}/retry"))).await;
    assert_eq!(retry.status, StatusCode::CREATED);
    Answer::of(caller.post(&format!("/v1/builds/{}/cancel", id(&retry.json())))).await;
    let stopped = created(&ask(&caller, &request()).await);
    let mut hand = Hand::claim(&pool, &app.signals).await;
    hand.run().await;
    let answer = Answer::of(caller.post(&format!("/v1/builds/{stopped}/cancel"))).await;
    assert_eq!(answer.json()["state"], "cancelling");
    assert_ne!(created(&ask(&caller, &request()).await), stopped);
    app.stop().await;
}

#[sqlx::test]
async fn two_replicas_that_get_identical_requests_at_once_make_one_build(pool: PgPool) {
    let replicas = [TestApp::start(&pool).await, TestApp::start(&pool).await];
    let callers = [
        replicas[0].caller(Scope::BuildsWrite).await,
        replicas[1].caller(Scope::BuildsWrite).await,
    ];
    let request = request();
    let asked = (0..12).map(|n| {
        let post = callers[n % 2].post("/v1/builds").json(&request);
        // Some with a key of their own.
        Answer::of(if n % 3 == 0 {
            post.header("idempotency-key", format!("k{n}"))
        } else {
            post
        })
    });
    let answers = futures::future::join_all(asked).await;
    let builds: BTreeSet<_> = answers.iter().map(|answer| id(&answer.json()).to_owned()).collect();
    assert_eq!(builds.len(), 1);
    let made = answers.iter().filter(|answer| answer.status == StatusCode::CREATED);
    assert_eq!(made.count(), 1);
    for replica in replicas {
        replica.stop().await;
    }
}

#[sqlx::test]
async fn a_key_stands_for_the_build_that_its_request_got(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let with_key = |key: &str| {
        Answer::of(
            caller
                .post("/v1/builds")
                .json(&request())
                .header("idempotency-key", key),
        )
    };
    let first = created(&with_key("a").await);
    assert_eq!(shared(&with_key("b").await), first);
    Answer::of(caller.post(&format!("/v1/builds/{first}/cancel"))).await;
    for (key, header) in [("a", None), ("b", Some("true"))] {
        let again = with_key(key).await;
        assert_eq!(
            (again.status, again.header("idempotency-replayed")),
            (StatusCode::OK, "true")
        );
        assert_eq!(id(&again.json()), first);
        let coalesced = again
            .headers
            .get("kiln-coalesced")
            .map(|value| value.to_str().expect("text"));
        assert_eq!(coalesced, header);
    }
    assert_ne!(created(&with_key("c").await), first);
    app.stop().await;
}

#[sqlx::test]
async fn of_a_group_only_the_newest_is_shared(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let of = |reference: &str| {
        let mut request = request();
        request["source"]["ref"] = json!(reference);
        request["group"] = json!({"key": "k", "supersede": "queued"});
        request
    };
    let old = created(&ask(&caller, &of("old")).await);
    let mut hand = Hand::claim(&pool, &app.signals).await;
    hand.run().await;
    assert_eq!(shared(&ask(&caller, &of("old")).await), old);
    let new = created(&ask(&caller, &of("new")).await);
    assert_eq!(shared(&ask(&caller, &of("new")).await), new);
    // Going back makes the old one the newest again.
    let back = created(&ask(&caller, &of("old")).await);
    let superseded = Answer::of(caller.get(&format!("/v1/builds/{new}"))).await.json();
    assert_eq!(
        (&superseded["state"], &superseded["superseded_by"]),
        (&json!("cancelled"), &json!(back))
    );
    assert_eq!(shared(&ask(&caller, &of("old")).await), back);
    app.stop().await;
}
