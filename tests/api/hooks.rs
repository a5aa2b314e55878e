//! `POST /hooks/{hook}`: what forges and registries send.

use hmac::{Hmac, KeyInit as _, Mac as _};
use kiln::domain::project::Scope;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use sha2::Sha256;
use sqlx::PgPool;

use super::support::{Answer, Caller, TestApp, pointers, soon};

const COMMIT: &str = "3f786850e387550fdab836ed7e6dc881de23001b";
const OTHER: &str = "89e6c98d92887913cadf06b2adb97f26cde4849b";

const THIRD: &str = "1cdcd819599cbb4099289dbbec762452f006cb40";

/// A hook of the project `default`, and what its sender knows.
pub(super) struct Hook {
    pub(super) id: String,
    pub(super) secret: String,
}

impl Hook {
    /// One for Gitea that builds pushes and tags, with these fields besides.
    pub(super) async fn make(owner: &Caller<'_>, fields: &Value) -> Self {
        let mut body = json!({
            "name": "app", "forge": "gitea", "build": {"images": ["registry.example/{{repository_path}}:{{ref_slug}}"]},
        });
        for (name, value) in fields.as_object().expect("fields") {
            body[name] = value.clone();
        }
        let made = Answer::of(owner.post("/v1/projects/default/hooks").json(&body)).await;
        assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
        let made = made.json();
        Self {
            id: made["id"].as_str().expect("an id").to_owned(),
            secret: made["secret"].as_str().expect("a secret").to_owned(),
        }
    }

    pub(super) fn path(&self) -> String {
        format!("/hooks/{}", self.id)
    }

    /// A push as Gitea sends it.
    pub(super) fn push(&self, app: &TestApp, delivery: &str, payload: &Value) -> RequestBuilder {
        self.signed(app, &self.secret, delivery, payload)
    }

    pub(super) fn signed(&self, app: &TestApp, secret: &str, delivery: &str, payload: &Value) -> RequestBuilder {
        let body = payload.to_string();
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("a key");
        mac.update(body.as_bytes());
        let request = app.anonymous().post(&self.path());
        request
            .header("content-type", "application/json")
            .header("x-gitea-event", "push")
            .header("x-gitea-delivery", delivery)
            .header("x-gitea-signature", hex::encode(mac.finalize().into_bytes()))
            .body(body)
    }

    pub(super) async fn deliveries(&self, owner: &Caller<'_>) -> Vec<Value> {
        let path = format!("/v1/projects/default/hooks/{}/deliveries", self.id);
        let list = Answer::of(owner.get(&path)).await.json();
        list["items"].as_array().expect("items").clone()
    }
}

/// A push of this commit to a branch, which was at another before.
pub(super) fn push(branch: &str, before: &str, after: &str) -> Value {
    json!({
        "ref": format!("refs/heads/{branch}"), "before": before, "after": after,
        "commits": [{"id": after, "message": "Change", "added": ["src/a"], "removed": [], "modified": []}],
        "total_commits": 1, "head_commit": {"id": after, "message": "Change"},
        "repository": {"full_name": "team/app", "clone_url": "https://git.example/team/app.git"},
    })
}

fn builds(answer: &Value) -> Vec<String> {
    let builds = answer["builds"].as_array().expect("builds");
    builds
        .iter()
        .map(|build| build["id"].as_str().expect("an id").to_owned())
        .collect()
}

async fn count(pool: &PgPool) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM builds")
        .fetch_one(pool)
        .await
        .expect("counts")
}

