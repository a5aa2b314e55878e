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
    for asker in [&admin, &caller] {
        Answer::of(asker.get("/v1/builds?project=nobody"))
            .await
            .problem(404, "project_not_found");
    }
    assert_eq!(list("/v1/builds?state=starting").await, claimed);
    assert_eq!(list("/v1/builds?project=default&state=queued").await, queued);
    assert_eq!(list("/v1/builds?state=failed").await, Vec::<String>::new());
    let own = Answer::of(caller.get("/v1/builds?limit=200")).await.json();
    assert_eq!(ids(&own), [queued, claimed].concat());
    assert_eq!(own["next"], json!(null));
    // A filter that isn't known is refused, not ignored.
    Answer::of(admin.get("/v1/builds?labels=a"))
        .await
        .problem(400, "invalid_query");
    app.stop().await;
}

#[sqlx::test]
async fn builds_are_found_by_what_was_asked_for(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let create = |reference: &str, image: &str, labels: Value| {
        let request = json!({
            "source": {"type": "git", "url": "https://git.example/app.git", "ref": reference},
            "images": [image], "labels": labels,
        });
        let request = caller.post("/v1/builds").json(&request);
        async { id(&Answer::of(request).await.json()).to_owned() }
    };
    let one = create("main", "registry.example/app:1", json!({"team": "a", "ci": ""})).await;
    let two = create("main", "registry.example/app:2", json!({"team": "b"})).await;
    let three = create("refs/tags/v1", "registry.example/other:1", json!({"team": "a"})).await;
    // A build of another project with the same terms is not in sight.
    app.caller_of("other", Scope::BuildsWrite).await.create().await;

    for (query, expected) in [
        ("ref=main", vec![&two, &one]),
        ("ref=refs/tags/v1", vec![&three]),
        ("image=registry.example/app:1", vec![&one]),
        ("image=registry.example/app", vec![&two, &one]),
        ("label=team", vec![&three, &two, &one]),
        ("label=team=a", vec![&three, &one]),
        ("label=team%3Da&label=ci", vec![&one]),
        ("label=team=a&ref=main", vec![&one]),
        ("label=team&state=queued&state=failed", vec![&three, &two, &one]),
        ("label=team&state=failed", vec![]),
        ("label=tea", vec![]),
        ("state=queued&state=running", vec![&three, &two, &one]),
        (
            "created_after=2020-01-01T00:00:00Z&image=registry.example/other",
            vec![&three],
        ),
        ("created_before=2020-01-01T00:00:00%2B02:00", vec![]),
        ("created_before=2020-01-01T00:00:00Z&state=queued", vec![]),
    ] {
        let answer = Answer::of(caller.get(&format!("/v1/builds?{query}"))).await;
        assert_eq!(answer.status, 200, "{query}: {}", answer.text);
        assert_eq!(ids(&answer.json()).iter().collect::<Vec<_>>(), expected, "{query}");
    }

    // The pages of a search follow each other, too.
    let first = Answer::of(caller.get("/v1/builds?label=team&limit=2")).await.json();
    let next = first["next"].as_str().expect("another page");
    let second = Answer::of(caller.get(&format!("/v1/builds?label=team&limit=2&cursor={next}"))).await;
    assert_eq!(
        (ids(&second.json()), second.json()["next"].clone()),
        (vec![one], Value::Null)
    );
    app.stop().await;
}

#[sqlx::test]
async fn times_bound_a_list_exactly(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let mut builds = Vec::new();
    for _ in 0..3 {
        builds.push(caller.create().await);
    }
    let middle = builds[1]["created_at"].as_str().expect("a time");
    for (parameter, expected) in [("created_after", 2), ("created_before", 0)] {
        for state in ["", "&state=queued"] {
            let list = Answer::of(caller.get(&format!("/v1/builds?{parameter}={middle}{state}")))
                .await
                .json();
            assert_eq!(ids(&list), [id(&builds[expected])], "{parameter}{state}");
        }
    }
    app.stop().await;
}

#[sqlx::test]
async fn every_bad_filter_is_named(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsRead).await;
    let query = "state=queued&state=quued&label=a b&label=ok&image=app&ref=-x&created_after=monday&cursor=x&limit=0\
                 &project=A&limit=1&nonsense=1";
    let problem = Answer::of(caller.get(&format!("/v1/builds?{query}")))
        .await
        .problem(400, "invalid_query");
    let mut named: Vec<_> = problem["errors"]
        .as_array()
        .expect("errors")
        .iter()
        .map(|error| error["parameter"].as_str().expect("a parameter"))
        .collect();
    named.sort_unstable();
    named.dedup();
    assert_eq!(
        named,
        [
            "created_after",
            "cursor",
            "image",
            "label",
            "limit",
            "nonsense",
            "project",
            "ref",
            "state"
        ]
    );
    app.stop().await;
}
