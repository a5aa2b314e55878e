//! `/v1/projects/{project}/secrets`, and builds that name what is there.

use kiln::{
    app::secrets::rotate,
    domain::project::Scope,
    http::Random,
    store::secrets::{self, seal::Place},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::PgPool;

use super::super::support::{Answer, Caller, TestApp, keyring, minimal, pointers};

const VALUE: &str = "hunter2hunter2";
const KEY: &str = "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n";
const HOSTS: &str = "git.example ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIG3z2EEepuhYoHOEcgrOCUiYQactSvJshIIDeGc7ROvs";

async fn put(caller: &Caller<'_>, name: &str, body: &Value) -> Answer {
    let path = format!("/v1/projects/default/secrets/{name}");
    Answer::of(caller.request(Method::PUT, &path).json(body)).await
}

fn token() -> Value {
    json!({"kind": "git", "data": {"token": VALUE}})
}

fn registry(host: &str) -> Value {
    json!({"kind": "registry", "data": {"registry": host, "username": "ann", "password": VALUE}})
}

fn build_value() -> Value {
    json!({"kind": "build", "data": {"value": VALUE}})
}

fn ssh_key() -> Value {
    json!({"kind": "git", "data": {"ssh_private_key": KEY, "known_hosts": HOSTS}})
}

#[sqlx::test]
async fn what_goes_in_never_comes_out(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let owner = app.caller(Scope::ProjectAdmin).await;
    let made = put(&owner, "forge", &token()).await;
    assert_eq!(made.status, StatusCode::CREATED, "{}", made.text);
    let secret = made.json();
    assert_eq!(
        (&secret["name"], &secret["kind"], &secret["holds"], &secret["registry"]),
        (&json!("forge"), &json!("git"), &json!("token"), &Value::Null)
    );
    let replaced = put(&owner, "forge", &registry("Registry.Example")).await;
    assert_eq!(replaced.status, StatusCode::OK);
    let secret = replaced.json();
    assert_eq!(
        (&secret["kind"], &secret["registry"]),
        (&json!("registry"), &json!("registry.example"))
    );
    assert_eq!(put(&owner, "a.value", &build_value()).await.status, StatusCode::CREATED);

    let list = Answer::of(owner.get("/v1/projects/default/secrets")).await;
    let known = owner
        .get("/v1/projects/default/secrets")
        .header("if-none-match", list.header("etag"));
    assert_eq!(Answer::of(known).await.status, StatusCode::NOT_MODIFIED);
    let names: Vec<_> = list.json()["items"]
        .as_array()
        .expect("items")
        .iter()
        .map(|item| item["name"].clone())
        .collect();
    assert_eq!(names, ["a.value", "forge"]);
    let one = Answer::of(owner.get("/v1/projects/default/secrets/forge")).await;
    assert_eq!(one.json(), secret);
    for answer in [made, replaced, list, one] {
        assert!(!answer.text.contains(VALUE), "{}", answer.text);
    }
    let stored: Vec<(Vec<u8>,)> = sqlx::query_as("SELECT sealed FROM secrets")
        .fetch_all(&pool)
        .await
        .expect("reads");
    assert_eq!(stored.len(), 2);
    for (sealed,) in stored {
        assert!(!sealed.windows(VALUE.len()).any(|part| part == VALUE.as_bytes()));
    }

    let gone = Answer::of(owner.request(Method::DELETE, "/v1/projects/default/secrets/forge")).await;
    assert_eq!(gone.status, StatusCode::NO_CONTENT);
    for method in [Method::GET, Method::DELETE] {
        Answer::of(owner.request(method, "/v1/projects/default/secrets/forge"))
            .await
            .problem(404, "secret_not_found");
    }
    app.stop().await;
}

#[sqlx::test]
async fn only_who_manages_the_project_has_to_do_with_them(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let writer = app.caller(Scope::BuildsWrite).await;
    put(&writer, "x", &token()).await.problem(403, "insufficient_scope");
    for path in ["/v1/projects/default/secrets", "/v1/projects/default/secrets/x"] {
        Answer::of(writer.get(path)).await.problem(403, "insufficient_scope");
    }
    let other = app.caller_of("other", Scope::ProjectAdmin).await;
    put(&other, "x", &token()).await.problem(404, "project_not_found");
    let admin = app.caller(Scope::Admin).await;
    let nowhere = admin
        .request(Method::PUT, "/v1/projects/nowhere/secrets/x")
        .json(&token());
    Answer::of(nowhere).await.problem(404, "project_not_found");
    app.stop().await;
}

#[sqlx::test]
async fn mistakes_are_told_by_their_place_and_not_repeated(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let owner = app.caller(Scope::ProjectAdmin).await;
    let body =
        json!({"kind": "registry", "data": {"registry": "https://x.example", "username": "a:b", "pasword": VALUE}});
    let answer = put(&owner, "x", &body).await;
    let problem = answer.problem(422, "invalid_request");
    assert_eq!(
        pointers(&problem),
        ["/data/registry", "/data/username", "/data/password", "/data/pasword"]
    );
    assert!(!answer.text.contains(VALUE), "{}", answer.text);
    let refused = put(&owner, "Not-A-Name", &token()).await;
    assert_eq!(pointers(&refused.problem(422, "invalid_request")), ["/name"]);
    let both = put(&owner, "Not-A-Name", &json!({"kind": "git", "data": {}})).await;
    assert_eq!(pointers(&both.problem(422, "invalid_request")), ["/name", "/data"]);
    // What isn't a name has nothing behind it.
    for method in [Method::GET, Method::DELETE] {
        Answer::of(owner.request(method, "/v1/projects/default/secrets/Not-A-Name"))
            .await
            .problem(404, "secret_not_found");
    }

    let bare = TestApp::start_with(&pool, |app| {
        app.keyring = kiln::store::secrets::seal::Keyring::default();
    })
    .await;
    let owner = bare.caller(Scope::ProjectAdmin).await;
    let problem = put(&owner, "x", &token()).await.problem(503, "secrets_not_configured");
    assert!(problem["detail"].as_str().expect("words").contains("KILN_SECRETS_KEY"));
    bare.stop().await;
    app.stop().await;
}

#[sqlx::test]
async fn builds_name_secrets_that_are_there_and_fit(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let owner = app.caller(Scope::ProjectAdmin).await;
    for (name, body) in [
        ("forge", token()),
        ("key", ssh_key()),
        ("hub", registry("registry.example")),
        ("hub2", registry("registry.example")),
        ("npm", build_value()),
    ] {
        assert_eq!(put(&owner, name, &body).await.status, StatusCode::CREATED);
    }
    let request = |change: &dyn Fn(&mut Value)| {
        let mut request = minimal();
        change(&mut request);
        request
    };
    let good = request(&|request| {
        request["source"]["credentials"] = json!("forge");
        request["registry_credentials"] = json!("hub");
        request["secrets"] = json!({"NPM_TOKEN": "npm"});
        request["ssh"] = json!("key");
    });
    let accepted = Answer::of(owner.post("/v1/builds").json(&good)).await;
    assert_eq!(accepted.status, StatusCode::CREATED, "{}", accepted.text);
    let spec = &accepted.json()["spec"];
    assert_eq!(spec["registry_credentials"], json!(["hub"]));
    assert_eq!(spec["source"]["credentials"], "forge");
    assert!(!accepted.text.contains(VALUE));

    let bad = request(&|request| {
        request["source"]["credentials"] = json!("key");
        request["registry_credentials"] = json!(["hub", "hub2", "npm", "gone"]);
        request["secrets"] = json!({"A": "hub", "B": "nothing"});
        request["ssh"] = json!("forge");
    });
    let problem = Answer::of(owner.post("/v1/builds").json(&bad))
        .await
        .problem(422, "invalid_request");
    assert_eq!(
        pointers(&problem),
        [
            "/source/credentials",
            "/registry_credentials/1",
            "/registry_credentials/2",
            "/registry_credentials/3",
            "/secrets/A",
            "/secrets/B",
            "/ssh",
        ]
    );
    let single = request(&|request| request["registry_credentials"] = json!("gone"));
    let problem = Answer::of(owner.post("/v1/builds").json(&single))
        .await
        .problem(422, "invalid_request");
    assert_eq!(pointers(&problem), ["/registry_credentials"]);
    // Another project's secrets aren't there.
    let other = app.caller_of("other", Scope::BuildsWrite).await;
    Answer::of(other.post("/v1/builds").json(&good))
        .await
        .problem(422, "invalid_request");
    app.stop().await;
}

#[sqlx::test]
async fn a_repeated_request_is_answered_the_same_whatever_became_of_its_secrets(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let owner = app.caller(Scope::ProjectAdmin).await;
    put(&owner, "forge", &token()).await;
    let mut request = minimal();
    request["source"]["credentials"] = json!("forge");
    let send =
        async |key: &str| Answer::of(owner.post("/v1/builds").header("idempotency-key", key).json(&request)).await;
    let first = send("once").await;
    assert_eq!(first.status, StatusCode::CREATED);
    Answer::of(owner.request(Method::DELETE, "/v1/projects/default/secrets/forge")).await;
    let again = send("once").await;
    assert_eq!(
        (again.status, &again.json()["id"]),
        (StatusCode::OK, &first.json()["id"])
    );
    send("other").await.problem(422, "invalid_request");
    app.stop().await;
}

#[sqlx::test]
async fn rotation_encrypts_everything_with_the_current_key(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let owner = app.caller(Scope::ProjectAdmin).await;
    for number in 0..5 {
        put(&owner, &format!("s{number}"), &token()).await;
    }
    let stranger = TestApp::start_with(&pool, |app| app.keyring = keyring(&[9])).await;
    let owner = stranger.caller(Scope::ProjectAdmin).await;
    put(&owner, "stuck", &token()).await;
    stranger.stop().await;

    let (random, both, new) = (Random::system(), keyring(&[2, 1]), keyring(&[2]));
    let rotated = rotate(&pool, &both, &random).await.expect("rotates");
    assert_eq!((rotated.done, rotated.stuck), (5, vec!["default/stuck".to_owned()]));
    let again = rotate(&pool, &both, &random).await.expect("rotates");
    assert_eq!(again.done, 0);
    let project = "default".parse().expect("a name");
    let name = "s3".parse().expect("a name");
    let stored = secrets::named(&pool, &project, &[&name])
        .await
        .expect("reads")
        .remove(0);
    let place = Place {
        project: &project,
        name: &name,
        kind: stored.secret.kind,
    };
    let opened = new.open(place, &stored.sealed).expect("opens with the new key alone");
    assert!(String::from_utf8_lossy(&opened).contains(VALUE));
    app.stop().await;
}
