//! What goes wrong before any operation is reached, and what goes wrong below them.

use std::{sync::Arc, time::Duration};

use kiln::{
    domain::{clock::Clock, project::Scope},
    store,
};
use reqwest::Method;
use serde_json::json;
use sqlx::PgPool;

use super::support::{Answer, TestApp, minimal, pointers};

#[sqlx::test]
async fn paths_and_methods_that_are_not_there_are_problems(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let anyone = app.anonymous();
    for path in ["/", "/v1", "/v1/nothing", "/v1/builds/", "/favicon.ico"] {
        let problem = Answer::of(anyone.get(path)).await.problem(404, "not_found");
        let detail = problem["detail"].as_str().expect("words");
        assert!(
            detail.contains("/docs ") && detail.contains("/openapi.json"),
            "{detail}"
        );
    }
    for page in ["/docs", "/openapi.json"] {
        assert_eq!(Answer::of(anyone.get(page)).await.status, 200, "{page}");
    }
    for (method, path, allow) in [
        (Method::DELETE, "/v1/builds", "GET,HEAD,POST"),
        (Method::PUT, "/v1/projects", "GET,HEAD,POST"),
        (Method::POST, "/healthz", "GET,HEAD"),
        (Method::GET, "/v1/builds/x/cancel", "POST"),
    ] {
        let answer = Answer::of(anyone.request(method, path)).await;
        answer.problem(405, "method_not_allowed");
        let mut allowed: Vec<_> = answer.header("allow").split(',').map(str::trim).collect();
        allowed.sort_unstable();
        assert_eq!(allowed.join(","), allow, "{path}");
    }
    app.stop().await;
}

#[sqlx::test]
async fn bodies_that_are_not_json_are_refused(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let post = |content_type: &'static str, body: Vec<u8>| {
        let request = caller.post("/v1/builds").body(body);
        Answer::of(request.header("content-type", content_type))
    };
    let json = "application/json";
    for bad in [
        &b""[..],
        b"{",
        b"{\"a\":}",
        b"\xff",
        b"{} {}",
        "[".repeat(1000).as_bytes(),
    ] {
        let problem = post(json, bad.to_vec()).await.problem(400, "malformed_json");
        assert!(
            problem["detail"].as_str().expect("text").contains("line 1"),
            "{problem}"
        );
    }
    for other in ["text/plain", "application/x-www-form-urlencoded", "application/json2"] {
        post(other, b"{}".to_vec()).await.problem(415, "unsupported_media_type");
    }
    for good in [
        "application/json; charset=utf-8",
        "Application/JSON",
        "application/vnd.kiln+json",
    ] {
        post(good, b"{}".to_vec()).await.problem(422, "invalid_request");
    }
    app.stop().await;
}

#[sqlx::test]
async fn bodies_are_limited_whether_their_length_is_declared_or_not(pool: PgPool) {
    const LIMIT: usize = 1 << 20;
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let body = |bytes: usize| format!("\"{}\"", "x".repeat(bytes - 2));
    let post = |body: reqwest::Body| {
        let request = caller.post("/v1/builds").header("content-type", "application/json");
        Answer::of(request.body(body))
    };
    post(body(LIMIT).into()).await.problem(422, "invalid_request");
    let problem = post(body(LIMIT + 1).into()).await.problem(413, "body_too_large");
    assert!(problem["detail"].as_str().expect("text").contains("1048576 bytes"));
    let chunks = body(LIMIT + 1)
        .into_bytes()
        .chunks(4096)
        .map(<[u8]>::to_vec)
        .collect::<Vec<_>>();
    let stream = futures::stream::iter(chunks.into_iter().map(Ok::<_, std::io::Error>));
    post(reqwest::Body::wrap_stream(stream))
        .await
        .problem(413, "body_too_large");
    app.stop().await;
}

