//! `POST /v1/builds/{id}/cancel`.

use kiln::domain::{failure::FailureCode, project::Scope};
use reqwest::StatusCode;
use sqlx::PgPool;

use crate::api::{
    support::{Answer, TestApp, id, soon},
    worker::Hand,
};

#[sqlx::test]
async fn a_queued_build_is_cancelled_at_once(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let path = format!("/v1/builds/{}", id(&caller.create().await));
    // Asking twice is no mistake.
    for _ in 0..2 {
        let answer = Answer::of(caller.post(&format!("{path}/cancel"))).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED);
        assert_eq!(answer.json()["state"], "cancelled");
    }
    let events = Answer::of(caller.get(&format!("{path}/events"))).await.text;
    assert_eq!(events.matches("event: end\n").count(), 1, "{events}");
    app.stop().await;
}

#[sqlx::test]
async fn a_live_build_is_told_to_stop(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let path = format!("/v1/builds/{}", id(&caller.create().await));
    let mut hand = Hand::claim(&pool, &app.signals).await;
    hand.run().await;
    let mut told = app.signals.cancels();
    for _ in 0..2 {
        let answer = Answer::of(caller.post(&format!("{path}/cancel"))).await;
        assert_eq!(
            (answer.status, &answer.json()["state"]),
            (StatusCode::ACCEPTED, &"cancelling".into())
        );
    }
    let build = soon("the news", told.recv()).await.expect("news");
    assert!(path.ends_with(&build.to_string()));
    app.stop().await;
}

#[sqlx::test]
async fn what_is_over_stays_as_it_is(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let path = format!("/v1/builds/{}", id(&caller.create().await));
    let mut hand = Hand::claim(&pool, &app.signals).await;
    hand.run().await;
    hand.fail(FailureCode::BuildFailed).await;
    let problem = Answer::of(caller.post(&format!("{path}/cancel")))
        .await
        .problem(409, "build_finished");
    assert_eq!(problem["detail"], "the build is failed and can't change any more");
    app.stop().await;
}
