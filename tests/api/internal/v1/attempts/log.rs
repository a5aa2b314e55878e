//! What attempts push of their logs: every line once and in order, whatever is repeated, lost or sent elsewhere.

use kiln::{
    domain::{
        attempt_token::Purpose,
        event::{Event, StepName, StepPhase},
        failure::FailureCode,
        id::AttemptId,
        project::Scope,
        spec::MemoryBytes,
    },
    journal::LogLimits,
    store::{self, attempt_keys::AttemptKeys},
};
use kiln_agent::wire::{
    frame::{Frame, Stream},
    push::{MAX_PUSH, crc32},
};
use reqwest::{RequestBuilder, StatusCode};
use serde_json::json;
use sqlx::PgPool;

use crate::api::{
    support::{Answer, Caller, TestApp, id, pointers, soon},
    worker::Hand,
};

/// One line as it stands in a spool.
fn frame(number: u64, stream: Stream, text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    Frame {
        number,
        at_ms: 1_760_000_000_000 + number,
        stream,
        partial: false,
        text: text.as_bytes(),
    }
    .encode(&mut bytes);
    bytes
}

/// Lines that print their numbers.
fn lines(numbers: std::ops::RangeInclusive<u64>) -> Vec<u8> {
    numbers
        .flat_map(|number| frame(number, Stream::Stdout, &format!("line {number}")))
        .collect()
}

fn printed(numbers: std::ops::RangeInclusive<u64>) -> String {
    numbers.fold(String::new(), |text, number| text + &format!("line {number}\n"))
}

/// The agent of an attempt.
struct Agent {
    attempt: AttemptId,
    token: String,
}

impl Agent {
    async fn of(pool: &PgPool, hand: &Hand) -> Self {
        Self::with(pool, hand.lease().attempt, Purpose::Log).await
    }

    async fn with(pool: &PgPool, attempt: AttemptId, purpose: Purpose) -> Self {
        let keys = AttemptKeys::new([0; 32]);
        let key = keys.get(pool).await.expect("a key");
        Self {
            attempt,
            token: key.token(attempt, purpose).expose().to_owned(),
        }
    }

    fn request(&self, app: &TestApp, rest: &str) -> RequestBuilder {
        let path = format!("/internal/v1/attempts/{}/log{rest}", self.attempt);
        app.bearer(&self.token).post(&path)
    }

    async fn send(&self, app: &TestApp, step: StepName, offset: usize, bytes: &[u8]) -> Answer {
        let query = format!("?step={}&offset={offset}", step.as_str());
        Answer::of(self.request(app, &query).body(bytes.to_vec())).await
    }

    /// Pushes what must be taken, and returns up to where all is held.
    async fn push(&self, app: &TestApp, offset: usize, bytes: &[u8]) -> usize {
        let answer = self.send(app, StepName::Build, offset, bytes).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        held(&answer)
    }

    async fn seal(&self, app: &TestApp, lines: u64, bytes: usize, crc32: u32) -> Answer {
        let seal = json!({"lines": lines, "bytes": bytes, "crc32": crc32, "complete": true});
        Answer::of(self.request(app, "/seal?step=build").json(&seal)).await
    }
}

fn held(answer: &Answer) -> usize {
    let offset = answer.json()["offset"].as_u64().expect("an offset");
    usize::try_from(offset).expect("small")
}

/// A build whose attempt is live.
async fn begin(app: &TestApp) -> (Hand, Agent) {
    app.caller(Scope::BuildsWrite).await.create().await;
    let hand = Hand::claim(&app.pool, &app.signals).await;
    let agent = Agent::of(&app.pool, &hand).await;
    (hand, agent)
}

async fn events(app: &TestApp, agent: &Agent) -> Vec<Event> {
    let mut events = Vec::new();
    let mut after = 0;
    loop {
        let page = store::journal::read(&app.pool, agent.attempt.build, after)
            .await
            .expect("reads");
        let Some((last, _)) = page.last() else { return events };
        after = *last;
        events.extend(page.into_iter().map(|(_, event)| event));
    }
}

async fn text(app: &TestApp, agent: &Agent) -> String {
    let events = events(app, agent).await;
    let texts = events.iter().filter_map(|event| match event {
        Event::Log(log) => Some(log.text.as_str()),
        _ => None,
    });
    texts.collect()
}

async fn gaps(app: &TestApp, agent: &Agent) -> Vec<(Option<u64>, String)> {
    let events = events(app, agent).await;
    let gaps = events.into_iter().filter_map(|event| match event {
        Event::Gap(gap) => Some((gap.lines, gap.reason)),
        _ => None,
    });
    gaps.collect()
}

