//! Log lines as JSON.

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::PgPool;

use super::program::Program;

/// The spans that a line was written in, as one list.
fn spans(line: &Value) -> Vec<&Value> {
    line["spans"].as_array().into_iter().flatten().collect()
}

#[sqlx::test]
async fn each_line_is_an_object_and_says_which_request_it_belongs_to(pool: PgPool) {
    let config = "[log]\nformat = \"json\"\nfilter = \"info,kiln=debug\"\n";
    let program = Program::start(&pool, "api", config).await;
    let ask = async |id: &str, request: reqwest::RequestBuilder| {
        let answer = request.header("x-request-id", id).send().await.expect("an answer");
        assert_eq!(answer.headers()["x-request-id"], id);
        let status = answer.status().as_u16();
        (status, answer.json::<Value>().await.expect("JSON"))
    };
    // A name that would break a line or its quotes if it were not escaped.
    let odd = "\"quoted\"\nand {braced}";
    let request = json!({
        "source": {"type": "inline", "files": {"Dockerfile": "FROM scratch\n"}}, "push": false,
        "annotations": {"note": odd},
    });
    let (status, _) = ask("created", program.request(Method::POST, "/v1/builds").json(&request)).await;
    assert_eq!(status, 201);
    let wrong = json!({"source": {"type": odd}, "push": false});
    let (status, _) = ask("refused", program.request(Method::POST, "/v1/builds").json(&wrong)).await;
    assert_eq!(status, 422);
    sqlx::query("ALTER TABLE builds RENAME TO gone")
        .execute(&pool)
        .await
        .expect("renames");
    let (status, problem) = ask("failed", program.request(Method::GET, "/v1/builds")).await;
    assert_eq!((status, &problem["request_id"]), (500, &json!("failed")));
    assert!(
        !problem.to_string().contains("relation"),
        "a 5xx tells nothing of the inside: {problem}"
    );
    let (status, problem) = ask("unknown", program.request(Method::GET, "/nowhere")).await;
    assert_eq!((status, &problem["request_id"]), (404, &json!("unknown")));

    let log = program.end().await;
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    for line in &lines {
        for field in ["timestamp", "level", "target", "message"] {
            assert!(
                line[field].as_str().is_some_and(|text| !text.is_empty()),
                "no {field} in {line}"
            );
        }
        let timestamp = line["timestamp"].as_str().expect("a text");
        assert!(chrono::DateTime::parse_from_rfc3339(timestamp).is_ok(), "{timestamp}");
    }
    let of = |id: &str| -> Vec<&Value> {
        let belongs = |line: &&Value| spans(line).iter().any(|span| span["request_id"] == id);
        lines.iter().filter(belongs).collect()
    };
    for (id, method, path) in [
        ("created", "POST", "/v1/builds"),
        ("refused", "POST", "/v1/builds"),
        ("failed", "GET", "/v1/builds"),
        ("unknown", "GET", "/nowhere"),
    ] {
        let lines = of(id);
        assert!(
            lines.iter().any(|line| line["message"] == "answered"),
            "{id}: {lines:?}"
        );
        for line in lines {
            let span = spans(line)[0];
            assert_eq!(
                (&span["method"], &span["path"]),
                (&json!(method), &json!(path)),
                "{line}"
            );
        }
    }
    let failure = of("failed")
        .into_iter()
        .find(|line| line["message"] == "a request failed");
    let failure = failure.expect("the failure is told");
    assert_eq!(
        (&failure["level"], &failure["code"]),
        (&json!("ERROR"), &json!("internal"))
    );
    assert!(
        failure["error"].as_str().is_some_and(|cause| cause.contains("builds")),
        "{failure}"
    );
    let refusal = of("refused")
        .into_iter()
        .find(|line| line["message"] == "a request was refused");
    assert_eq!(refusal.expect("the refusal is told")["code"], "invalid_request");
}
