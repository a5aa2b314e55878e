//! `/v1/nodes`.

use kiln::domain::project::Scope;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::PgPool;

use super::support::{Answer, TestApp};

#[sqlx::test]
async fn nodes_that_fail_builds_are_listed_and_forgotten(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let admin = app.caller(Scope::Admin).await;
    let list = || async { Answer::of(admin.get("/v1/nodes")).await.json()["items"].clone() };
    assert_eq!(list().await, json!([]));

    let failure = json!({
        "build": "0191d2a0-7c1e-7000-8000-000000000001", "attempt": 2, "code": "node_lost",
        "message": "it went away", "at": "2026-11-24T00:00:00Z",
    });
    sqlx::query(
        "INSERT INTO nodes (name, failures, last_failed_at, avoided_until) VALUES
             ('a', jsonb_build_array($1::jsonb), now(), now() - interval '1 second'),
             ('b.example', jsonb_build_array($1::jsonb, $1::jsonb), now(), now() + interval '1 hour')",
    )
    .bind(&failure)
    .execute(&pool)
    .await
    .expect("stores");
    let nodes = list().await;
    assert_eq!(nodes[0]["name"], "b.example", "what is avoided comes first");
    assert!(nodes[0]["avoided_until"].is_string());
    assert_eq!(nodes[0]["failures"], json!([failure, failure]));
    assert_eq!(
        nodes[1],
        json!({"name": "a", "avoided_until": Value::Null, "failures": [failure]})
    );
    let metrics = Answer::of(app.anonymous().get("/metrics")).await.text;
    assert!(metrics.contains("kiln_nodes_avoided 1\n"), "{metrics}");

    let delete = |node: &str| Answer::of(admin.request(Method::DELETE, &format!("/v1/nodes/{node}")));
    assert_eq!(delete("b.example").await.status, 204);
    for missing in ["b.example", "No%20Node"] {
        delete(missing).await.problem(404, "node_not_found");
    }
    assert_eq!(list().await[0]["name"], "a");
    app.stop().await;
}

#[sqlx::test]
async fn nodes_are_the_administrators_affair(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::ProjectAdmin).await;
    for (method, path) in [(Method::GET, "/v1/nodes"), (Method::DELETE, "/v1/nodes/a")] {
        let answer = Answer::of(caller.request(method, path)).await;
        answer.problem(403, "insufficient_scope");
    }
    app.stop().await;
}
