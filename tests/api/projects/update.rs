//! `PATCH /v1/projects/{project}`.

use kiln::domain::project::Scope;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::api::support::{Answer, Caller, TestApp, id, minimal, pointers};

const PROJECT: &str = "/v1/projects/team";

async fn patch(caller: &Caller<'_>, body: &Value) -> Answer {
    Answer::of(caller.request(Method::PATCH, PROJECT).json(body)).await
}

/// The project's cache, as it is stored.
async fn stored(caller: &Caller<'_>) -> Value {
    Answer::of(caller.get(PROJECT)).await.json()["cache"].clone()
}

#[sqlx::test]
async fn a_default_cache_is_set_kept_and_taken_away(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let owner = app.caller_of("team", Scope::ProjectAdmin).await;
    let writer = app.caller_of("team", Scope::BuildsWrite).await;
    assert_eq!(stored(&owner).await, Value::Null);

    let short =
        json!({"from": ["registry.example/cache:latest"], "to": "registry.example/cache:latest", "mode": "min"});
    let long = json!({
        "from": ["registry.example/a:1", "registry.example/b:latest"], "to": "registry.example/a:1", "mode": "max",
    });
    let reading = json!({"from": ["registry.example/a:1"], "to": null, "mode": "min"});
    for (sent, cache) in [
        (json!("registry.example/cache"), &short),
        (
            json!({"from": ["registry.example/a:1", "registry.example/b"], "to": "registry.example/a:1", "mode": "max"}),
            &long,
        ),
        (json!({"from": ["registry.example/a:1"]}), &reading),
    ] {
        let answer = patch(&owner, &json!({"cache": sent})).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
        assert_eq!(answer.json()["name"], "team");
        assert_eq!(&answer.json()["cache"], cache);
        assert_eq!(&stored(&owner).await, cache);
        // A build that says nothing of its cache gets it, at its creation; one that says `false` doesn't.
        let build = writer.create().await;
        assert_eq!(&build["spec"]["cache"], cache);
        let mut request = minimal();
        request["cache"] = json!(false);
        let without = Answer::of(writer.post("/v1/builds").json(&request)).await.json();
        assert_eq!(without["spec"]["cache"], Value::Null);
    }

    // What isn't named stays.
    let answer = patch(&owner, &json!({})).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["cache"]), (200, &reading));
    let before = writer.create().await;
    let answer = patch(&owner, &json!({"cache": null})).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["cache"]), (200, &Value::Null));
    assert_eq!(stored(&owner).await, Value::Null);
    assert_eq!(writer.create().await["spec"]["cache"], Value::Null);
    let before = Answer::of(writer.get(&format!("/v1/builds/{}", id(&before))))
        .await
        .json();
    assert_eq!(before["spec"]["cache"], reading, "a build is what it was accepted as");
    app.stop().await;
}

#[sqlx::test]
async fn every_invalid_field_is_told_and_nothing_is_changed(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let owner = app.caller_of("team", Scope::ProjectAdmin).await;
    let cache = json!("registry.example/cache");
    let set = patch(&owner, &json!({"cache": cache})).await.json()["cache"].clone();
    for (body, places) in [
        (json!({"cahce": null}), vec!["/cahce"]),
        (
            json!({"cache": null, "name": "other", "created_at": 1}),
            vec!["/created_at", "/name"],
        ),
        (json!({"cache": false}), vec!["/cache"]),
        (json!({"cache": 7}), vec!["/cache"]),
        (json!({"cache": ["registry.example/cache"]}), vec!["/cache"]),
        (json!({"cache": "Not An Image"}), vec!["/cache"]),
        (
            json!({"cache": {"from": ["registry.example/a", 1, "B a d"], "to": [], "mode": "most", "form": null}}),
            vec![
                "/cache/form",
                "/cache/from/1",
                "/cache/from/2",
                "/cache/mode",
                "/cache/to",
            ],
        ),
        (
            json!({"cache": {"from": vec!["registry.example/a"; 9]}}),
            vec!["/cache/from"],
        ),
        (json!(["cache"]), vec![""]),
        (json!(null), vec![""]),
    ] {
        let problem = patch(&owner, &body).await.problem(422, "invalid_request");
        let mut named = pointers(&problem);
        named.sort_unstable();
        assert_eq!(named, places, "{body}");
    }
    for body in ["", "{", "{\"cache\": null} x"] {
        let request = owner
            .request(Method::PATCH, PROJECT)
            .header("content-type", "application/json");
        let answer = Answer::of(request.body(body)).await;
        answer.problem(400, "malformed_json");
    }
    assert_eq!(stored(&owner).await, set);
    app.stop().await;
}

#[sqlx::test]
async fn only_who_administers_a_project_changes_it(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let change = json!({"cache": "registry.example/stranger"});
    for scope in [Scope::BuildsRead, Scope::BuildsWrite] {
        let caller = app.caller_of("team", scope).await;
        patch(&caller, &change).await.problem(403, "insufficient_scope");
        // Who may not change it isn't told what is wrong with the change.
        patch(&caller, &json!({"cahce": 1}))
            .await
            .problem(403, "insufficient_scope");
    }
    let stranger = app.caller_of("other", Scope::ProjectAdmin).await;
    patch(&stranger, &change).await.problem(404, "project_not_found");
    patch(&app.anonymous(), &change).await.problem(401, "unauthenticated");
    let owner = app.caller_of("team", Scope::ProjectAdmin).await;
    assert_eq!(stored(&owner).await, Value::Null);

    let admin = app.caller(Scope::Admin).await;
    assert_eq!(patch(&admin, &change).await.status, 200);
    for nowhere in ["/v1/projects/nowhere", "/v1/projects/Not_A_Name"] {
        let answer = Answer::of(admin.request(Method::PATCH, nowhere).json(&change)).await;
        answer.problem(404, "project_not_found");
    }
    app.stop().await;
}
