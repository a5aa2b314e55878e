//! What holds of streams whatever they carry: many at a time, at any speed, over more than one replica, on any
//! connection.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use kiln::{
    domain::{event::StepName, failure::FailureCode, project::Scope},
    journal::{Signals, TailLimits},
};
use sqlx::PgPool;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    sync::watch,
    task::JoinSet,
};

use super::events::{Received, Stream, kinds};
use crate::api::{
    support::{TestApp, id, soon, token},
    worker::Hand,
};

/// Bytes that a slow reader takes at once, and how often it does.
const SLOW: (usize, Duration) = (1024, Duration::from_secs(1));

async fn connect(app: &TestApp, receive_buffer: Option<u32>) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    if let Some(size) = receive_buffer {
        socket.set_recv_buffer_size(size).expect("a size");
    }
    let address = app.base().trim_start_matches("http://").parse().expect("an address");
    socket.connect(address).await.expect("connects")
}

fn request(method: &str, path: &str, version: &str, token: &str) -> String {
    format!(
        "{method} {path} HTTP/{version}\r\nhost: kiln\r\naccept: text/event-stream\r\nauthorization: Bearer {token}\r\n\r\n"
    )
}

/// The head of an answer, and its body as it was before it was cut into chunks. Fails where a chunk isn't whole.
fn unchunked(answer: &[u8]) -> (String, String) {
    let split = answer
        .windows(4)
        .position(|bytes| bytes == b"\r\n\r\n")
        .expect("a head");
    let head = String::from_utf8(answer[..split].to_vec()).expect("text");
    let (mut rest, mut body) = (&answer[split + 4..], Vec::new());
    loop {
        let end = rest.windows(2).position(|bytes| bytes == b"\r\n").expect("a size");
        let size = std::str::from_utf8(&rest[..end]).expect("digits");
        let size = usize::from_str_radix(size, 16).expect("a number");
        rest = &rest[end + 2..];
        body.extend_from_slice(&rest[..size]);
        assert_eq!(&rest[size..size + 2], b"\r\n");
        rest = &rest[size + 2..];
        if size == 0 {
            assert!(rest.is_empty());
            return (head, String::from_utf8(body).expect("text"));
        }
    }
}

fn ids(body: &str) -> Vec<i64> {
    let ids = body.lines().filter_map(|line| line.strip_prefix("id: "));
    ids.map(|id| id.parse().expect("a number")).collect()
}

#[sqlx::test]
async fn those_who_read_fast_do_not_feel_those_who_read_slowly(pool: PgPool) {
    const EACH: usize = 100;
    const PRINTED: usize = 96;
    let limits = TailLimits {
        build: 128 << 10,
        total: 256 << 10,
    };
    let app = TestApp::start_with(&pool, |app| {
        app.signals = Signals::with_tails(app.pool.clone(), limits).0;
    })
    .await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let path = format!("/v1/builds/{}/events", id(&caller.create().await));
    let token = token(&pool, "default", Scope::BuildsRead, None).await;
    let (hurry, _) = watch::channel(false);
    let taken: Arc<[AtomicUsize]> = (0..EACH).map(|_| AtomicUsize::new(0)).collect();
    let (mut fast, mut slow) = (JoinSet::new(), JoinSet::new());
    for number in 0..EACH {
        let mut stream = connect(&app, None).await;
        stream
            .write_all(request("GET", &path, "1.1", &token).as_bytes())
            .await
            .expect("asks");
        fast.spawn(async move {
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.expect("reads");
            answer
        });
        let mut stream = connect(&app, Some(4096)).await;
        stream
            .write_all(request("GET", &path, "1.1", &token).as_bytes())
            .await
            .expect("asks");
        let (mut hurry, taken) = (hurry.subscribe(), Arc::clone(&taken));
        slow.spawn(async move {
            let mut answer = vec![0; SLOW.0];
            let mut ticks = tokio::time::interval(SLOW.1);
            let mut length = 0;
            loop {
                tokio::select! {
                    _ = ticks.tick() => {}
                    _ = hurry.wait_for(|hurry| *hurry) => break,
                }
                length += stream.read(&mut answer[length..]).await.expect("reads");
                answer.resize(length + SLOW.0, 0);
                taken[number].store(length, Ordering::Relaxed);
            }
            answer.truncate(length);
            stream.read_to_end(&mut answer).await.expect("reads");
            answer
        });
    }
    let mut hand = Hand::claim(&pool, &app.signals).await;
    hand.run().await;
    for _ in 0..PRINTED {
        hand.print(StepName::Build, &format!("{}\n", "#".repeat(16 << 10)))
            .await;
    }
    hand.fail(FailureCode::BuildFailed).await;

    let head = i64::try_from(PRINTED).expect("small") + 5;
    let complete = |answers: Vec<Vec<u8>>| {
        assert_eq!(answers.len(), EACH);
        for answer in answers {
            let (_, body) = unchunked(&answer);
            assert!(ids(&body).into_iter().eq(1..=head));
            assert_eq!(body.matches('#').count(), PRINTED << 14);
        }
    };
    complete(soon("the fast ones end", fast.join_all()).await);
    // The others have long to go, and nothing is kept for them.
    assert_eq!(slow.len(), EACH);
    assert!(slow.try_join_next().is_none(), "a slow reader has ended");
    assert!(taken.iter().all(|taken| taken.load(Ordering::Relaxed) < PRINTED << 13));
    assert!(app.signals.heads().held_bytes() <= limits.total);
    hurry.send_replace(true);
    complete(soon("the slow ones end", slow.join_all()).await);
    app.stop().await;
}