async fn build(caller: &Caller<'_>, agent: &Agent) -> serde_json::Value {
    Answer::of(caller.get(&format!("/v1/builds/{}", agent.attempt.build)))
        .await
        .json()
}

#[sqlx::test]
async fn repeated_and_overlapping_pushes_are_taken_once(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let (_hand, agent) = begin(&app).await;
    let (three, five) = (lines(1..=3), lines(1..=5));
    assert_eq!(agent.push(&app, 0, &three).await, three.len());
    assert_eq!(agent.push(&app, 0, &three).await, three.len());
    assert_eq!(agent.push(&app, 0, &five).await, five.len());
    // All of it is held, and more.
    assert_eq!(agent.push(&app, 0, &lines(1..=1)).await, five.len());
    // A sign of life.
    assert_eq!(agent.push(&app, five.len(), b"").await, five.len());
    let all = lines(1..=9);
    let problem = agent
        .send(&app, StepName::Build, five.len() + 1, b"")
        .await
        .problem(409, "log_offset");
    assert_eq!(problem["offset"], five.len());
    let later = &all[lines(1..=7).len()..];
    let problem = agent
        .send(&app, StepName::Build, all.len() - later.len(), later)
        .await
        .problem(409, "log_offset");
    assert_eq!(problem["offset"], five.len());
    let packed = zstd::encode_all(&all[five.len()..], 1).expect("compresses");
    let query = format!("?step=build&offset={}", five.len());
    let request = agent
        .request(&app, &query)
        .header("content-encoding", "zstd")
        .body(packed);
    assert_eq!(held(&Answer::of(request).await), all.len());
    assert_eq!(text(&app, &agent).await, printed(1..=9));
    assert_eq!(gaps(&app, &agent).await, []);
    let started = |event: &&Event| matches!(event, Event::Step(step) if step.phase == StepPhase::Started);
    assert_eq!(events(&app, &agent).await.iter().filter(started).count(), 1);
    let caller = app.caller(Scope::BuildsRead).await;
    let shown = build(&caller, &agent).await;
    assert_eq!(shown["attempts"][0]["log"], json!({"via": "push", "sealed": false}));
    assert_eq!(shown["log_bytes"], printed(1..=9).len());
    app.stop().await;
}

#[sqlx::test]
async fn two_replicas_take_the_same_log_at_the_same_time(pool: PgPool) {
    const LINES: u64 = 400;
    let (first, second) = (TestApp::start(&pool).await, TestApp::start(&pool).await);
    let (_hand, agent) = begin(&first).await;
    let all = lines(1..=LINES);
    let border = |line: u64| lines(1..=line).len();
    // Two that each begin again from wherever the service says, with pieces of different lengths.
    let ship = |app, piece: u64| {
        let (agent, all) = (&agent, &all);
        async move {
            let mut offset = 0;
            while offset < all.len() {
                let line = (0..=LINES).find(|line| border(*line) >= offset).expect("a border");
                let end = border((line + piece).min(LINES));
                let answer = agent.send(app, StepName::Build, offset, &all[offset..end]).await;
                assert!(
                    matches!(answer.status, StatusCode::OK | StatusCode::CONFLICT),
                    "{}",
                    answer.text
                );
                offset = held(&answer);
            }
        }
    };
    soon("both are done", async {
        tokio::join!(ship(&first, 7), ship(&second, 11), ship(&first, 13));
    })
    .await;
    assert_eq!(text(&first, &agent).await, printed(1..=LINES));
    assert_eq!(gaps(&first, &agent).await, []);
    let answer = agent.seal(&second, LINES, all.len(), crc32(0, &all)).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    let caller = first.caller(Scope::BuildsRead).await;
    assert_eq!(build(&caller, &agent).await["attempts"][0]["log"]["sealed"], true);
    first.stop().await;
    second.stop().await;
}

#[sqlx::test]
async fn acknowledgements_may_be_lost(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let (_hand, agent) = begin(&app).await;
    let all = lines(1..=50);
    let mut offset = 0;
    for line in (10..=50).step_by(10) {
        let end = lines(1..=line).len();
        let query = format!("?step=build&offset={offset}");
        let sent = agent.request(&app, &query).body(all[offset..end].to_vec()).send();
        // Nobody waits for the answer: the connection is cut whenever that is.
        let cut = tokio::spawn(sent);
        tokio::task::yield_now().await;
        cut.abort();
        offset = agent.push(&app, offset, &all[offset..end]).await;
        assert_eq!(offset, end);
    }
    assert_eq!(text(&app, &agent).await, printed(1..=50));
    app.stop().await;
}

