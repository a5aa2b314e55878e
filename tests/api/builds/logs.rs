//! `GET /v1/builds/{id}/logs`.

use kiln::domain::{event::StepName, failure::FailureCode, project::Scope};
use reqwest::StatusCode;
use serde_json::Value;
use sqlx::PgPool;

use super::events::{Stream, kinds};
use crate::api::{
    support::{Answer, Caller, TestApp, id, soon},
    worker::Hand,
};

const TEXT: &str = "cloning\nbuilding\n[kiln: 2 lines are missing here: the log was rotated away]\ndone ü\n";

/// A build that has printed [`TEXT`].
async fn printed(app: &TestApp, caller: &Caller<'_>) -> (String, Hand) {
    let path = format!("/v1/builds/{}/logs", id(&caller.create().await));
    let mut hand = Hand::claim(&app.pool, &app.signals).await;
    hand.run().await;
    hand.print(StepName::Source, "cloning\n").await;
    hand.print(StepName::Build, "building\n").await;
    hand.lose(2).await;
    hand.print(StepName::Build, "done ü\n").await;
    (path, hand)
}

#[sqlx::test]
async fn text_is_what_was_printed(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let (path, hand) = printed(&app, &caller).await;
    let get = |suffix: &str| Answer::of(caller.get(&format!("{path}{suffix}")));
    // The same while it runs and after; without `follow` it doesn't wait.
    let live = get("").await;
    assert_eq!(live.text, TEXT);
    assert_eq!(live.header("content-type"), "text/plain; charset=utf-8");
    assert_eq!(live.header("x-content-type-options"), "nosniff");
    assert_eq!(live.header("vary"), "accept");
    hand.fail(FailureCode::BuildFailed).await;
    assert_eq!(get("").await.text, TEXT);
    assert_eq!(get("?follow=1").await.text, TEXT);
    assert_eq!(get("?step=source").await.text, "cloning\n");
    assert_eq!(get("?step=build&from=6").await.text, "done ü\n");
    let problem = get("?step=biuld").await.problem(400, "invalid_query");
    assert!(
        problem["errors"][0]["detail"]
            .as_str()
            .expect("text")
            .contains("did you mean `build`?")
    );
    app.stop().await;
}

#[sqlx::test]
async fn text_can_be_followed_to_the_end(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let path = format!("/v1/builds/{}/logs?follow=1", id(&caller.create().await));
    let mut response = soon("the headers", caller.get(&path).header("accept", "text/plain").send())
        .await
        .expect("answered");
    let mut hand = Hand::claim(&pool, &app.signals).await;
    hand.run().await;
    for text in ["one\n", "two\n"] {
        hand.print(StepName::Build, text).await;
        let chunk = soon("a chunk", response.chunk()).await.expect("reads").expect("more");
        assert_eq!(chunk, text.as_bytes());
    }
    hand.succeed().await;
    assert_eq!(soon("the end", response.chunk()).await.expect("a clean end"), None);
    app.stop().await;
}

#[sqlx::test]
async fn a_text_that_is_cut_off_does_not_look_whole(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let (path, _hand) = printed(&app, &caller).await;
    let mut response = soon("the headers", caller.get(&format!("{path}?follow=1")).send())
        .await
        .expect("answered");
    soon("a chunk", response.chunk()).await.expect("reads").expect("more");
    app.begin_stop();
    soon("the cut", async {
        loop {
            match response.chunk().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it looks whole"),
                Err(_) => break,
            }
        }
    })
    .await;
    app.stop().await;
}

#[sqlx::test]
async fn json_lines_and_events_hold_the_same_entries(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let (path, hand) = printed(&app, &caller).await;
    hand.succeed().await;
    let answer = Answer::of(caller.get(&path).header("accept", "application/x-ndjson")).await;
    assert_eq!(answer.header("content-type"), "application/x-ndjson");
    let lines: Vec<Value> = answer
        .text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let events = Stream::open(caller.get(&path).header("accept", "text/event-stream"))
        .await
        .rest()
        .await;
    assert_eq!(kinds(&events), ["log", "log", "gap", "log", "end"]);
    assert_eq!(lines.len(), 4);
    for (line, received) in lines.iter().zip(&events) {
        let mut expected = received.data.clone();
        expected["event"] = received.event.clone().into();
        assert_eq!(*line, expected);
    }
    let of_source = caller
        .get(&format!("{path}?step=source"))
        .header("accept", "text/event-stream");
    assert_eq!(kinds(&Stream::open(of_source).await.rest().await), ["log", "end"]);
    let seen = caller
        .get(&path)
        .header("accept", "text/event-stream")
        .header("last-event-id", events[4].id);
    assert_eq!(Answer::of(seen).await.status, StatusCode::NO_CONTENT);
    Answer::of(caller.get(&path).header("accept", "image/png"))
        .await
        .problem(406, "not_acceptable");
    app.stop().await;
}

