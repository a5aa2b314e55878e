//! What surrounds every operation: parameters nobody asked for, calls from web pages, compression.

use std::io::Read as _;

use kiln::{
    domain::project::Scope,
    http::{Cors, Origin},
};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use sqlx::PgPool;

use super::support::{Answer, TestApp, id};

#[sqlx::test]
async fn no_operation_ignores_a_parameter(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::Admin).await;
    let build = caller.create().await;
    let document = Answer::of(caller.get("/openapi.json")).await.json();
    let mut asked = 0;
    for (path, operations) in document["paths"].as_object().expect("paths") {
        let path = path
            .replace("{id}", id(&build))
            .replace("{project}", "default")
            .replace(['{', '}'], "");
        for method in operations
            .as_object()
            .expect("operations")
            .keys()
            .filter(|key| *key != "parameters")
        {
            let method: Method = method.to_uppercase().parse().expect("a method");
            let request = caller.request(method.clone(), &format!("{path}?no-such-parameter=1"));
            let answer = Answer::of(request.header("content-type", "application/json").body("{}")).await;
            let problem = answer.problem(400, "invalid_query");
            assert_eq!(
                problem["errors"][0]["parameter"], "no-such-parameter",
                "{method} {path}"
            );
            asked += 1;
        }
    }
    assert!(asked > 15, "{asked}");
    app.stop().await;
}

#[sqlx::test]
async fn web_pages_may_call_where_it_is_allowed(pool: PgPool) {
    const PAGE: &str = "https://app.example";
    let app = TestApp::start_with(&pool, |app| {
        let origin: Origin = PAGE.parse().expect("an origin");
        app.cors = Cors { origins: vec![origin] };
    })
    .await;
    let nobody = app.anonymous();
    let preflight = |origin: &str| {
        Answer::of(
            nobody
                .request(Method::OPTIONS, "/v1/builds")
                .header("origin", origin)
                .header("access-control-request-method", "POST")
                .header(
                    "access-control-request-headers",
                    "authorization,content-type,idempotency-key",
                ),
        )
    };
    let answer = preflight(PAGE).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    assert_eq!(answer.header("access-control-allow-origin"), PAGE);
    assert!(answer.header("access-control-allow-methods").contains("POST"));
    for name in [
        "authorization",
        "content-type",
        "idempotency-key",
        "last-event-id",
        "if-none-match",
    ] {
        assert!(answer.header("access-control-allow-headers").contains(name), "{name}");
    }
    assert!(answer.headers.contains_key("x-request-id"));
    let stranger = preflight("https://evil.example").await;
    assert!(!stranger.headers.contains_key("access-control-allow-origin"));

    // Errors can be read by the page like everything else.
    let refused = Answer::of(nobody.get("/v1/builds").header("origin", PAGE)).await;
    refused.problem(401, "unauthenticated");
    assert_eq!(refused.header("access-control-allow-origin"), PAGE);
    for name in [
        "location",
        "etag",
        "x-request-id",
        "retry-after",
        "idempotency-replayed",
        "content-range",
    ] {
        assert!(refused.header("access-control-expose-headers").contains(name), "{name}");
    }
    assert!(!refused.headers.contains_key("access-control-allow-credentials"));
    app.stop().await;
}

#[sqlx::test]
async fn without_configuration_no_page_may_call(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let answer = Answer::of(app.anonymous().get("/healthz").header("origin", "https://app.example")).await;
    assert!(!answer.headers.contains_key("access-control-allow-origin"));
    app.stop().await;
}

#[sqlx::test]
async fn documents_are_compressed_and_streams_are_not(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let build = caller.create().await;
    let ask = |path: String| caller.get(&path).header("accept-encoding", "gzip").send();

    let response = ask("/openapi.json".to_owned()).await.expect("answered");
    assert_eq!(response.headers()["content-encoding"], "gzip");
    let bytes = response.bytes().await.expect("a body");
    let mut text = String::new();
    flate2::read::GzDecoder::new(&bytes[..])
        .read_to_string(&mut text)
        .expect("gzip");
    assert!(bytes.len() < text.len() / 3);
    assert!(serde_json::from_str::<Value>(&text).is_ok());

    for path in [
        "/healthz".to_owned(),
        format!("/v1/builds/{}/events", id(&build)),
        "/v1/events".to_owned(),
    ] {
        let response = ask(path.clone()).await.expect("answered");
        assert!(!response.headers().contains_key("content-encoding"), "{path}");
    }
    app.stop().await;
}

#[sqlx::test]
async fn lists_and_the_description_have_tags(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    for path in ["/v1/builds", "/v1/projects", "/openapi.json"] {
        let ask = |tag: &str| Answer::of(caller.get(path).header("if-none-match", tag));
        let tag = ask("").await.header("etag").to_owned();
        assert_eq!(ask(&tag).await.status, StatusCode::NOT_MODIFIED, "{path}");
        if path == "/v1/builds" {
            caller.create().await;
            assert_eq!(ask(&tag).await.status, StatusCode::OK);
        }
    }
    app.stop().await;
}