#[sqlx::test]
async fn only_the_attempts_own_token_opens_its_log(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let (hand, agent) = begin(&app).await;
    let attempt = hand.lease().attempt;
    let bytes = lines(1..=1);
    let path = format!("/internal/v1/attempts/{attempt}/log?step=build&offset=0");
    Answer::of(app.anonymous().post(&path).body(bytes.clone()))
        .await
        .problem(401, "unauthenticated");
    let caller = app.caller(Scope::Admin).await;
    Answer::of(caller.post(&path).body(bytes.clone()))
        .await
        .problem(404, "not_found");
    let fetching = Agent::with(&pool, attempt, Purpose::Upload).await;
    fetching
        .send(&app, StepName::Build, 0, &bytes)
        .await
        .problem(404, "not_found");
    fetching.seal(&app, 0, 0, 0).await.problem(404, "not_found");
    let other = AttemptId { number: 2, ..attempt };
    let other = Agent {
        token: agent.token.clone(),
        ..Agent::with(&pool, other, Purpose::Log).await
    };
    other
        .send(&app, StepName::Build, 0, &bytes)
        .await
        .problem(404, "not_found");
    // Its own token, but there is no such attempt.
    let never = Agent::with(&pool, AttemptId { number: 2, ..attempt }, Purpose::Log).await;
    never
        .send(&app, StepName::Build, 0, &bytes)
        .await
        .problem(404, "not_found");
    assert_eq!(text(&app, &agent).await, "");
    app.stop().await;
}

#[sqlx::test]
async fn nothing_is_taken_of_an_attempt_that_is_over(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let (mut hand, first) = begin(&app).await;
    hand.run().await;
    let bytes = lines(1..=2);
    first.push(&app, 0, &bytes).await;
    hand.fail(FailureCode::NodeLost).await;
    first
        .send(&app, StepName::Build, bytes.len(), b"")
        .await
        .problem(410, "attempt_over");
    // The next attempt changes nothing about that.
    let mut hand = Hand::claim(&pool, &app.signals).await;
    let second = Agent::of(&pool, &hand).await;
    assert_eq!(second.attempt.number, 2);
    first
        .send(&app, StepName::Build, 0, &bytes)
        .await
        .problem(410, "attempt_over");
    first
        .seal(&app, 2, bytes.len(), crc32(0, &bytes))
        .await
        .problem(410, "attempt_over");
    hand.run().await;
    assert_eq!(second.push(&app, 0, &bytes).await, bytes.len());
    hand.succeed().await;
    second
        .send(&app, StepName::Build, 0, &bytes)
        .await
        .problem(410, "attempt_over");
    assert_eq!(text(&app, &first).await, printed(1..=2).repeat(2));
    app.stop().await;
}

#[sqlx::test]
async fn a_seal_is_compared_with_what_arrived(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let (_hand, agent) = begin(&app).await;
    let all = lines(1..=4);
    agent.push(&app, 0, &lines(1..=3)).await;
    let problem = agent
        .seal(&app, 4, all.len(), crc32(0, &all))
        .await
        .problem(409, "log_offset");
    assert_eq!(problem["offset"], lines(1..=3).len());
    agent.push(&app, lines(1..=3).len(), &lines(4..=4)).await;
    for _ in 0..2 {
        let answer = agent.seal(&app, 4, all.len(), crc32(0, &all)).await;
        assert_eq!(answer.json(), json!({"offset": all.len(), "cancel": false}));
    }
    // Whoever didn't hear of the seal repeats the end.
    assert_eq!(agent.push(&app, lines(1..=3).len(), &lines(4..=4)).await, all.len());
    assert_eq!(gaps(&app, &agent).await, []);
    assert_eq!(text(&app, &agent).await, printed(1..=4));
    app.stop().await;
}

#[sqlx::test]
async fn a_seal_that_differs_is_a_gap_that_says_so(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let all = lines(1..=3);
    let cases = [
        (3, all.len(), 17, None, "the checksum of this step's log is"),
        (3, all.len() - 1, crc32(0, &all), None, "said that there are"),
        (5, all.len(), crc32(0, &all), Some(2), "did not reach Kiln"),
    ];
    for (count, bytes, sum, missing, words) in cases {
        let (hand, agent) = begin(&app).await;
        agent.push(&app, 0, &all).await;
        for _ in 0..2 {
            let answer = agent.seal(&app, count, bytes, sum).await;
            assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        }
        let gaps = gaps(&app, &agent).await;
        let [(lines, reason)] = gaps.as_slice() else {
            panic!("{gaps:?}")
        };
        assert_eq!(*lines, missing);
        assert!(reason.contains(words), "{reason}");
        let caller = app.caller(Scope::BuildsRead).await;
        assert_eq!(build(&caller, &agent).await["attempts"][0]["log"]["sealed"], false);
        hand.fail_later(FailureCode::NodeLost).await;
    }
    app.stop().await;
}

