//! `GET /v1/builds/{id}/events`.

use std::{collections::VecDeque, time::Duration};

use kiln::domain::{event::StepName, failure::FailureCode, project::Scope};
use reqwest::{RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::api::{
    support::{Answer, TestApp, id, soon},
    worker::Hand,
};

/// A server-sent event as a client gets it.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::api) struct Received {
    pub(in crate::api) id: i64,
    pub(in crate::api) event: String,
    pub(in crate::api) data: Value,
}

/// Reads a stream as a client does.
pub(in crate::api) struct Stream {
    response: Response,
    buffer: String,
    received: VecDeque<Received>,
    pub(super) retry: Option<u64>,
    pub(super) comments: usize,
    /// What a client would send to resume.
    pub(in crate::api) last_id: Option<i64>,
}

impl Stream {
    pub(in crate::api) async fn open(request: RequestBuilder) -> Self {
        let response = soon("the headers", request.send()).await.expect("answered");
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self {
            response,
            buffer: String::new(),
            received: VecDeque::new(),
            retry: None,
            comments: 0,
            last_id: None,
        }
    }

    /// Reads until the position is known from which a client would resume.
    pub(in crate::api) async fn position(&mut self) -> i64 {
        loop {
            if let Some(id) = self.last_id {
                return id;
            }
            let chunk = soon("the beginning", self.response.chunk())
                .await
                .expect("a clean end")
                .expect("no end");
            self.take(&chunk);
        }
    }

    fn take(&mut self, chunk: &[u8]) {
        self.buffer.push_str(std::str::from_utf8(chunk).expect("UTF-8"));
        while let Some(end) = self.buffer.find("\n\n") {
            let block: String = self.buffer.drain(..end + 2).collect();
            self.parse(&block);
        }
    }

    /// The next event; `None` at the end of the stream.
    pub(in crate::api) async fn next(&mut self) -> Option<Received> {
        loop {
            if let Some(received) = self.received.pop_front() {
                return Some(received);
            }
            let chunk = soon("an event", self.response.chunk()).await.expect("a clean end")?;
            self.take(&chunk);
        }
    }

    fn parse(&mut self, block: &str) {
        let (mut id, mut event, mut data) = (None, None, None);
        for line in block.lines().filter(|line| !line.is_empty()) {
            match line.split_once(": ").unwrap_or((line, "")) {
                ("id", value) => id = value.parse().ok(),
                ("event", value) => event = Some(value.to_owned()),
                ("data", value) => data = serde_json::from_str(value).ok(),
                ("retry", value) => self.retry = value.parse().ok(),
                (comment, _) => {
                    assert!(comment.is_empty() || comment == ":", "unexpected line {line:?}");
                    self.comments += 1;
                }
            }
        }
        self.last_id = id.or(self.last_id);
        if let (Some(id), Some(event), Some(data)) = (id, event, data) {
            self.received.push_back(Received { id, event, data });
        }
    }

    pub(super) async fn rest(mut self) -> Vec<Received> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}

pub(super) fn kinds(events: &[Received]) -> Vec<&str> {
    events.iter().map(|received| received.event.as_str()).collect()
}

#[sqlx::test]
async fn a_stream_tells_everything_in_order_and_ends(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let path = format!("/v1/builds/{}/events", id(&caller.create().await));
    let mut stream = Stream::open(caller.get(&path)).await;
    let headers = stream.response.headers();
    assert_eq!(headers["cache-control"], "no-cache, no-transform");
    assert_eq!(headers["x-accel-buffering"], "no");

    let first = stream.next().await.expect("an event");
    assert_eq!(
        (first.id, first.event.as_str(), &first.data["state"]),
        (1, "status", &json!("queued"))
    );
    assert!(stream.retry.is_some_and(|retry| (500..=3000).contains(&retry)));
    assert_eq!(stream.comments, 1);

    let mut hand = Hand::claim(&pool, &app.signals).await;
    assert_eq!(stream.next().await.expect("an event").data["state"], "starting");
    hand.run().await;
    hand.print(StepName::Build, "one\r\ntwo\n").await;
    hand.lose(3).await;
    let digest = hand.succeed().await;
    let events = stream.rest().await;
    assert_eq!(kinds(&events), ["status", "log", "gap", "status", "end"]);
    for (position, received) in events.iter().enumerate() {
        assert_eq!(received.id, i64::try_from(position).expect("small") + 3);
        assert_eq!(received.data["seq"], received.id);
    }
    let log = &events[1].data;
    assert_eq!(
        (&log["step"], &log["stream"], &log["text"]),
        (&json!("build"), &json!("stdout"), &json!("one\r\ntwo\n"))
    );
    assert_eq!(events[2].data["lines"], 3);
    assert_eq!(
        events[4].data,
        json!({"seq": 7, "state": "succeeded", "digest": digest.as_str(), "failure": null})
    );
    app.stop().await;
}

