//! `/healthz`, `/readyz`, `/metrics`, `/openapi.json`.

use std::sync::Arc;

use kiln::{domain::project::Scope, http::Health};
use reqwest::StatusCode;
use serde_json::json;
use sqlx::PgPool;

use super::support::{Answer, TestApp};

#[sqlx::test]
async fn the_process_lives(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let answer = Answer::of(app.anonymous().get("/healthz")).await;
    assert_eq!((answer.status, answer.json()), (StatusCode::OK, json!({"ok": true})));
    app.stop().await;
}

#[sqlx::test]
async fn readiness_tells_database_and_cluster_apart(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let ready = || Answer::of(app.anonymous().get("/readyz"));
    let answer = ready().await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(
        answer.json(),
        json!({"database": {"ok": true}, "cluster": {"ok": true}})
    );

    let missing = "the namespace `kiln-builds` is missing: create it".to_owned();
    app.cluster.send(Err(missing)).expect("somebody listens");
    let answer = ready().await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(
        answer.json(),
        json!({
            "database": {"ok": true},
            "cluster": {"ok": false, "reason": "the namespace `kiln-builds` is missing: create it"},
        })
    );

    let without = || Answer::of(app.anonymous().get("/readyz?exclude=cluster"));
    let tolerant = without().await;
    assert_eq!((tolerant.status, tolerant.json()), (StatusCode::OK, answer.json()));
    for mistake in ["exclude=database", "exlude=cluster"] {
        let answer = Answer::of(app.anonymous().get(&format!("/readyz?{mistake}"))).await;
        answer.problem(400, "invalid_query");
    }

    app.cluster.send(Ok(())).expect("somebody listens");
    sqlx::query("DELETE FROM _sqlx_migrations")
        .execute(&pool)
        .await
        .expect("deletes");
    let answer = ready().await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    let reason = answer.json()["database"]["reason"].clone();
    assert!(reason.as_str().expect("text").contains("kiln migrate"), "{reason}");
    assert_eq!(without().await.status, StatusCode::SERVICE_UNAVAILABLE);
    app.stop().await;
}

#[sqlx::test]
async fn a_replica_that_only_serves_the_api_has_no_cluster(pool: PgPool) {
    let app = TestApp::start_with(&pool, |app| app.health = Health::default()).await;
    let answer = Answer::of(app.anonymous().get("/readyz")).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.json(), json!({"database": {"ok": true}, "cluster": null}));
    app.stop().await;
}

#[sqlx::test]
async fn metrics_count_requests_by_route(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsRead).await;
    for id in [uuid::Uuid::nil(), uuid::Uuid::max()] {
        Answer::of(caller.get(&format!("/v1/builds/{id}")))
            .await
            .problem(404, "build_not_found");
    }
    let writer = app.caller(Scope::BuildsWrite).await;
    writer.create().await;
    writer.create().await;
    Answer::of(caller.get("/somewhere/else"))
        .await
        .problem(404, "not_found");
    let answer = Answer::of(app.anonymous().get("/metrics")).await;
    assert!(
        answer
            .header("content-type")
            .starts_with("application/openmetrics-text")
    );
    for line in [
        r#"kiln_http_requests_total{method="GET",path="/v1/builds/{id}",status="404"} 2"#,
        r#"kiln_http_requests_total{method="GET",path="unmatched",status="404"} 1"#,
        r#"kiln_http_request_duration_seconds_count{method="GET",path="/v1/builds/{id}"} 2"#,
        r#"kiln_http_problems_total{code="build_not_found"} 2"#,
        r#"kiln_builds{state="queued"} 2"#,
        r#"kiln_builds{state="running"} 0"#,
        r#"kiln_workers{state="ready"} 0"#,
        "kiln_builds_orphaned 0",
        "kiln_database_up 1",
        "kiln_http_streams 0",
        "# EOF",
    ] {
        assert!(
            answer.text.lines().any(|had| had == line),
            "{line} is not in\n{}",
            answer.text
        );
    }
    assert!(!answer.text.contains("somewhere"));
    app.stop().await;
}

#[sqlx::test]
async fn the_description_is_served(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let answer = Answer::of(app.anonymous().get("/openapi.json")).await;
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(
        answer.json(),
        serde_json::to_value(kiln::http::openapi()).expect("serialises")
    );
    app.stop().await;
}

#[sqlx::test]
async fn links_begin_with_the_external_url(pool: PgPool) {
    let app = TestApp::start_with(&pool, |app| {
        app.external_url = Some("https://ci.example/kiln/".parse().expect("a URL"));
        app.limits = Arc::default();
    })
    .await;
    let build = app.caller(Scope::BuildsWrite).await.create().await;
    let this = format!(
        "https://ci.example/kiln/v1/builds/{}",
        build["id"].as_str().expect("an id")
    );
    assert_eq!(build["links"]["self"], this);
    assert_eq!(build["links"]["logs"], format!("{this}/logs"));
    app.stop().await;
}

#[sqlx::test]
async fn the_page_needs_nothing_from_elsewhere(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let answer = Answer::of(app.anonymous().get("/docs")).await;
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (StatusCode::OK, "text/html; charset=utf-8")
    );
    for elsewhere in ["http://", "https://", "src=", "@import", ": url("] {
        assert!(!answer.text.contains(elsewhere), "{elsewhere}");
    }
    // The policy names style and script as they are: with any others a browser would show nothing.
    let policy = answer.header("content-security-policy");
    assert!(policy.starts_with("default-src 'none'"), "{policy}");
    for element in ["script", "style"] {
        let (_, rest) = answer.text.split_once(&format!("<{element}>")).expect("begins");
        let (content, _) = rest.split_once(&format!("</{element}>")).expect("ends");
        let hash = base64::Engine::encode(
            &base64::prelude::BASE64_STANDARD,
            <sha2::Sha256 as sha2::Digest>::digest(content),
        );
        assert!(
            policy.contains(&format!("{element}-src 'sha256-{hash}'")),
            "{element}: {policy}"
        );
    }
    app.stop().await;
}
