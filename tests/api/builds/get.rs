//! `GET /v1/builds/{id}`.

use kiln::domain::{failure::FailureCode, project::Scope};
use reqwest::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::api::{
    support::{Answer, TestApp, id},
    worker::Hand,
};

#[sqlx::test]
async fn a_build_shows_its_whole_life(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let path = format!("/v1/builds/{}", id(&caller.create().await));
    let look = || async { Answer::of(caller.get(&path)).await.json() };

    let mut hand = Hand::claim(&pool, &app.signals).await;
    let build = look().await;
    assert_eq!(build["state"], "starting");
    assert_eq!(build["attempts"][0]["number"], 1);
    assert_eq!(build["attempts"][0]["state"], "starting");

    hand.run().await;
    let build = look().await;
    assert_eq!(build["state"], "running");
    assert_eq!(build["commit"], "a".repeat(40));
    assert!(build["started_at"].is_string());
    assert_eq!(build["attempts"][0]["node"], "node-1");

    hand.fail(FailureCode::NodeLost).await;
    let build = look().await;
    assert_eq!((&build["state"], &build["failure"]), (&json!("queued"), &Value::Null));
    assert_eq!(
        build["attempts"][0]["failure"],
        json!({"code": "node_lost", "message": "it broke"})
    );

    let mut hand = Hand::claim(&pool, &app.signals).await;
    hand.run().await;
    hand.fail(FailureCode::BuildFailed).await;
    let build = look().await;
    assert_eq!(build["state"], "failed");
    assert_eq!(
        build["failure"],
        json!({"code": "build_failed", "message": "it broke", "retried": true})
    );
    assert_eq!(build["attempts"].as_array().map(Vec::len), Some(2));
    assert!(build["finished_at"].is_string());
    app.stop().await;
}

#[sqlx::test]
async fn waiting_ends_with_the_build_on_any_replica(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let path = format!("/v1/builds/{}", id(&caller.create().await));
    let mut hand = Hand::claim(&pool, &app.signals).await;
    hand.run().await;
    let waiting = Answer::of(caller.get(&format!("{path}?wait=60")));
    let finish = async {
        // Begins once the other is waiting, whichever way that went: both orders must do.
        while app.signals.heads().watched() == 0 {
            tokio::task::yield_now().await;
        }
        hand.succeed().await
    };
    let (answer, digest) = tokio::join!(waiting, finish);
    let build = answer.json();
    assert_eq!(
        (&build["state"], &build["digest"]),
        (&json!("succeeded"), &json!(digest.as_str()))
    );

    // What is over is answered at once.
    let again = Answer::of(caller.get(&format!("{path}?wait=60"))).await;
    assert_eq!(again.json(), build);
    app.stop().await;
}

#[sqlx::test]
async fn waiting_has_an_end(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let path = format!("/v1/builds/{}", id(&caller.create().await));
    for seconds in [0, 1] {
        let answer = Answer::of(caller.get(&format!("{path}?wait={seconds}"))).await;
        assert_eq!(answer.json()["state"], "queued");
    }
    for bad in ["61", "-1", "x", ""] {
        Answer::of(caller.get(&format!("{path}?wait={bad}")))
            .await
            .problem(400, "invalid_query");
    }
    // A server that stops doesn't wait.
    let waiting = Answer::of(caller.get(&format!("{path}?wait=60")));
    let stop = async {
        while app.signals.heads().watched() == 0 {
            tokio::task::yield_now().await;
        }
        app.begin_stop();
    };
    let (answer, ()) = tokio::join!(waiting, stop);
    assert_eq!(answer.json()["state"], "queued");
    app.stop().await;
}

#[sqlx::test]
async fn a_tag_tells_whether_anything_changed(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let path = format!("/v1/builds/{}", id(&caller.create().await));
    let etag = Answer::of(caller.get(&path)).await.header("etag").to_owned();
    let ask = |etag: String| Answer::of(caller.get(&path).header("if-none-match", etag));
    for same in [
        etag.clone(),
        etag.trim_start_matches("W/").to_owned(),
        format!("\"x\", {etag}"),
        "*".to_owned(),
    ] {
        let answer = ask(same).await;
        assert_eq!((answer.status, answer.text.as_str()), (StatusCode::NOT_MODIFIED, ""));
        assert_eq!(answer.header("etag"), etag);
    }
    Hand::claim(&pool, &app.signals).await;
    let answer = ask(etag.clone()).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_ne!(answer.header("etag"), etag);
    app.stop().await;
}

#[sqlx::test]
async fn waiting_with_a_tag_ends_with_any_change(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let path = format!("/v1/builds/{}", id(&caller.create().await));
    let tag = Answer::of(caller.get(&path)).await.header("etag").to_owned();
    let ask = |seconds: u32, tag: &str| {
        Answer::of(
            caller
                .get(&format!("{path}?wait={seconds}"))
                .header("if-none-match", tag),
        )
    };
    // Something has changed already.
    let answer = ask(60, "\"other\"").await;
    assert_eq!((answer.status, answer.header("etag")), (StatusCode::OK, tag.as_str()));
    // Nothing does.
    assert_eq!(ask(1, &tag).await.status, StatusCode::NOT_MODIFIED);
    // Something does meanwhile; the build isn't over by that.
    let change = async {
        while app.signals.heads().watched() == 0 {
            tokio::task::yield_now().await;
        }
        Hand::claim(&pool, &app.signals).await
    };
    let (answer, _) = tokio::join!(ask(60, &tag), change);
    assert_eq!(
        (answer.status, &answer.json()["state"]),
        (StatusCode::OK, &json!("starting"))
    );
    assert_ne!(answer.header("etag"), tag);
    app.stop().await;
}
