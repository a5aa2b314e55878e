//! Builds whose logs are in the archive, and builds that are gone.

use chrono::{TimeDelta, Utc};
use kiln::{
    domain::{
        event::{Event, Log, LogStream, StepName},
        id::BuildId,
        project::Scope,
    },
    journal::{
        History,
        archive::{Archive, metrics::Metrics, mover},
    },
    store::{builds, entries::pack, retention},
};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::api::support::{Answer, Caller, TestApp, id, soon};

/// A build that was cancelled some days ago.
async fn cancelled(app: &TestApp, caller: &Caller<'_>, days: i64) -> Value {
    let build = caller.create().await;
    let id: BuildId = id(&build).parse().expect("an id");
    let at = Utc::now() - TimeDelta::days(days);
    builds::cancel(&app.pool, id, at).await.expect("cancels");
    build
}

async fn get(caller: &Caller<'_>, path: &str, accept: &str) -> Answer {
    Answer::of(caller.get(path).header("accept", accept)).await
}

const FORMS: [(&str, &str); 4] = [
    ("events", "text/event-stream"),
    ("logs", "text/plain"),
    ("logs", "application/x-ndjson"),
    ("logs", "text/event-stream"),
];

#[sqlx::test]
async fn archived_builds_answer_as_before(pool: PgPool) {
    let folder = tempfile::tempdir().expect("a folder");
    let url = Url::from_directory_path(folder.path().join("archive")).expect("an address");
    let archive = Archive::open(&url).expect("a folder");
    let app = TestApp::start_with(&pool, |app| {
        app.history = History::new(pool.clone()).with_archive(Some(archive.clone()));
    })
    .await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let build = cancelled(&app, &caller, 1).await;
    let path = |rest: &str| format!("/v1/builds/{}/{rest}", id(&build));
    let retry = |text: String| {
        // How long a client waits before it comes back is by chance.
        let lines = text.lines().filter(|line| !line.starts_with("retry:"));
        lines.collect::<Vec<_>>().join("\n")
    };
    let mut before = Vec::new();
    for (rest, accept) in FORMS {
        before.push(get(&caller, &path(rest), accept).await);
    }
    let stop = CancellationToken::new();
    mover::move_due(&pool, &archive, 0, &Metrics::default(), &stop)
        .await
        .expect("moves");
    for ((rest, accept), before) in FORMS.into_iter().zip(before) {
        let after = get(&caller, &path(rest), accept).await;
        assert_eq!(after.status, before.status, "{rest}, {accept}");
        assert_eq!(retry(after.text), retry(before.text), "{rest}, {accept}");
    }
    let rest = get(&caller, &path("events?from=1"), "text/event-stream").await;
    assert!(
        rest.text.contains("id: 2") && !rest.text.contains("id: 1\n"),
        "{}",
        rest.text
    );
    let over = get(&caller, &path("events?from=3"), "text/event-stream").await;
    assert_eq!(over.status, StatusCode::NO_CONTENT);

    // A bit turns over.
    let day = std::fs::read_dir(folder.path().join("archive")).expect("lists").next();
    let day = day.expect("a folder").expect("lists").path();
    let file = std::fs::read_dir(day)
        .expect("lists")
        .next()
        .expect("a file")
        .expect("lists")
        .path();
    let mut bytes = std::fs::read(&file).expect("reads");
    bytes[20] ^= 1;
    std::fs::write(&file, bytes).expect("writes");
    let answer = Answer::of(caller.get(&path("logs")).header("range", "bytes=0-9")).await;
    answer.problem(500, "log_damaged");

    // The archive is away: what doesn't need it goes on, and the service is ready.
    let away = folder.path().join("away");
    std::fs::rename(folder.path().join("archive"), away).expect("renames");
    let unaware = TestApp::start(&pool).await;
    let same = unaware.caller(Scope::BuildsRead).await;
    for caller in [&same] {
        for (rest, accept) in FORMS {
            let answer = get(caller, &path(rest), accept).await;
            answer.problem(503, "archive_unavailable");
            assert_eq!(answer.header("retry-after"), "30");
        }
        let answer = Answer::of(caller.get(path("").trim_end_matches('/'))).await;
        assert_eq!(answer.json()["state"], "cancelled");
        assert_eq!(Answer::of(caller.get("/readyz")).await.status, StatusCode::OK);
    }
    unaware.stop().await;
    app.stop().await;
}