#[sqlx::test]
async fn a_stream_can_be_resumed_anywhere_on_any_replica(pool: PgPool) {
    let replicas = [TestApp::start(&pool).await, TestApp::start(&pool).await];
    let callers = [
        replicas[0].caller(Scope::BuildsWrite).await,
        replicas[1].caller(Scope::BuildsRead).await,
    ];
    let path = format!("/v1/builds/{}/events", id(&callers[0].create().await));
    let mut hand = Hand::claim(&pool, &replicas[0].signals).await;
    hand.run().await;
    for line in 0..20 {
        hand.print(StepName::Build, &format!("line {line}\n")).await;
    }
    hand.fail(FailureCode::BuildFailed).await;
    let whole = Stream::open(callers[0].get(&path)).await.rest().await;
    assert_eq!(whole.len(), 25);
    assert_eq!(whole[24].data["failure"]["code"], "build_failed");
    for cut in [0, 1, 3, 12, 24] {
        // Numbers count from 1.
        let after = i64::try_from(cut).expect("small");
        let caller = &callers[cut % 2];
        let by_query = Stream::open(caller.get(&format!("{path}?from={after}")))
            .await
            .rest()
            .await;
        assert_eq!(by_query, whole[cut..]);
        // The header is newer than the address that it is sent to.
        let by_header = caller.get(&format!("{path}?from=1")).header("last-event-id", after);
        assert_eq!(Stream::open(by_header).await.rest().await, whole[cut..]);
    }
    for after in [whole[24].id, whole[24].id + 5] {
        let answer = Answer::of(callers[1].get(&path).header("last-event-id", after)).await;
        assert_eq!((answer.status, answer.text.as_str()), (StatusCode::NO_CONTENT, ""));
    }
    Answer::of(callers[0].get(&path).header("last-event-id", "x"))
        .await
        .problem(400, "invalid_header");
    Answer::of(callers[0].get(&format!("{path}?from=x")))
        .await
        .problem(400, "invalid_query");
    Answer::of(callers[0].get(&path).header("accept", "application/json"))
        .await
        .problem(406, "not_acceptable");
    for replica in replicas {
        replica.stop().await;
    }
}

#[sqlx::test]
async fn open_streams_end_when_the_server_stops_and_are_counted(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let path = format!("/v1/builds/{}/events", id(&caller.create().await));
    let mut stream = Stream::open(caller.get(&path)).await;
    stream.next().await.expect("an event");
    let metrics = Answer::of(app.anonymous().get("/metrics")).await.text;
    assert!(metrics.contains("kiln_http_streams 1\n"), "{metrics}");
    app.begin_stop();
    assert_eq!(stream.next().await, None);
    app.stop().await;
}

#[sqlx::test]
async fn a_reader_that_is_gone_leaves_nothing_behind(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let path = format!("/v1/builds/{}/events", id(&caller.create().await));
    let mut stream = Stream::open(caller.get(&path)).await;
    stream.next().await.expect("an event");
    drop(stream);
    soon("the subscription is dropped", async {
        while app.signals.heads().watched() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    app.stop().await;
}

#[sqlx::test]
async fn a_silent_stream_is_kept_alive_and_closed_in_the_end(pool: PgPool) {
    let app = TestApp::start_with(&pool, |app| {
        app.streams.keep_alive = Duration::from_millis(20);
        app.streams.lifetime = (Duration::from_millis(400), Duration::from_millis(500));
    })
    .await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let path = format!("/v1/builds/{}/events", id(&caller.create().await));
    let mut stream = Stream::open(caller.get(&path)).await;
    assert_eq!(stream.next().await.map(|received| received.id), Some(1));
    assert_eq!(stream.next().await, None);
    assert!(stream.comments > 2, "{} comments", stream.comments);
    // The client comes back for what it hasn't seen.
    let again = caller.get(&path).header("last-event-id", 1);
    assert!(Stream::open(again).await.rest().await.is_empty());
    app.stop().await;
}
