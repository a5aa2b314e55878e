//! Weights and limits of projects, and what they do to builds.

use kiln::domain::project::Scope;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::api::support::{Answer, Caller, TestApp, id, minimal, pointers};

async fn patch(caller: &Caller<'_>, body: &Value) -> Answer {
    Answer::of(caller.request(Method::PATCH, "/v1/projects/team").json(body)).await
}

#[sqlx::test]
async fn weights_and_limits_are_set_kept_and_taken_away(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let admin = app.caller(Scope::Admin).await;
    let limits = json!({"concurrency": 3, "starts_per_minute": null, "queued": 0});
    let request = json!({"name": "team", "weight": 250, "limits": {"concurrency": 3, "queued": 0}});
    let made = Answer::of(admin.post("/v1/projects").json(&request)).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
    assert_eq!((&made.json()["weight"], &made.json()["limits"]), (&json!(250), &limits));

    // What isn't named stays.
    let changed = patch(&admin, &json!({"limits": {"queued": null, "starts_per_minute": 60}}))
        .await
        .json();
    let limits = json!({"concurrency": 3, "starts_per_minute": 60, "queued": null});
    assert_eq!((&changed["weight"], &changed["limits"]), (&json!(250), &limits));
    let changed = patch(
        &admin,
        &json!({"weight": 1, "limits": null, "cache": "registry.example/cache"}),
    )
    .await
    .json();
    assert_eq!((&changed["weight"], &changed["limits"]), (&json!(1), &limits));
    let seen = Answer::of(admin.get("/v1/projects/team")).await.json();
    assert_eq!(seen, changed);
    let listed = Answer::of(admin.get("/v1/projects")).await.json();
    assert_eq!(
        (&listed["items"][0]["weight"], &listed["items"][1]),
        (&json!(100), &seen)
    );

    // Others may look.
    let owner = app.caller_of("team", Scope::ProjectAdmin).await;
    for body in [
        json!({"weight": 1000}),
        json!({"limits": {"concurrency": null}}),
        json!({"limits": 1}),
    ] {
        patch(&owner, &body).await.problem(403, "insufficient_scope");
    }
    assert_eq!(Answer::of(owner.get("/v1/projects/team")).await.json(), seen);
    app.stop().await;
}

#[sqlx::test]
async fn every_invalid_limit_is_told_with_its_place(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let admin = app.caller_of("team", Scope::Admin).await;
    let before = Answer::of(admin.get("/v1/projects/team")).await.text;
    for (body, places) in [
        (
            json!({"weight": 0, "limits": {"concurrency": -1, "starts_per_minute": 0, "queued": 1_000_001, "qeued": 1}}),
            vec![
                "/limits/concurrency",
                "/limits/qeued",
                "/limits/queued",
                "/limits/starts_per_minute",
                "/weight",
            ],
        ),
        (
            json!({"weight": 1001, "limits": {"concurrency": "3"}, "cache": 1}),
            vec!["/cache", "/limits/concurrency", "/weight"],
        ),
        (json!({"weight": 1.5, "limits": []}), vec!["/limits", "/weight"]),
    ] {
        let problem = patch(&admin, &body).await.problem(422, "invalid_request");
        let mut named = pointers(&problem);
        named.sort_unstable();
        assert_eq!(named, places, "{body}");
        let mut request = body.clone();
        request["name"] = json!("other");
        request.as_object_mut().expect("an object").remove("cache");
        Answer::of(admin.post("/v1/projects").json(&request))
            .await
            .problem(422, "invalid_request");
    }
    assert_eq!(Answer::of(admin.get("/v1/projects/team")).await.text, before);
    app.stop().await;
}

#[sqlx::test]
async fn a_full_queue_takes_no_more(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let admin = app.caller(Scope::Admin).await;
    let caller = app.caller_of("team", Scope::BuildsWrite).await;
    patch(&admin, &json!({"limits": {"queued": 2}})).await;
    let ask = |key: &'static str| {
        caller
            .post("/v1/builds")
            .header("idempotency-key", key)
            .json(&minimal())
    };
    let first = Answer::of(ask("1")).await;
    assert_eq!(first.status, StatusCode::CREATED);
    assert_eq!(Answer::of(ask("2")).await.status, StatusCode::CREATED);

    let refused = Answer::of(ask("3")).await;
    refused.problem(429, "queue_full");
    assert_eq!(refused.header("retry-after"), "15");
    Answer::of(caller.post("/v1/builds").json(&minimal()))
        .await
        .problem(429, "queue_full");
    // What was accepted is answered the same, and others aren't concerned.
    assert_eq!(Answer::of(ask("1")).await.status, StatusCode::OK);
    app.caller(Scope::BuildsWrite).await.create().await;

    let cancelled = format!("/v1/builds/{}/cancel", id(&first.json()));
    assert_eq!(Answer::of(caller.post(&cancelled)).await.status, StatusCode::ACCEPTED);
    assert_eq!(Answer::of(ask("3")).await.status, StatusCode::CREATED);
    let retry = format!("/v1/builds/{}/retry", id(&first.json()));
    Answer::of(caller.post(&retry)).await.problem(429, "queue_full");
    app.stop().await;
}
