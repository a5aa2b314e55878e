//! `GET /v1/builds`.

use kiln::domain::project::Scope;
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::api::{
    support::{Answer, Caller, TestApp, id},
    worker::Hand,
};

fn ids(list: &Value) -> Vec<String> {
    let items = list["items"].as_array().expect("items");
    items.iter().map(|build| id(build).to_owned()).collect()
}

async fn create(caller: &Caller<'_>, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for _ in 0..count {
        ids.insert(0, id(&caller.create().await).to_owned());
    }
    ids
}

#[sqlx::test]
async fn pages_follow_each_other_while_builds_arrive(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let expected = create(&caller, 7).await;
    let mut seen = Vec::new();
    let mut path = "/v1/builds?limit=3".to_owned();
    let mut sizes = Vec::new();
    loop {
        let page = Answer::of(caller.get(&path)).await.json();
        sizes.push(page["items"].as_array().expect("items").len());
        seen.extend(ids(&page));
        // A build that arrives in between moves nothing.
        caller.create().await;
        match page["next"].as_str() {
            Some(next) => path = format!("/v1/builds?limit=3&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(sizes, [3, 3, 1]);
    assert_eq!(seen, expected);

    // A page that is just full is the last one.
    let exact = Answer::of(caller.get("/v1/builds?limit=10")).await.json();
    assert_eq!((ids(&exact).len(), &exact["next"]), (10, &Value::Null));
    app.stop().await;
}

#[sqlx::test]
async fn lists_can_be_filtered(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let claimed = create(&caller, 1).await;
    Hand::claim(&pool, &app.signals).await;
    let queued = create(&caller, 2).await;
    let other = create(&app.caller_of("other", Scope::BuildsWrite).await, 1).await;
    let admin = app.caller(Scope::Admin).await;
    let list = |path: &'static str| async { ids(&Answer::of(admin.get(path)).await.json()) };

    let everything = [other.clone(), queued.clone(), claimed.clone()].concat();
    assert_eq!(list("/v1/builds").await, everything);
    assert_eq!(list("/v1/builds?project=other").await, other);
    assert_eq!(list("/v1/builds?state=starting").await, claimed);
    assert_eq!(list("/v1/builds?project=default&state=queued").await, queued);
    assert_eq!(list("/v1/builds?state=failed").await, Vec::<String>::new());
    let own = Answer::of(caller.get("/v1/builds?limit=200")).await.json();
    assert_eq!(ids(&own), [queued, claimed].concat());
    assert_eq!(own["next"], json!(null));
    // A filter that this version doesn't know is refused, not ignored.
    Answer::of(admin.get("/v1/builds?label=a"))
        .await
        .problem(400, "invalid_query");
    app.stop().await;
}
