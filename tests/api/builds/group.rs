//! `group` of `POST /v1/builds`: newer builds take the place of older ones.

use kiln::domain::project::Scope;
use reqwest::StatusCode;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::api::{
    support::{Answer, Caller, TestApp, id, minimal, pointers, soon},
    worker::Hand,
};

fn request(key: &str, supersede: &str) -> Value {
    let mut request = minimal();
    request["group"] = json!({"key": key, "supersede": supersede});
    request
}

async fn create(caller: &Caller<'_>, key: &str, supersede: &str) -> Value {
    let answer = Answer::of(caller.post("/v1/builds").json(&request(key, supersede))).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
    answer.json()
}

async fn read(caller: &Caller<'_>, build: &Value) -> Value {
    Answer::of(caller.get(&format!("/v1/builds/{}", id(build))))
        .await
        .json()
}

async fn events(caller: &Caller<'_>, build: &Value) -> String {
    Answer::of(caller.get(&format!("/v1/builds/{}/events", id(build))))
        .await
        .text
}

#[sqlx::test]
async fn a_newer_build_takes_the_place_of_those_that_wait(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let stranger = app.caller_of("other", Scope::BuildsWrite).await;
    let running = create(&caller, "app/main", "no").await;
    let mut hand = Hand::claim(&pool, &app.signals).await;
    hand.run().await;
    let first = create(&caller, "app/main", "no").await;
    let second = create(&caller, "app/main", "queued").await;
    let bystanders = [
        running,
        create(&caller, "app/dev", "queued").await,
        create(&stranger, "app/main", "queued").await,
        caller.create().await,
    ];
    assert_eq!(
        second["spec"]["group"],
        json!({"key": "app/main", "supersede": "queued", "serialize": false})
    );
    assert_eq!(second["superseded_by"], Value::Null);
    let first = read(&caller, &first).await;
    assert_eq!(
        (&first["state"], &first["superseded_by"]),
        (&json!("cancelled"), &second["id"])
    );
    let told = events(&caller, &first).await;
    let superseded_by = format!(r#""superseded_by":"{}""#, id(&second));
    assert_eq!(told.matches(&superseded_by).count(), 1, "{told}");
    assert_eq!(told.matches("event: end\n").count(), 1, "{told}");

    for build in &bystanders[..2] {
        let build = read(&caller, build).await;
        assert_eq!(build["superseded_by"], Value::Null, "{build}");
        assert_ne!(build["state"], "cancelled");
    }
    let other = read(&stranger, &bystanders[2]).await;
    assert_eq!(other["state"], "queued");
    app.stop().await;
}

#[sqlx::test]
async fn a_newer_build_has_those_stopped_that_run(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let old = create(&caller, "k", "running").await;
    let mut hand = Hand::claim(&pool, &app.signals).await;
    hand.run().await;
    let mut told = app.signals.cancels();
    let new = create(&caller, "k", "running").await;
    let stopped = soon("the news", told.recv()).await.expect("news");
    assert_eq!(stopped.to_string(), id(&old));
    let old = read(&caller, &old).await;
    assert_eq!(
        (&old["state"], &old["superseded_by"]),
        (&json!("cancelling"), &new["id"])
    );
    assert_eq!(old["attempts"][0]["state"], "cancelling");
    // What is being stopped already isn't stopped for the next one.
    create(&caller, "k", "running").await;
    assert_eq!(read(&caller, &old).await["superseded_by"], new["id"]);
    assert_eq!(read(&caller, &new).await["state"], "cancelled");
    app.stop().await;
}

#[sqlx::test]
async fn a_repeated_request_and_a_retry_take_nobodys_place(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let ask = || {
        let request = caller.post("/v1/builds").json(&request("k", "running"));
        Answer::of(request.header("idempotency-key", "once"))
    };
    let first = ask().await.json();
    let second = create(&caller, "k", "running").await;
    let again = ask().await;
    assert_eq!(again.status, StatusCode::OK);
    assert_eq!(
        (&again.json()["id"], &again.json()["state"]),
        (&first["id"], &json!("cancelled"))
    );
    assert_eq!(read(&caller, &second).await["state"], "queued");

    let retry = Answer::of(caller.post(&format!("/v1/builds/{}/retry", id(&first)))).await;
    assert_eq!(retry.status, StatusCode::CREATED, "{}", retry.text);
    assert_eq!(retry.json()["spec"]["group"], first["spec"]["group"]);
    assert_eq!(read(&caller, &second).await["state"], "queued");
    // It is in the group all the same.
    let third = create(&caller, "k", "queued").await;
    for older in [&retry.json(), &second] {
        assert_eq!(read(&caller, older).await["superseded_by"], third["id"]);
    }
    app.stop().await;
}

#[sqlx::test]
async fn of_builds_that_are_accepted_at_once_one_is_the_newest(pool: PgPool) {
    let replicas = [TestApp::start(&pool).await, TestApp::start(&pool).await];
    let callers = [
        replicas[0].caller(Scope::BuildsWrite).await,
        replicas[1].caller(Scope::BuildsWrite).await,
    ];
    for supersede in ["queued", "running"] {
        let asked = (0..10).map(|n| create(&callers[n % 2], supersede, supersede));
        let mut newest = Vec::new();
        for build in futures::future::join_all(asked).await {
            let build = read(&callers[0], &build).await;
            if build["superseded_by"] == Value::Null {
                newest.push(build["state"].clone());
            }
        }
        assert_eq!(newest, ["queued"]);
    }
    for replica in replicas {
        replica.stop().await;
    }
}

#[sqlx::test]
async fn what_is_wrong_with_a_group_is_said(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let mut wrong = minimal();
    wrong["group"] = json!({"key": "a\nb", "supersede": "all", "serialise": true, "serialize": 1});
    let answer = Answer::of(caller.post("/v1/builds").json(&wrong)).await;
    let problem = answer.problem(422, "invalid_request");
    let mut found = pointers(&problem);
    found.sort_unstable();
    assert_eq!(
        found,
        ["/group/key", "/group/serialise", "/group/serialize", "/group/supersede"]
    );
    wrong["group"] = json!({});
    let answer = Answer::of(caller.post("/v1/builds").json(&wrong)).await;
    assert_eq!(pointers(&answer.problem(422, "invalid_request")), ["/group/key"]);
    app.stop().await;
}

#[sqlx::test]
async fn what_a_serialized_build_waits_for_is_shown(pool: PgPool) {
    let app = TestApp::start_with(&pool, |app| app.max_live_builds = 10).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let mut request = request("k", "no");
    request["group"]["serialize"] = json!(true);
    let first = Answer::of(caller.post("/v1/builds").json(&request)).await.json();
    // Its worker, which is alive.
    let _hand = Hand::claim(&pool, &app.signals).await;
    let second = Answer::of(caller.post("/v1/builds").json(&request)).await.json();
    let queue = Answer::of(caller.get(&format!("/v1/builds/{}/queue", id(&second))))
        .await
        .json();
    assert_eq!(queue["blocked_by"]["kind"], "group", "{queue}");
    let message = queue["blocked_by"]["message"].as_str().expect("words");
    assert!(message.contains(id(&first)), "{message}");
    app.stop().await;
}