#[sqlx::test]
async fn lines_that_the_agent_dropped_are_one_gap_of_as_many(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let (_hand, agent) = begin(&app).await;
    let mut bytes = lines(1..=2);
    bytes.extend(frame(12, Stream::Truncated, "the spool was full"));
    bytes.extend(lines(13..=13));
    assert_eq!(agent.push(&app, 0, &bytes).await, bytes.len());
    assert_eq!(gaps(&app, &agent).await, [(Some(10), "the spool was full".to_owned())]);
    assert_eq!(text(&app, &agent).await, printed(1..=2) + &printed(13..=13));
    app.stop().await;
}

#[sqlx::test]
async fn what_is_not_a_log_is_refused_with_its_place(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let (_hand, agent) = begin(&app).await;
    let good = lines(1..=2);
    for bad in [&b"no frame\n"[..], b"3 1 o. no end", b"3 1 x. stream\n", b"\n"] {
        let bytes = [good.as_slice(), bad].concat();
        let problem = agent
            .send(&app, StepName::Build, 0, &bytes)
            .await
            .problem(422, "invalid_frames");
        let detail = problem["detail"].as_str().expect("text");
        assert!(detail.contains(&format!("at offset {}", good.len())), "{detail}");
    }
    let request = |rest: &str| agent.request(&app, rest).body(good.clone());
    let problem = Answer::of(request("?step=deploy&offset=-1&x=1"))
        .await
        .problem(400, "invalid_query");
    assert_eq!(problem["errors"].as_array().map(Vec::len), Some(3), "{problem}");
    Answer::of(request("?step=build")).await.problem(400, "invalid_query");
    let push = "?step=build&offset=0";
    let encoded = |encoding| request(push).header("content-encoding", encoding);
    Answer::of(encoded("gzip")).await.problem(415, "unsupported_encoding");
    Answer::of(encoded("zstd")).await.problem(400, "malformed_encoding");
    let large = lines(1..=100_000);
    assert!(large.len() > MAX_PUSH);
    Answer::of(agent.request(&app, push).body(large.clone()))
        .await
        .problem(413, "body_too_large");
    let packed = zstd::encode_all(large.as_slice(), 3).expect("compresses");
    let request = agent
        .request(&app, push)
        .header("content-encoding", "zstd")
        .body(packed);
    Answer::of(request).await.problem(413, "body_too_large");
    let seal = agent.request(&app, "/seal?step=build").json(&json!({"lines": "all"}));
    let problem = Answer::of(seal).await.problem(422, "invalid_request");
    assert_eq!(pointers(&problem), [""]);
    assert_eq!(
        events(&app, &agent).await.len(),
        2,
        "the build was queued and claimed, no more"
    );
    app.stop().await;
}

#[sqlx::test]
async fn limits_of_builds_and_projects_show_in_the_log(pool: PgPool) {
    let limits = |build, project| LogLimits {
        max_build_bytes: MemoryBytes(build),
        max_project_bytes_per_day: MemoryBytes(project),
        ..LogLimits::default()
    };
    for (limits, words) in [
        (limits(16, 1 << 30), "that are kept of a build's log"),
        (limits(1 << 30, 16), "that are kept of a day's logs"),
    ] {
        let app = TestApp::start_limited(&pool, limits, |_| {}).await;
        let (mut hand, agent) = begin(&app).await;
        hand.run().await;
        let all = lines(1..=30);
        assert_eq!(agent.push(&app, 0, &lines(1..=3)).await, lines(1..=3).len());
        assert_eq!(agent.push(&app, 0, &all).await, all.len());
        assert_eq!(text(&app, &agent).await, printed(1..=2));
        let gaps = gaps(&app, &agent).await;
        let [(None, reason)] = gaps.as_slice() else {
            panic!("{gaps:?}")
        };
        assert!(reason.contains(words), "{reason}");
        let cursor = match store::journal::find(&pool, agent.attempt).await.expect("reads") {
            store::journal::Found::Live(live) => live.standing.cursor.step(StepName::Build),
            other => panic!("{other:?}"),
        };
        assert_eq!((cursor.line, cursor.dropped), (30, Some(28)));
        assert_eq!(
            agent.seal(&app, 30, all.len(), crc32(0, &all)).await.status,
            StatusCode::OK
        );
        hand.succeed().await;
        app.stop().await;
        // Of the day's logs only those count that are there.
        sqlx::query("DELETE FROM builds").execute(&pool).await.expect("deletes");
    }
}

