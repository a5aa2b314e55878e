//! Tokens: missing, wrong, expired, of another project, of too little scope.

use chrono::{TimeDelta, Utc};
use kiln::{domain::project::Scope, http::token::BearerToken};
use reqwest::{Method, StatusCode};
use sqlx::PgPool;

use super::support::{Answer, TestApp, id, minimal, token};

#[sqlx::test]
async fn without_a_valid_token_nothing_is_told(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let build = app.caller(Scope::BuildsWrite).await.create().await;
    let expired = token(&pool, "default", Scope::Admin, Some(Utc::now() - TimeDelta::seconds(1))).await;
    let unknown = BearerToken::from_random([1; 32]);
    for caller in [
        app.anonymous(),
        app.bearer("nonsense"),
        app.bearer(unknown.expose()),
        app.bearer(&expired),
    ] {
        let path = format!("/v1/builds/{}", id(&build));
        for request in [
            caller.get(&path),
            caller.get(&format!("{path}/events")),
            caller.get(&format!("{path}/logs")),
            caller.post(&format!("{path}/cancel")),
            caller.get("/v1/builds"),
            caller.post("/v1/builds").json(&minimal()),
            caller.get("/v1/projects"),
            caller.post("/v1/projects").json(&minimal()),
            caller.get("/v1/projects/default"),
            caller.get("/v1/projects/default/tokens"),
            caller.post("/v1/projects/default/tokens").json(&minimal()),
            caller.request(Method::DELETE, &format!("/v1/projects/default/tokens/{}", id(&build))),
        ] {
            let answer = Answer::of(request).await;
            let problem = answer.problem(401, "unauthenticated");
            assert!(
                problem["detail"]
                    .as_str()
                    .expect("text")
                    .contains("Authorization: Bearer kiln_")
            );
            assert!(answer.header("www-authenticate").starts_with("Bearer realm=\"kiln\""));
        }
    }
    let answer = Answer::of(app.bearer(&expired).get("/v1/builds")).await;
    assert!(
        answer.problem(401, "unauthenticated")["detail"]
            .as_str()
            .expect("text")
            .contains("has expired")
    );
    app.stop().await;
}

#[sqlx::test]
async fn a_token_that_has_not_expired_works(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let token = token(
        &pool,
        "default",
        Scope::BuildsRead,
        Some(Utc::now() + TimeDelta::hours(1)),
    )
    .await;
    assert_eq!(
        Answer::of(app.bearer(&token).get("/v1/builds")).await.status,
        StatusCode::OK
    );
    app.stop().await;
}

#[sqlx::test]
async fn the_builds_of_others_are_not_there(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let build = app.caller_of("alpha", Scope::BuildsWrite).await.create().await;
    let path = format!("/v1/builds/{}", id(&build));
    let other = app.caller_of("beta", Scope::ProjectAdmin).await;
    for request in [
        other.get(&path),
        other.get(&format!("{path}/events")),
        other.get(&format!("{path}/logs")),
        other.post(&format!("{path}/cancel")),
        // What can't be an id isn't there either.
        other.get("/v1/builds/7"),
        other.get("/v1/builds/%FF"),
    ] {
        Answer::of(request).await.problem(404, "build_not_found");
    }
    Answer::of(other.get("/v1/builds?project=alpha"))
        .await
        .problem(404, "project_not_found");
    Answer::of(other.get("/v1/projects/alpha"))
        .await
        .problem(404, "project_not_found");
    Answer::of(other.get("/v1/projects/alpha/tokens"))
        .await
        .problem(404, "project_not_found");
    assert_eq!(
        Answer::of(other.get("/v1/builds")).await.json()["items"],
        serde_json::json!([])
    );

    let admin = app.caller(Scope::Admin).await;
    assert_eq!(Answer::of(admin.get(&path)).await.json()["project"], "alpha");
    let all = Answer::of(admin.get("/v1/builds")).await.json();
    assert_eq!(all["items"][0]["id"], build["id"]);
    app.stop().await;
}

#[sqlx::test]
async fn each_operation_asks_for_its_scope(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let build = app.caller(Scope::BuildsWrite).await.create().await;
    let reader = app.caller(Scope::BuildsRead).await;
    let writer = app.caller(Scope::BuildsWrite).await;
    let owner = app.caller(Scope::ProjectAdmin).await;
    for (request, scope) in [
        (reader.post("/v1/builds").json(&minimal()), "builds:write"),
        (
            reader.post(&format!("/v1/builds/{}/cancel", id(&build))),
            "builds:write",
        ),
        (writer.get("/v1/projects/default/tokens"), "project:admin"),
        (
            writer.post("/v1/projects/default/tokens").json(&minimal()),
            "project:admin",
        ),
        (
            writer.request(Method::DELETE, &format!("/v1/projects/default/tokens/{}", id(&build))),
            "project:admin",
        ),
        (owner.post("/v1/projects").json(&minimal()), "admin"),
    ] {
        let answer = Answer::of(request).await;
        let problem = answer.problem(403, "insufficient_scope");
        assert!(
            problem["detail"]
                .as_str()
                .expect("text")
                .contains(&format!("`{scope}`"))
        );
        assert!(
            answer
                .header("www-authenticate")
                .contains(&format!("scope=\"{scope}\""))
        );
    }
    assert_eq!(
        Answer::of(reader.get(&format!("/v1/builds/{}", id(&build))))
            .await
            .status,
        StatusCode::OK
    );
    app.stop().await;
}
