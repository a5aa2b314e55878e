//! `/v1/projects/{project}/hooks`.

use kiln::{app::secrets::rotate, domain::project::Scope, http::Random, store::hooks::deliveries};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::api::{
    hooks::{Hook, push},
    support::{Answer, TestApp, keyring, pointers},
};

const COMMIT: &str = "3f786850e387550fdab836ed7e6dc881de23001b";
const OTHER: &str = "89e6c98d92887913cadf06b2adb97f26cde4849b";
const HOOKS: &str = "/v1/projects/default/hooks";

fn minimal() -> Value {
    json!({"name": "app", "forge": "github", "build": {"images": ["registry.example/app:{{short_sha}}"]}})
}

#[sqlx::test]
async fn a_hook_is_made_shown_changed_and_deleted(pool: PgPool) {
    let app = TestApp::start_with(&pool, |app| {
        app.external_url = Some("https://kiln.example/".parse().expect("a URL"));
    })
    .await;
    let owner = app.caller(Scope::ProjectAdmin).await;
    let made = Answer::of(owner.post(HOOKS).json(&minimal())).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
    let mut made = made.json();
    let secret = made["secret"].take().as_str().expect("a secret").to_owned();
    assert!(secret.starts_with("whsec_") && secret.len() == 50, "{secret}");
    let id = made["id"].as_str().expect("an id").to_owned();
    assert_eq!(made["url"], format!("https://kiln.example/hooks/{id}"));
    assert_eq!(made["events"], json!(["push", "tag", "manual"]));
    assert_eq!(
        (&made["forks"], &made["supersede"], &made["paths"]),
        (&json!(false), &json!("no"), &json!({"include": [], "exclude": []}))
    );

    let path = format!("{HOOKS}/{id}");
    let shown = Answer::of(owner.get(&path)).await;
    let listed = Answer::of(owner.get(HOOKS)).await;
    for answer in [&shown, &listed] {
        assert!(!answer.text.contains(&secret[6..]), "{}", answer.text);
    }
    made.as_object_mut().expect("an object").remove("secret");
    assert_eq!(shown.json(), made);
    assert_eq!(listed.json()["items"], json!([made]));
    let stored: Vec<(Vec<u8>,)> = sqlx::query_as("SELECT sealed FROM hook_secrets")
        .fetch_all(&pool)
        .await
        .expect("reads");
    assert!(!stored[0].0.windows(20).any(|part| part == &secret.as_bytes()[6..26]));

    let change = |body: Value| owner.request(Method::PATCH, &path).json(&body);
    let changed = Answer::of(change(json!({"branches": ["main"], "skip_markers": []}))).await;
    assert_eq!(changed.status, StatusCode::OK, "{}", changed.text);
    let changed = changed.json();
    assert_eq!(
        (&changed["branches"], &changed["skip_markers"]),
        (&json!(["main"]), &json!([]))
    );
    assert_eq!(changed["build"], made["build"]);
    // What is null is as by default.
    let back = Answer::of(change(json!({"branches": null, "skip_markers": null})))
        .await
        .json();
    assert_eq!(
        (&back["branches"], &back["skip_markers"]),
        (&made["branches"], &made["skip_markers"])
    );
    for (body, pointer) in [
        (json!({"forge": "gitlab"}), "/forge"),
        (json!({"branch": []}), "/branch"),
        (json!({"name": null}), "/name"),
        (json!({"events": ["image"]}), "/events/0"),
    ] {
        let problem = Answer::of(change(body)).await.problem(422, "invalid_request");
        assert_eq!(pointers(&problem), [pointer]);
    }

    let gone = Answer::of(owner.request(Method::DELETE, &path)).await;
    assert_eq!(gone.status, StatusCode::NO_CONTENT);
    for method in [Method::GET, Method::DELETE] {
        Answer::of(owner.request(method, &path))
            .await
            .problem(404, "hook_not_found");
    }
    app.stop().await;
}

