//! `POST /v1/builds/{id}/retry`.

use kiln::domain::{failure::FailureCode, project::Scope};
use reqwest::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::api::{
    support::{Answer, TestApp, id, pointers},
    worker::Hand,
};

#[sqlx::test]
async fn a_build_that_is_over_is_built_again(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let old = caller.create().await;
    assert_eq!((&old["retry_of"], &old["retried_by"]), (&Value::Null, &Value::Null));
    let path = format!("/v1/builds/{}", id(&old));
    let mut hand = Hand::claim(&pool, &app.signals).await;
    Answer::of(caller.post(&format!("{path}/retry")))
        .await
        .problem(409, "build_not_finished");
    hand.run().await;
    hand.fail(FailureCode::BuildFailed).await;

    let answer = Answer::of(caller.post(&format!("{path}/retry"))).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
    let new = answer.json();
    assert_eq!(answer.header("location"), format!("/v1/builds/{}", id(&new)));
    assert_ne!(new["id"], old["id"]);
    assert_eq!(new["retry_of"], old["id"]);
    assert_eq!((&new["state"], &new["spec"]), (&json!("queued"), &old["spec"]));
    // What the old build found is what the new one builds.
    assert_eq!(new["commit"], "a".repeat(40));
    let read = |path: String| Answer::of(caller.get(&path));
    assert_eq!(read(path.clone()).await.json()["retried_by"], new["id"]);

    // A second one takes the place of the first; the chain stays readable.
    let second = Answer::of(caller.post(&format!("{path}/retry"))).await.json();
    assert_eq!(read(path).await.json()["retried_by"], second["id"]);
    let list = read("/v1/builds".to_owned()).await.json();
    assert_eq!(list["items"][0]["retry_of"], old["id"]);
    assert_eq!(list["items"][2]["retried_by"], second["id"]);
    app.stop().await;
}

#[sqlx::test]
async fn a_retry_can_be_repeated_safely(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let mut paths = Vec::new();
    for _ in 0..2 {
        let path = format!("/v1/builds/{}", id(&caller.create().await));
        Answer::of(caller.post(&format!("{path}/cancel"))).await;
        paths.push(path);
    }
    let retry = |path: &str| Answer::of(caller.post(&format!("{path}/retry")).header("idempotency-key", "k"));
    let first = retry(&paths[0]).await;
    assert_eq!(first.status, StatusCode::CREATED);
    let again = retry(&paths[0]).await;
    assert_eq!(
        (again.status, again.header("idempotency-replayed")),
        (StatusCode::OK, "true")
    );
    assert_eq!(again.json()["id"], first.json()["id"]);
    retry(&paths[1]).await.problem(422, "idempotency_key_reused");
    app.stop().await;
}

#[sqlx::test]
async fn only_who_may_build_may_retry(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let path = format!("/v1/builds/{}", id(&caller.create().await));
    Answer::of(caller.post(&format!("{path}/cancel"))).await;
    let path = format!("{path}/retry");
    let reader = app.caller(Scope::BuildsRead).await;
    Answer::of(reader.post(&path)).await.problem(403, "insufficient_scope");
    let stranger = app.caller_of("other", Scope::BuildsWrite).await;
    Answer::of(stranger.post(&path)).await.problem(404, "build_not_found");
    app.stop().await;
}

#[sqlx::test]
async fn a_body_that_would_be_ignored_is_refused(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let path = format!("/v1/builds/{}", id(&caller.create().await));
    for operation in ["cancel", "retry"] {
        let post = || caller.post(&format!("{path}/{operation}"));
        let fields = Answer::of(post().json(&json!({"images": [], "ref": "main"}))).await;
        assert_eq!(pointers(&fields.problem(422, "invalid_request")), ["/images", "/ref"]);
        Answer::of(post().json(&json!([])))
            .await
            .problem(422, "invalid_request");
        Answer::of(post().body("ref=main")).await.problem(400, "malformed_json");
        Answer::of(post().body("x").header("content-type", "text/plain"))
            .await
            .problem(415, "unsupported_media_type");
        for nothing in ["", "{}", " { } \n"] {
            let answer = Answer::of(post().body(nothing)).await;
            assert!(answer.status.is_success(), "{operation} {nothing:?}: {}", answer.text);
        }
    }
    app.stop().await;
}