#[sqlx::test]
async fn every_bad_parameter_is_named(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsRead).await;
    let answer = Answer::of(caller.get("/v1/builds?limit=0&state=runing&cursor=x&projekt=a&limit=1")).await;
    let problem = answer.problem(400, "invalid_query");
    let mut named: Vec<_> = problem["errors"]
        .as_array()
        .expect("errors")
        .iter()
        .map(|error| {
            (
                error["parameter"].as_str().expect("a name"),
                error["detail"].as_str().expect("text"),
            )
        })
        .collect();
    named.sort_unstable();
    let names: Vec<_> = named.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["cursor", "limit", "projekt", "state"]);
    assert!(named[2].1.contains("did you mean `project`?"), "{problem}");
    assert!(named[3].1.contains("did you mean `running`?"), "{problem}");
    app.stop().await;
}

#[sqlx::test]
async fn request_ids_are_kept_when_sane_and_made_otherwise(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let ask = |id: &'static [u8]| {
        let request = app.anonymous().get("/healthz");
        Answer::of(request.header(
            "x-request-id",
            reqwest::header::HeaderValue::from_bytes(id).expect("a value"),
        ))
    };
    assert_eq!(ask(b"ci/42:a=b").await.header("x-request-id"), "ci/42:a=b");
    for bad in [&b"a b"[..], b"\xff", b"", &[b'x'; 129]] {
        let answer = ask(bad).await;
        assert!(answer.header("x-request-id").parse::<uuid::Uuid>().is_ok());
    }
    app.stop().await;
}

struct BrokenClock;

impl Clock for BrokenClock {
    fn now(&self) -> chrono::DateTime<chrono::Utc> {
        panic!("postgres://user:secret@db/kiln")
    }
}

#[sqlx::test]
async fn a_panic_is_a_problem_that_tells_nothing(pool: PgPool) {
    let app = TestApp::start_with(&pool, |app| app.clock = Arc::new(BrokenClock)).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    for _ in 0..2 {
        let answer = Answer::of(caller.post("/v1/builds").json(&minimal())).await;
        answer.problem(500, "internal");
        assert!(!answer.text.contains("secret"), "{}", answer.text);
    }
    app.stop().await;
}

#[sqlx::test]
async fn a_damaged_row_is_a_problem_that_tells_nothing(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    caller.create().await;
    sqlx::query("UPDATE builds SET spec = '{\"secret\": 1}'")
        .execute(&pool)
        .await
        .expect("updates");
    let answer = Answer::of(caller.get("/v1/builds")).await;
    let problem = answer.problem(500, "internal");
    assert!(
        !answer.text.contains("secret") && !answer.text.contains("spec"),
        "{problem}"
    );
    app.stop().await;
}

#[tokio::test]
async fn without_a_database_calls_say_so_and_readiness_too() {
    let pool = store::pool("postgres://kiln:secret@127.0.0.1:1/kiln", 2, Duration::from_millis(200)).expect("a pool");
    let app = TestApp::start(&pool).await;
    let caller = app.bearer(kiln::http::token::BearerToken::from_random([1; 32]).expose());
    for request in [
        caller.get("/v1/builds"),
        caller.post("/v1/builds").json(&minimal()),
        caller.get("/v1/projects"),
    ] {
        let answer = Answer::of(request).await;
        answer.problem(503, "database_unavailable");
        assert_eq!(answer.header("retry-after"), "2");
        assert!(!answer.text.contains("secret") && !answer.text.contains("127.0.0.1"));
    }
    let ready = Answer::of(app.anonymous().get("/readyz")).await;
    assert_eq!(ready.status.as_u16(), 503);
    assert_eq!(ready.json()["database"]["ok"], false);
    assert_eq!(ready.json()["cluster"], json!({"ok": true}));
    assert!(!ready.text.contains("secret"));
    // What needs no database is there.
    assert_eq!(Answer::of(app.anonymous().get("/healthz")).await.status.as_u16(), 200);
    app.stop().await;
}

#[sqlx::test]
async fn endless_mistakes_are_counted_but_not_all_listed(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let mut request = minimal();
    for i in 0..1000 {
        request[format!("field-{i}")] = json!(1);
    }
    let problem = Answer::of(caller.post("/v1/builds").json(&request))
        .await
        .problem(422, "invalid_request");
    assert_eq!(problem["detail"], "1000 fields are invalid; the first 256 are listed");
    assert_eq!(pointers(&problem).len(), 256);
    app.stop().await;
}