#[sqlx::test]
async fn only_who_manages_the_project_has_to_do_with_them(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let owner = app.caller(Scope::ProjectAdmin).await;
    let hook = Hook::make(&owner, &json!({})).await;
    let path = format!("{HOOKS}/{}", hook.id);
    let writer = app.caller(Scope::BuildsWrite).await;
    for request in [
        writer.get(HOOKS),
        writer.post(HOOKS).json(&minimal()),
        writer.get(&path),
        writer.get(&format!("{path}/deliveries")),
    ] {
        Answer::of(request).await.problem(403, "insufficient_scope");
    }
    let other = app.caller_of("other", Scope::ProjectAdmin).await;
    Answer::of(other.get(&path)).await.problem(404, "project_not_found");
    // Its own project doesn't have it either.
    let stolen = format!("/v1/projects/other/hooks/{}", hook.id);
    for request in [
        other.get(&stolen),
        other.request(Method::PATCH, &stolen).json(&json!({})),
        other.request(Method::DELETE, &stolen),
        other.post(&format!("{stolen}/rotate")).json(&json!({})),
        other.get(&format!("{stolen}/deliveries")),
    ] {
        Answer::of(request).await.problem(404, "hook_not_found");
    }
    let admin = app.caller(Scope::Admin).await;
    let nowhere = admin.post("/v1/projects/nowhere/hooks").json(&minimal());
    Answer::of(nowhere).await.problem(404, "project_not_found");
    app.stop().await;
}

#[sqlx::test]
async fn mistakes_are_told_when_a_hook_is_saved(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let owner = app.caller(Scope::ProjectAdmin).await;
    let body = json!({"forge": "github", "events": ["push"], "colour": 1, "build": [
        {"images": ["app:{{sha}}"], "timeout_seconds": 0}, {"images": ["registry.example/app:{{tga}}"]},
    ]});
    let problem = Answer::of(owner.post(HOOKS).json(&body))
        .await
        .problem(422, "invalid_request");
    let mut places = pointers(&problem);
    places.sort_unstable();
    assert_eq!(
        places,
        [
            "/build/0/images/0",
            "/build/0/timeout_seconds",
            "/build/1/images/0",
            "/colour",
            "/name"
        ]
    );
    // Secrets that aren't there.
    let mut body = minimal();
    body["build"]["source"] = json!({"credentials": "forge"});
    body["build"]["registry_credentials"] = json!(["registry"]);
    let problem = Answer::of(owner.post(HOOKS).json(&body))
        .await
        .problem(422, "invalid_request");
    assert_eq!(
        pointers(&problem),
        ["/build/source/credentials", "/build/registry_credentials/0"]
    );
    app.stop().await;
}

#[sqlx::test]
async fn two_secrets_are_good_while_one_replaces_the_other(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let owner = app.caller(Scope::ProjectAdmin).await;
    let hook = Hook::make(&owner, &json!({})).await;
    let path = format!("{HOOKS}/{}/rotate", hook.id);
    let rotate_to = async |body: Value| {
        let answer = Answer::of(owner.post(&path).json(&body)).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text);
        let answer = answer.json();
        let secret = answer["secret"].as_str().expect("a secret").to_owned();
        (secret, answer["secrets"].as_array().expect("secrets").len())
    };
    let fits = async |secret: &str| {
        let answer = Answer::of(hook.signed(&app, secret, "d-1", &push("main", OTHER, COMMIT))).await;
        answer.status.is_success()
    };
    let (second, good) = rotate_to(json!({})).await;
    assert_eq!(good, 2);
    assert!(fits(&hook.secret).await && fits(&second).await);
    let (third, good) = rotate_to(json!({"keep_old_seconds": 60})).await;
    assert_eq!(good, 2);
    assert!(!fits(&hook.secret).await && fits(&second).await && fits(&third).await);
    let (fourth, good) = rotate_to(json!({"keep_old_seconds": 0})).await;
    assert_eq!(good, 1);
    assert!(!fits(&third).await && fits(&fourth).await);
    let problem = Answer::of(owner.post(&path).json(&json!({"keep_old_seconds": -1}))).await;
    assert_eq!(
        pointers(&problem.problem(422, "invalid_request")),
        ["/keep_old_seconds"]
    );

    // Another key encrypts them, too.
    let rotated = rotate(&pool, &keyring(&[2, 1]), &Random::system())
        .await
        .expect("rotates");
    assert!(rotated.done >= 1 && rotated.stuck.is_empty(), "{rotated:?}");
    app.stop().await;
    let app = TestApp::start_with(&pool, |app| app.keyring = keyring(&[2])).await;
    let again = Answer::of(hook.signed(&app, &fourth, "d-2", &push("x", OTHER, COMMIT))).await;
    assert_eq!(again.status, StatusCode::CREATED, "{}", again.text);
    app.stop().await;
}