#[sqlx::test]
async fn a_push_becomes_a_build_that_knows_where_it_comes_from(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let owner = app.caller(Scope::ProjectAdmin).await;
    let hook = Hook::make(&owner, &json!({})).await;
    let answer = Answer::of(hook.push(&app, "d-1", &push("main", OTHER, COMMIT))).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
    let answer = answer.json();
    assert_eq!((&answer["outcome"], &answer["reason"]), (&json!("built"), &Value::Null));
    let url = answer["builds"][0]["url"].as_str().expect("a link").to_owned();

    let build = Answer::of(owner.get(&url)).await.json();
    assert_eq!(build["state"], "queued");
    assert_eq!(build["images"], json!(["registry.example/team/app:main"]));
    assert_eq!(
        build["spec"]["source"],
        json!({
            "type": "git", "url": "https://git.example/team/app.git", "ref": "refs/heads/main", "commit": COMMIT,
            "subdir": "", "submodules": false, "credentials": null,
        })
    );
    let origin = json!({
        "hook": hook.id, "delivery": answer["delivery"], "forge": "gitea", "repository": "team/app", "sha": COMMIT,
        "event": "push", "ref": "refs/heads/main", "pr": null,
    });
    assert_eq!(build["origin"], origin);
    let listed = Answer::of(owner.get("/v1/builds")).await.json();
    assert_eq!(listed["items"][0]["origin"], origin);

    // One that is made again is for the same event.
    Answer::of(owner.post(&format!("{url}/cancel"))).await;
    let again = Answer::of(owner.post(&format!("{url}/retry"))).await;
    assert_eq!(again.status, StatusCode::CREATED, "{}", again.text);
    assert_eq!(again.json()["origin"], origin);
    // One that a caller asks for is for none.
    assert_eq!(owner.create().await["origin"], Value::Null);
    app.stop().await;
}

#[sqlx::test]
async fn what_comes_again_is_answered_with_the_same_build(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let other = TestApp::start(&pool).await;
    let owner = app.caller(Scope::ProjectAdmin).await;
    let hook = Hook::make(&owner, &json!({})).await;
    let there = push("main", OTHER, COMMIT);
    let first = Answer::of(hook.push(&app, "d-1", &there)).await.json();
    // By the delivery's id, and by what happened.
    for (at, id) in [(&app, "d-1"), (&other, "d-1"), (&other, "d-2")] {
        let again = Answer::of(hook.push(at, id, &there)).await;
        assert_eq!(again.status, StatusCode::OK, "{}", again.text);
        let again = again.json();
        assert_eq!(again["outcome"], "repeated");
        assert_eq!(builds(&again), builds(&first));
    }
    assert_eq!(count(&pool).await, 1);
    // Away and back again: the branch's image has to be made once more.
    let back = push("main", THIRD, COMMIT);
    for (id, payload) in [("d-3", push("main", COMMIT, THIRD)), ("d-4", back)] {
        let moved = Answer::of(hook.push(&app, id, &payload)).await;
        assert_eq!(moved.status, StatusCode::CREATED, "{}", moved.text);
    }
    assert_eq!(count(&pool).await, 3);
    let outcomes: Vec<_> = hook
        .deliveries(&owner)
        .await
        .iter()
        .map(|one| one["outcome"].clone())
        .collect();
    assert_eq!(
        outcomes,
        ["built", "built", "repeated", "repeated", "repeated", "built"]
    );
    app.stop().await;
    other.stop().await;
}

#[sqlx::test]
async fn of_many_at_once_one_is_built(pool: PgPool) {
    let apps = [TestApp::start(&pool).await, TestApp::start(&pool).await];
    let owner = apps[0].caller(Scope::ProjectAdmin).await;
    let hook = Hook::make(
        &owner,
        &json!({"build": [
            {"images": ["registry.example/a:{{short_sha}}"]}, {"images": ["registry.example/b:{{short_sha}}"]},
        ]}),
    )
    .await;
    let payload = push("main", OTHER, COMMIT);
    // Half of them are sent again by the forge, half under an id of their own.
    let requests = (0..12).map(|number| {
        let id = if number % 2 == 0 {
            "d".to_owned()
        } else {
            format!("d-{number}")
        };
        Answer::of(hook.push(&apps[number / 2 % 2], &id, &payload))
    });
    let answers = futures::future::join_all(requests).await;
    let made: Vec<_> = answers
        .iter()
        .filter(|answer| answer.status == StatusCode::CREATED)
        .collect();
    assert_eq!(made.len(), 1);
    let expected = builds(&made[0].json());
    assert_eq!(expected.len(), 2);
    for answer in &answers {
        assert!(answer.status.is_success(), "{}", answer.text);
        assert_eq!(builds(&answer.json()), expected);
    }
    assert_eq!(count(&pool).await, 2);
    let [one, two] = apps;
    one.stop().await;
    two.stop().await;
}