#[sqlx::test]
async fn any_range_of_a_finished_text_can_be_had(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let (path, hand) = printed(&app, &caller).await;
    let get = |range: String| Answer::of(caller.get(&path).header("range", range));
    // It still grows: no ranges yet.
    assert_eq!(get("bytes=0-2".to_owned()).await.status, StatusCode::OK);
    hand.succeed().await;

    let whole = Answer::of(caller.get(&path)).await;
    assert_eq!((whole.text.as_str(), whole.header("accept-ranges")), (TEXT, "bytes"));
    let length = TEXT.len();
    for (first, last) in [
        (0, 0),
        (0, length - 1),
        (3, 9),
        (8, 8),
        (17, 40),
        (length - 1, length - 1),
    ] {
        let answer = get(format!("bytes={first}-{last}")).await;
        assert_eq!(answer.status, StatusCode::PARTIAL_CONTENT);
        assert_eq!(answer.header("content-range"), format!("bytes {first}-{last}/{length}"));
        assert_eq!(answer.header("content-length"), (last - first + 1).to_string());
        assert_eq!(answer.text.as_bytes(), &TEXT.as_bytes()[first..=last]);
    }
    assert_eq!(
        get("bytes=-5".to_owned()).await.text.as_bytes(),
        &TEXT.as_bytes()[length - 5..]
    );
    assert_eq!(get("bytes=9-".to_owned()).await.text.as_bytes(), &TEXT.as_bytes()[9..]);
    assert_eq!(
        get(format!("bytes=9-{}", length + 9)).await.text.as_bytes(),
        &TEXT.as_bytes()[9..]
    );
    // Numbers that fit into nothing are numbers, too.
    let huge = "9".repeat(40);
    let answer = get(format!("bytes=3-{huge}")).await;
    assert_eq!(
        (answer.status, answer.text.as_bytes()),
        (StatusCode::PARTIAL_CONTENT, &TEXT.as_bytes()[3..])
    );
    assert_eq!(
        answer.header("content-range"),
        format!("bytes 3-{}/{length}", length - 1)
    );
    assert_eq!(get(format!("bytes=-{huge}")).await.text, TEXT);
    get(format!("bytes={huge}-"))
        .await
        .problem(416, "range_not_satisfiable");
    let answer = get(format!("bytes={length}-")).await;
    answer.problem(416, "range_not_satisfiable");
    assert_eq!(answer.header("content-range"), format!("bytes */{length}"));

    let condition = |tag: &str| Answer::of(caller.get(&path).header("range", "bytes=0-2").header("if-range", tag));
    assert_eq!(condition(whole.header("etag")).await.text, "clo");
    assert_eq!(condition("\"other\"").await.text, TEXT);
    app.stop().await;
}

#[sqlx::test]
async fn a_long_text_comes_in_order_and_in_any_range(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let path = format!("/v1/builds/{}/logs", id(&caller.create().await));
    let mut hand = Hand::claim(&pool, &app.signals).await;
    hand.run().await;
    // More rows than the journal reads at once, several times over.
    let mut text = String::new();
    for line in 0..70 {
        let line = format!("line {line} {}\n", "=".repeat(line));
        hand.print(StepName::Build, &line).await;
        text.push_str(&line);
    }
    assert_eq!(Answer::of(caller.get(&path)).await.text, text);
    hand.succeed().await;
    assert_eq!(Answer::of(caller.get(&path)).await.text, text);
    for first in (0..text.len()).step_by(397) {
        for last in [first, first + 10, first + 1500, text.len() - 1] {
            let last = last.min(text.len() - 1);
            let answer = Answer::of(caller.get(&path).header("range", format!("bytes={first}-{last}"))).await;
            assert_eq!(answer.text, text[first..=last]);
        }
    }
    app.stop().await;
}