#[sqlx::test]
async fn deliveries_are_made_by_hand_tried_and_sent_again(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let owner = app.caller(Scope::ProjectAdmin).await;
    let hook = Hook::make(&owner, &json!({"branches": ["main"]})).await;
    let path = format!("{HOOKS}/{}/deliveries", hook.id);
    let deliver = async |body: Value| Answer::of(owner.post(&path).json(&body)).await;
    let main = json!({"repository": "team/app", "clone_url": "https://git.example/team/app.git", "branch": "main"});
    let with = |fields: Value| {
        let mut body = main.clone();
        for (name, value) in fields.as_object().expect("fields") {
            body[name] = value.clone();
        }
        body
    };

    let tried = deliver(with(json!({"dry_run": true, "event": "push", "commit": COMMIT}))).await;
    assert_eq!(tried.status, StatusCode::OK, "{}", tried.text);
    let tried = tried.json();
    assert_eq!(tried["outcome"], "tried");
    assert_eq!(
        tried["requests"][0]["images"],
        json!(["registry.example/team/app:main"])
    );
    assert_eq!(tried["requests"][0]["source"]["commit"], COMMIT);
    let ignored = deliver(with(json!({"dry_run": true, "branch": "feature"})))
        .await
        .json();
    assert_eq!(ignored["outcome"], "ignored");

    // By hand as often as one likes.
    for _ in 0..2 {
        let built = deliver(main.clone()).await;
        assert_eq!(built.status, StatusCode::CREATED, "{}", built.text);
    }
    let wrong = deliver(json!({"event": "push", "repository": "x", "colour": 1})).await;
    assert_eq!(pointers(&wrong.problem(422, "invalid_request")), ["/event", "/colour"]);

    // What wasn't wanted is, once the rules are others; what was built isn't built again.
    let feature = Answer::of(hook.push(&app, "d-1", &push("feature", OTHER, COMMIT)))
        .await
        .json();
    assert_eq!(feature["outcome"], "ignored");
    let change = owner
        .request(Method::PATCH, &format!("{HOOKS}/{}", hook.id))
        .json(&json!({"branches": null}));
    assert_eq!(Answer::of(change).await.status, StatusCode::OK);
    let earlier = feature["delivery"].as_str().expect("an id");
    let again = format!("{path}/{earlier}/redeliver");
    let built = Answer::of(owner.post(&again)).await;
    assert_eq!(built.status, StatusCode::CREATED, "{}", built.text);
    let built = built.json();
    assert_eq!(
        (&built["redelivery_of"], &built["sent_id"]),
        (&json!(earlier), &json!("d-1"))
    );
    let repeated = Answer::of(owner.post(&again)).await;
    assert_eq!(repeated.status, StatusCode::OK);
    assert_eq!(repeated.json()["builds"], built["builds"]);

    Answer::of(hook.signed(&app, "wrong", "d-2", &push("main", OTHER, COMMIT))).await;
    let refused = hook.deliveries(&owner).await[0]["id"]
        .as_str()
        .expect("an id")
        .to_owned();
    Answer::of(owner.post(&format!("{path}/{refused}/redeliver")))
        .await
        .problem(409, "delivery_unread");
    Answer::of(owner.post(&format!("{path}/{}/redeliver", hook.id)))
        .await
        .problem(404, "delivery_not_found");

    // Page by page, newest first.
    let all = hook.deliveries(&owner).await;
    assert_eq!(all.len(), 8);
    let mut paged = Vec::new();
    let mut next = String::new();
    loop {
        let page = Answer::of(owner.get(&format!("{path}?limit=3{next}"))).await.json();
        paged.extend(page["items"].as_array().expect("items").clone());
        match page["next"].as_str() {
            Some(cursor) => next = format!("&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(paged, all);
    app.stop().await;
}

#[sqlx::test]
async fn deliveries_are_kept_for_their_time(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let owner = app.caller(Scope::ProjectAdmin).await;
    let hook = Hook::make(&owner, &json!({})).await;
    let there = push("main", OTHER, COMMIT);
    assert_eq!(
        Answer::of(hook.push(&app, "d-1", &there)).await.status,
        StatusCode::CREATED
    );
    assert_eq!(deliveries::delete_old(&pool, 30).await.expect("deletes"), 0);
    sqlx::query("UPDATE hook_deliveries SET received_at = now() - interval '31 days'")
        .execute(&pool)
        .await
        .expect("updates");
    assert_eq!(deliveries::delete_old(&pool, 30).await.expect("deletes"), 1);
    assert!(hook.deliveries(&owner).await.is_empty());
    // What nobody remembers is new.
    assert_eq!(
        Answer::of(hook.push(&app, "d-1", &there)).await.status,
        StatusCode::CREATED
    );
    app.stop().await;
}