#[sqlx::test]
async fn what_is_not_the_senders_is_refused_and_seen(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let owner = app.caller(Scope::ProjectAdmin).await;
    let hook = Hook::make(&owner, &json!({})).await;
    let payload = push("main", OTHER, COMMIT);
    let wrong = Answer::of(hook.signed(&app, "wrong", "d-1", &payload)).await;
    let refused = wrong.problem(401, "delivery_refused");
    let unsigned = app.anonymous().post(&hook.path()).body(payload.to_string());
    let unsigned = Answer::of(unsigned).await.problem(401, "delivery_refused");
    assert_eq!(refused["detail"], unsigned["detail"]);
    // Nothing is read of what nobody signed.
    let garbage = Answer::of(app.anonymous().post(&hook.path()).body("{")).await;
    garbage.problem(401, "delivery_refused");
    let deliveries = hook.deliveries(&owner).await;
    assert_eq!(deliveries.len(), 3);
    for delivery in &deliveries {
        assert_eq!(
            (&delivery["outcome"], &delivery["events"]),
            (&json!("refused"), &json!([]))
        );
        assert!(
            delivery["reason"].is_string() && delivery["sent_id"].is_null(),
            "{delivery}"
        );
    }
    // They don't fill the database.
    for _ in 0..60 {
        Answer::of(hook.signed(&app, "wrong", "d-1", &payload))
            .await
            .problem(401, "delivery_refused");
    }
    let kept: i64 = sqlx::query_scalar("SELECT count(*) FROM hook_deliveries")
        .fetch_one(&pool)
        .await
        .expect("counts");
    assert_eq!(kept, 60);

    for path in ["/hooks/0198c0de-5eed-7000-8000-000000000000", "/hooks/x"] {
        Answer::of(app.anonymous().post(path).body("{}"))
            .await
            .problem(404, "hook_not_found");
    }
    let large = app.anonymous().post(&hook.path()).body(vec![b' '; (5 << 20) + 1]);
    Answer::of(large).await.problem(413, "body_too_large");
    assert_eq!(count(&pool).await, 0);
    app.stop().await;
}