/// No hint reaches the second replica at all.
#[sqlx::test]
async fn readers_go_on_at_another_replica_and_need_no_hints(pool: PgPool) {
    const LINES: usize = 30;
    let replicas = [TestApp::start(&pool).await, TestApp::start(&pool).await];
    let callers = [
        replicas[0].caller(Scope::BuildsWrite).await,
        replicas[1].caller(Scope::BuildsRead).await,
    ];
    let path = format!("/v1/builds/{}/events", id(&callers[0].create().await));
    let mut hand = Hand::claim(&pool, &replicas[0].signals).await;
    hand.run().await;
    let mut streams = Vec::new();
    for _ in 0..5 {
        streams.push(Stream::open(callers[0].get(&path)).await);
    }
    for line in 0..LINES / 2 {
        hand.print(StepName::Build, &format!("{line}\n")).await;
    }
    let mut received: Vec<Vec<Received>> = Vec::new();
    for (number, stream) in streams.iter_mut().enumerate() {
        let mut events = Vec::new();
        // Each has come to another place.
        for _ in 0..3 + number * 3 {
            events.push(stream.next().await.expect("an event"));
        }
        received.push(events);
    }
    replicas[0].begin_stop();
    for (stream, events) in streams.iter_mut().zip(&mut received) {
        while let Some(event) = stream.next().await {
            events.push(event);
        }
        let after = events.last().expect("an event").id;
        *stream = Stream::open(callers[1].get(&path).header("last-event-id", after)).await;
    }
    for line in LINES / 2..LINES {
        hand.print(StepName::Build, &format!("{line}\n")).await;
    }
    hand.fail(FailureCode::BuildFailed).await;
    for (stream, mut events) in streams.into_iter().zip(received) {
        events.extend(stream.rest().await);
        let ids: Vec<i64> = events.iter().map(|event| event.id).collect();
        assert!(
            ids.iter().copied().eq(1..=i64::try_from(LINES).expect("small") + 5),
            "{ids:?}"
        );
        assert_eq!(kinds(&events).last(), Some(&"end"));
    }
    for replica in replicas {
        replica.stop().await;
    }
}

#[sqlx::test]
async fn a_stream_can_follow_other_requests_on_its_connection(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let path = format!("/v1/builds/{}/events", id(&caller.create().await));
    let token = token(&pool, "default", Scope::BuildsRead, None).await;
    let hand = Hand::claim(&pool, &app.signals).await;
    let get = request("GET", &path, "1.1", &token);
    let mut stream = connect(&app, None).await;
    // At once, as a proxy may; what comes behind a stream isn't answered.
    let health = request("GET", "/healthz", "1.1", &token);
    let all = format!("{health}{}{get}{health}", request("HEAD", &path, "1.1", &token));
    stream.write_all(all.as_bytes()).await.expect("asks");
    hand.fail(FailureCode::BuildFailed).await;
    let mut answer = Vec::new();
    soon("the stream ends", stream.read_to_end(&mut answer))
        .await
        .expect("reads");
    let text = String::from_utf8(answer).expect("text");
    let answers: Vec<&str> = text.split("HTTP/1.1 200 OK\r\n").collect();
    assert_eq!(answers.len(), 4, "{text}");
    assert!(
        answers[2].contains("text/event-stream") && answers[2].ends_with("\r\n\r\n"),
        "{text}"
    );
    let (head, body) = unchunked(answers[3].as_bytes());
    assert!(
        head.contains("connection: close") && head.contains("x-request-id: "),
        "{head}"
    );
    assert_eq!(ids(&body), [1, 2, 3, 4]);
    app.stop().await;
}

#[sqlx::test]
async fn a_client_that_knows_no_chunks_gets_none(pool: PgPool) {
    let app = TestApp::start(&pool).await;
    let caller = app.caller(Scope::BuildsWrite).await;
    let path = format!("/v1/builds/{}/events", id(&caller.create().await));
    let token = token(&pool, "default", Scope::BuildsRead, None).await;
    let mut stream = connect(&app, None).await;
    stream
        .write_all(request("GET", &path, "1.0", &token).as_bytes())
        .await
        .expect("asks");
    let hand = Hand::claim(&pool, &app.signals).await;
    hand.fail(FailureCode::BuildFailed).await;
    let mut answer = String::new();
    soon("the stream ends", stream.read_to_string(&mut answer))
        .await
        .expect("reads");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(!head.contains("chunked"), "{head}");
    assert!(body.starts_with("retry: "), "{body}");
    assert_eq!(ids(body), [1, 2, 3, 4]);
    app.stop().await;
}
