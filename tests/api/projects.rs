//! `/v1/projects` and the tokens below.

mod hooks;
mod limits;
mod secrets;
mod update;

use kiln::domain::project::Scope;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::PgPool;

use super::support::{Answer, TestApp, pointers};

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().expect("items");
    items
        .iter()
        .map(|item| item["name"].as_str().expect("a name"))
        .collect()
}

#[sqlx::test]
async fn projects_are_made_listed_and_looked_at(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let admin = app.caller(Scope::Admin).await;
    for name in ["b", "a", "c"] {
        let answer = Answer::of(admin.post("/v1/projects").json(&json!({"name": name}))).await;
        assert_eq!(answer.status, StatusCode::CREATED);
        assert_eq!(answer.header("location"), format!("/v1/projects/{name}"));
        assert_eq!(answer.json()["name"], name);
    }
    Answer::of(admin.post("/v1/projects").json(&json!({"name": "a"})))
        .await
        .problem(409, "project_exists");
    let problem = Answer::of(admin.post("/v1/projects").json(&json!({"name": "A_b", "nmae": 1})))
        .await
        .problem(422, "invalid_request");
    assert_eq!(pointers(&problem), ["/name", "/nmae"]);

    let first = Answer::of(admin.get("/v1/projects?limit=3")).await.json();
    assert_eq!(names(&first), ["a", "b", "c"]);
    let next = first["next"].as_str().expect("a cursor");
    let second = Answer::of(admin.get(&format!("/v1/projects?limit=3&cursor={next}")))
        .await
        .json();
    assert_eq!((names(&second), &second["next"]), (vec!["default"], &Value::Null));

    assert_eq!(Answer::of(admin.get("/v1/projects/a")).await.json()["name"], "a");
    Answer::of(admin.get("/v1/projects/x"))
        .await
        .problem(404, "project_not_found");
    Answer::of(admin.get("/v1/projects/A_b"))
        .await
        .problem(404, "project_not_found");

    let reader = app.caller_of("b", Scope::BuildsRead).await;
    assert_eq!(names(&Answer::of(reader.get("/v1/projects")).await.json()), ["b"]);
    assert_eq!(Answer::of(reader.get("/v1/projects/b")).await.json()["name"], "b");
    app.stop().await;
}

#[sqlx::test]
async fn a_token_is_shown_once_works_and_can_be_deleted(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let owner = app.caller_of("team", Scope::ProjectAdmin).await;
    let path = "/v1/projects/team/tokens";
    let request = json!({"name": "ci", "scopes": ["builds:write"], "expires_at": "2999-01-01T00:00:00Z"});
    let answer = Answer::of(owner.post(path).json(&request)).await;
    assert_eq!(answer.status, StatusCode::CREATED);
    let made = answer.json();
    let secret = made["token"].as_str().expect("a token");
    assert!(secret.starts_with("kiln_") && secret.len() == 48, "{secret}");
    assert_eq!(made["expires_at"], "2999-01-01T00:00:00Z");

    let build = app.bearer(secret).create().await;
    assert_eq!(build["project"], "team");

    let listed = Answer::of(owner.get(path)).await;
    let known = owner.get(path).header("if-none-match", listed.header("etag"));
    assert_eq!(Answer::of(known).await.status, StatusCode::NOT_MODIFIED);
    let items = listed.json()["items"].as_array().expect("items").clone();
    assert_eq!(items.len(), 2);
    assert_eq!(
        (&items[1]["id"], &items[1]["scopes"]),
        (&made["id"], &json!(["builds:write"]))
    );
    assert!(!listed.text.contains(secret));

    let one = format!("{path}/{}", made["id"].as_str().expect("an id"));
    let stranger = app.caller_of("other", Scope::ProjectAdmin).await;
    Answer::of(stranger.request(Method::DELETE, &one))
        .await
        .problem(404, "project_not_found");
    assert_eq!(
        Answer::of(owner.request(Method::DELETE, &one)).await.status,
        StatusCode::NO_CONTENT
    );
    Answer::of(owner.request(Method::DELETE, &one))
        .await
        .problem(404, "token_not_found");
    Answer::of(owner.request(Method::DELETE, &format!("{path}/x")))
        .await
        .problem(404, "token_not_found");
    Answer::of(app.bearer(secret).get("/v1/builds"))
        .await
        .problem(401, "unauthenticated");
    app.stop().await;
}

#[sqlx::test]
async fn nobody_can_give_away_more_than_they_have(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let owner = app.caller(Scope::ProjectAdmin).await;
    let request = json!({"name": "x", "scopes": ["builds:read", "admin"]});
    let problem = Answer::of(owner.post("/v1/projects/default/tokens").json(&request))
        .await
        .problem(403, "insufficient_scope");
    assert_eq!(pointers(&problem), ["/scopes/1"]);
    assert_eq!(
        Answer::of(owner.get("/v1/projects/default/tokens")).await.json()["items"]
            .as_array()
            .map(Vec::len),
        Some(1)
    );

    let admin = app.caller(Scope::Admin).await;
    let answer = Answer::of(admin.post("/v1/projects/default/tokens").json(&request)).await;
    assert_eq!(answer.status, StatusCode::CREATED);
    Answer::of(admin.post("/v1/projects/nowhere/tokens").json(&request))
        .await
        .problem(404, "project_not_found");
    Answer::of(admin.get("/v1/projects/nowhere/tokens"))
        .await
        .problem(404, "project_not_found");
    app.stop().await;
}