#[sqlx::test]
async fn what_no_rule_wants_has_its_reason(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let owner = app.caller(Scope::ProjectAdmin).await;
    let hook = Hook::make(&owner, &json!({"branches": ["main"]})).await;
    let answer = Answer::of(hook.push(&app, "d-1", &push("feature", OTHER, COMMIT))).await;
    assert_eq!(answer.status, StatusCode::OK);
    let answer = answer.json();
    assert_eq!((&answer["outcome"], &answer["builds"]), (&json!("ignored"), &json!([])));
    assert!(
        answer["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("`feature`")),
        "{answer}"
    );
    Answer::of(hook.push(&app, "d-2", &json!({"ref": 1})))
        .await
        .problem(400, "malformed_delivery");
    let deliveries = hook.deliveries(&owner).await;
    assert_eq!(deliveries[0]["outcome"], "malformed");
    assert_eq!(
        (&deliveries[1]["reason"], &deliveries[1]["sent_id"]),
        (&answer["reason"], &json!("d-1"))
    );
    assert_eq!(deliveries[1]["events"][0]["branch"], "feature");
    app.stop().await;
}

#[sqlx::test]
async fn a_newer_build_takes_the_place_of_older_ones_of_its_ref(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let owner = app.caller(Scope::ProjectAdmin).await;
    let hook = Hook::make(&owner, &json!({"supersede": "queued"})).await;
    let mut made = Vec::new();
    for (id, payload) in [
        ("d-1", push("main", OTHER, COMMIT)),
        ("d-2", push("feature", OTHER, COMMIT)),
        ("d-3", push("main", COMMIT, OTHER)),
    ] {
        let answer = Answer::of(hook.push(&app, id, &payload)).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
        made.extend(builds(&answer.json()));
    }
    let mut states = Vec::new();
    for id in &made {
        let build = Answer::of(owner.get(&format!("/v1/builds/{id}"))).await.json();
        states.push((build["state"].clone(), build["superseded_by"].clone()));
    }
    assert_eq!(states[0], (json!("cancelled"), json!(made[2])));
    assert_eq!((&states[1].0, &states[2].0), (&json!("queued"), &json!("queued")));
    app.stop().await;
}

#[sqlx::test]
async fn what_can_not_be_built_any_more_is_told_and_can_come_again(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let owner = app.caller(Scope::ProjectAdmin).await;
    let secret = "/v1/projects/default/secrets/forge";
    let store = || {
        owner
            .request(Method::PUT, secret)
            .json(&json!({"kind": "git", "data": {"token": "x"}}))
    };
    assert_eq!(Answer::of(store()).await.status, StatusCode::CREATED);
    let hook = Hook::make(
        &owner,
        &json!({"build": {"source": {"credentials": "forge"}, "images": ["registry.example/app:{{sha}}"]}}),
    )
    .await;
    Answer::of(owner.request(Method::DELETE, secret)).await;
    let payload = push("main", OTHER, COMMIT);
    let problem = Answer::of(hook.push(&app, "d-1", &payload))
        .await
        .problem(422, "invalid_request");
    assert_eq!(pointers(&problem), ["/source/credentials"]);
    let delivery = &hook.deliveries(&owner).await[0];
    assert_eq!(delivery["outcome"], "invalid");
    assert!(
        delivery["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains("/source/credentials")),
        "{delivery}"
    );
    // Nothing was built, so the same delivery can still be.
    assert_eq!(Answer::of(store()).await.status, StatusCode::CREATED);
    let again = Answer::of(hook.push(&app, "d-1", &payload)).await;
    assert_eq!(again.status, StatusCode::CREATED, "{}", again.text);
    assert_eq!(count(&pool).await, 1);
    app.stop().await;
}

/// The lines of the documentation, in one shell from top to bottom.
#[sqlx::test]
async fn the_documentations_lines_work_as_they_stand(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let owner = app.caller(Scope::ProjectAdmin).await;
    let document = include_str!("../../docs/hooks.md");
    let blocks = document.split("```sh\n").skip(1);
    let mut script = "curl() { command curl --fail-with-body --noproxy '*' \"$@\"; echo; }\nset -eu\n".to_owned();
    for block in blocks {
        script.push_str(block.split("```").next().expect("an end"));
    }
    let shell = tokio::process::Command::new("bash")
        .args(["-c", &script])
        .env("KILN", app.base())
        .env("ADMIN_TOKEN", owner.token())
        .output();
    let output = soon("the shell ends", shell).await.expect("bash runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for outcome in ["\"outcome\":\"built\"", "\"outcome\":\"tried\"", "\"secret\":\"whsec_"] {
        assert!(said.contains(outcome), "{outcome} in {said}");
    }
    assert_eq!(count(&pool).await, 1);
    app.stop().await;
}

/// A registry that can send nothing but the address it was given.
#[sqlx::test]
async fn a_moved_base_image_is_a_reason_to_build(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let owner = app.caller(Scope::ProjectAdmin).await;
    let hook = Hook::make(
        &owner,
        &json!({
            "forge": "registry", "repositories": ["docker.io/team/*"], "tags": ["latest"],
            "build": {
                "source": {"type": "git", "url": "https://git.example/team/app.git", "ref": "main"},
                "images": ["registry.example/app:1"], "build_args": {"BASE": "{{image}}:{{tag}}"},
            },
        }),
    )
    .await;
    let send = |token: &str, at: u64| {
        let payload = json!({
            "push_data": {"pushed_at": at, "tag": "latest"}, "repository": {"repo_name": "team/base"},
        });
        let request = app.anonymous().post(&hook.path()).query(&[("token", token)]);
        request.body(payload.to_string())
    };
    Answer::of(send("wrong", 1)).await.problem(401, "delivery_refused");
    let first = Answer::of(send(&hook.secret, 1)).await;
    assert_eq!(first.status, StatusCode::CREATED, "{}", first.text);
    assert_eq!(Answer::of(send(&hook.secret, 1)).await.status, StatusCode::OK);
    assert_eq!(Answer::of(send(&hook.secret, 2)).await.status, StatusCode::CREATED);
    let url = first.json()["builds"][0]["url"].as_str().expect("a link").to_owned();
    let build = Answer::of(owner.get(&url)).await.json();
    assert_eq!(
        build["spec"]["build_args"],
        json!({"BASE": "docker.io/team/base:latest"})
    );
    assert_eq!(build["origin"]["event"], "image");
    app.stop().await;
}