/// A text without a length doesn't end as if it were whole when its build is deleted meanwhile.
#[sqlx::test]
async fn a_text_is_cut_off_when_its_build_is_deleted(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let build = caller.create().await;
    let of: BuildId = id(&build).parse().expect("an id");
    let long = pack(&[Event::Log(Log {
        step: StepName::Build,
        stream: LogStream::Stdout,
        at: Utc::now(),
        text: format!("{}\n", "x".repeat(400_000)),
        partial: false,
        replaced: 0,
    })]);
    // More than sockets hold.
    sqlx::query(
        "WITH build AS (UPDATE builds SET journal_head = 101 WHERE id = $1)
         INSERT INTO journal (build_id, first_seq, last_seq, codec, body)
         SELECT $1, seq, seq, $2, $3 FROM generate_series(2, 101) AS seq",
    )
    .bind(of.0)
    .bind(long.codec)
    .bind(long.body)
    .execute(&pool)
    .await
    .expect("writes");
    builds::cancel(&pool, of, Utc::now() - TimeDelta::days(40))
        .await
        .expect("cancels");
    let request = caller
        .get(&format!("/v1/builds/{of}/logs"))
        .header("accept", "text/plain");
    let mut response = request.send().await.expect("an answer");
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.chunk().await.expect("a piece").is_some());
    assert_eq!(retention::delete_builds(&pool, 30).await.expect("deletes"), 1);
    let end = async {
        while response.chunk().await?.is_some() {}
        Ok::<_, reqwest::Error>(())
    };
    assert!(soon("the end", end).await.is_err());
    app.stop().await;
}

#[sqlx::test]
async fn deleted_builds_are_gone_for_those_who_could_see_them(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let stranger = app.caller_of("other", Scope::BuildsWrite).await;
    let admin = app.caller_of("other", Scope::Admin).await;
    let (old, young) = (cancelled(&app, &caller, 40).await, cancelled(&app, &caller, 20).await);
    assert_eq!(retention::delete_builds(&pool, 30).await.expect("deletes"), 1);

    let calls = [
        (Method::GET, ""),
        (Method::GET, "?wait=10"),
        (Method::GET, "/events"),
        (Method::GET, "/logs"),
        (Method::GET, "/logs?follow=1"),
        (Method::GET, "/queue"),
        (Method::POST, "/cancel"),
        (Method::POST, "/retry"),
    ];
    for (method, rest) in calls {
        let path = format!("/v1/builds/{}{rest}", id(&old));
        for caller in [&caller, &admin] {
            let answer = Answer::of(caller.request(method.clone(), &path)).await;
            let problem = answer.problem(410, "build_deleted");
            assert!(
                problem["detail"].as_str().expect("words").contains("deleted at 20"),
                "{problem}"
            );
        }
        let answer = Answer::of(stranger.request(method.clone(), &path)).await;
        answer.problem(404, "build_not_found");
    }
    let ticket = caller.post("/v1/stream-tickets").json(&json!({"build": id(&old)}));
    Answer::of(ticket).await.problem(410, "build_deleted");
    let list = Answer::of(caller.get("/v1/builds")).await.json();
    let listed: Vec<_> = list["items"].as_array().expect("builds").iter().map(id).collect();
    assert_eq!(listed, [id(&young)]);
    let never = format!("/v1/builds/{}", BuildId::new());
    Answer::of(caller.get(&never)).await.problem(404, "build_not_found");
    app.stop().await;
}