#[sqlx::test]
async fn a_wish_to_cancel_comes_with_the_next_answer_of_any_replica(pool: PgPool) {
    let (first, second) = (TestApp::start(&pool).await, TestApp::start(&pool).await);
    let caller = first.caller(Scope::BuildsWrite).await;
    let created = caller.create().await;
    let mut hand = Hand::claim(&pool, &first.signals).await;
    let agent = Agent::of(&pool, &hand).await;
    hand.run().await;
    let bytes = lines(1..=1);
    assert_eq!(
        agent.send(&second, StepName::Build, 0, &bytes).await.json()["cancel"],
        false
    );
    let cancelled = Answer::of(caller.post(&format!("/v1/builds/{}/cancel", id(&created)))).await;
    assert_eq!(cancelled.status, StatusCode::ACCEPTED, "{}", cancelled.text);
    for app in [&first, &second] {
        assert_eq!(
            agent.send(app, StepName::Build, bytes.len(), b"").await.json()["cancel"],
            true
        );
        // What is still printed is taken.
        assert_eq!(agent.send(app, StepName::Build, 0, &bytes).await.json()["cancel"], true);
    }
    let answer = agent.seal(&second, 1, bytes.len(), crc32(0, &bytes)).await;
    assert_eq!(answer.json(), json!({"offset": bytes.len(), "cancel": true}));
    first.stop().await;
    second.stop().await;
}

#[sqlx::test]
async fn a_step_that_begins_ends_the_one_before_it(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let (_hand, agent) = begin(&app).await;
    let source = lines(1..=2);
    let answer = agent.send(&app, StepName::Source, 0, &source).await;
    assert_eq!(held(&answer), source.len());
    let seal = json!({"lines": 2, "bytes": source.len(), "crc32": crc32(0, &source), "complete": true});
    let sealed = Answer::of(agent.request(&app, "/seal?step=source").json(&seal)).await;
    assert_eq!(sealed.status, StatusCode::OK, "{}", sealed.text);
    agent.push(&app, 0, &lines(1..=1)).await;
    let steps: Vec<_> = events(&app, &agent)
        .await
        .into_iter()
        .filter_map(|event| match event {
            Event::Step(step) => Some((step.step, step.phase)),
            _ => None,
        })
        .collect();
    assert_eq!(
        steps,
        [
            (StepName::Source, StepPhase::Started),
            (StepName::Source, StepPhase::Succeeded),
            (StepName::Build, StepPhase::Started),
        ]
    );
    app.stop().await;
}

#[sqlx::test]
async fn pushes_wait_for_memory_and_come_again(pool: PgPool) {
    let limits = LogLimits {
        // The least that lets a push through at all.
        max_push_memory: MemoryBytes(1),
        ..LogLimits::default()
    };
    let app = TestApp::start_limited(&pool, limits, |_| {}).await;
    let (_hand, agent) = begin(&app).await;
    let all = lines(1..=2);
    let (first, second) = all.split_at(lines(1..=1).len());
    // A body whose length nobody knows is taken for the largest.
    let (body, source) = tokio::sync::mpsc::channel::<Result<Vec<u8>, std::io::Error>>(1);
    body.send(Ok(first.to_vec())).await.expect("open");
    let source = futures::stream::unfold(source, |mut source| async { Some((source.recv().await?, source)) });
    let slow = agent
        .request(&app, "?step=build&offset=0")
        .body(reqwest::Body::wrap_stream(source));
    let slow = tokio::spawn(Answer::of(slow));
    let refused = soon("the slow one is in hand", async {
        loop {
            let answer = agent.send(&app, StepName::Build, 0, first).await;
            if answer.status != StatusCode::OK {
                return answer;
            }
        }
    })
    .await;
    refused.problem(503, "log_busy");
    assert_eq!(refused.header("retry-after"), "1");
    // A sign of life needs none.
    assert_eq!(agent.send(&app, StepName::Build, 0, b"").await.status, StatusCode::OK);
    body.send(Ok(second.to_vec())).await.expect("open");
    drop(body);
    assert_eq!(held(&slow.await.expect("no panic")), all.len());
    assert_eq!(text(&app, &agent).await, printed(1..=2));
    app.stop().await;
}
