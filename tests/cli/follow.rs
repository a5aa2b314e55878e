//! Following a build over connections that break and replicas that go away: no line is lost, none is printed twice.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use kiln::{
    domain::{event::StepName, failure::FailureCode, project::Scope},
    http::StreamTiming,
};
use serde_json::Value;
use sqlx::PgPool;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::{
    service::{TestApp, soon},
    support::{Ran, Shell, finish},
    worker::Hand,
};

/// What stands between the client and the service, and breaks.
struct Wire {
    url: String,
    state: Arc<Mutex<State>>,
}

struct State {
    /// Where the service is; `None` while it is away.
    service: Option<SocketAddr>,
    /// After how many bytes of a stream the next connections are cut.
    cuts: Vec<usize>,
    /// How many streams were opened.
    streams: usize,
}

impl Wire {
    async fn to(app: &TestApp, cuts: &[usize]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let mut cuts = cuts.to_vec();
        cuts.reverse();
        let state = Arc::new(Mutex::new(State {
            service: Some(address(app)),
            cuts,
            streams: 0,
        }));
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, Arc::clone(&shared)));
            }
        });
        Self { url, state }
    }

    fn set(&self, service: Option<SocketAddr>) {
        self.state.lock().expect("sound").service = service;
    }

    fn streams(&self) -> usize {
        self.state.lock().expect("sound").streams
    }
}

fn address(app: &TestApp) -> SocketAddr {
    app.base().trim_start_matches("http://").parse().expect("an address")
}

/// Carries one connection until either end is gone or it is to be cut.
async fn carry(mut client: TcpStream, state: Arc<Mutex<State>>) {
    let service = state.lock().expect("sound").service;
    let Some(service) = service else { return };
    let Ok(mut service) = TcpStream::connect(service).await else {
        return;
    };
    let (mut there, mut back) = (vec![0; 16 * 1024], vec![0; 16 * 1024]);
    // Bytes that may still pass, once a stream was asked for on this connection.
    let mut left: Option<usize> = None;
    loop {
        tokio::select! {
            read = client.read(&mut there) => {
                let Ok(read @ 1..) = read else { return };
                if String::from_utf8_lossy(&there[..read]).contains("/events ") {
                    let mut state = state.lock().expect("sound");
                    state.streams += 1;
                    left = state.cuts.pop();
                }
                if service.write_all(&there[..read]).await.is_err() {
                    return;
                }
            }
            read = service.read(&mut back) => {
                let Ok(read @ 1..) = read else { return };
                let passed = left.map_or(read, |left| left.min(read));
                if client.write_all(&back[..passed]).await.is_err() || left == Some(passed) {
                    return;
                }
                left = left.map(|left| left - passed);
            }
        }
    }
}

async fn start(pool: &PgPool) -> TestApp {
    TestApp::start_with(pool, |app| {
        app.streams = StreamTiming {
            retry: (Duration::from_millis(1), Duration::from_millis(5)),
            ..StreamTiming::default()
        };
    })
    .await
}

const BUILD: [&str; 3] = ["build", "https://git.example/app.git", "--no-push"];

/// Starts to follow a new build.
fn follow(shell: &Shell, arguments: &[&str]) -> tokio::task::JoinHandle<Ran> {
    let mut command = shell.command(arguments);
    tokio::spawn(async move { finish(&mut command).await })
}

async fn queued(pool: &PgPool, app: &TestApp) -> Hand {
    soon("a queued build", async {
        loop {
            let queued: i64 = sqlx::query_scalar("SELECT count(*) FROM builds")
                .fetch_one(pool)
                .await
                .expect("reads");
            if queued > 0 {
                return;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    Hand::claim(pool, &app.signals).await
}

fn line(number: usize) -> String {
    format!("line {number} {}\n", "x".repeat(number * 7 % 90))
}

#[sqlx::test]
async fn the_output_of_a_build_arrives_once_over_connections_that_break(pool: PgPool) {
    let app = start(&pool).await;
    let mut shell = Shell::of(&app, Scope::BuildsWrite).await;
    // In the middle of the headers, of an event, at once.
    let cuts = [40, 400, 0, 333, 334, 900, 1200, 1, 5000, 777];
    let wire = Wire::to(&app, &cuts).await;
    shell.url = Some(wire.url.clone());
    let client = follow(&shell, &BUILD);
    let mut hand = queued(&pool, &app).await;
    hand.run().await;
    for number in 0..150 {
        hand.print(StepName::Build, &line(number)).await;
    }
    hand.succeed().await;
    let ran = soon("the end of the client", client).await.expect("no panic").expect(0);
    assert_eq!(ran.out, (0..150).map(line).collect::<String>());
    ran.says(&[
        "kiln: build ",
        "kiln: the connection is gone",
        "connected again",
        "kiln: succeeded after",
    ]);
    assert_eq!(wire.streams(), cuts.len() + 1);
    app.stop().await;
}

#[sqlx::test]
async fn a_replica_that_restarts_is_waited_for(pool: PgPool) {
    let first = start(&pool).await;
    let mut shell = Shell::of(&first, Scope::BuildsWrite).await;
    let wire = Wire::to(&first, &[]).await;
    shell.url = Some(wire.url.clone());
    let client = follow(&shell, &BUILD);
    let mut hand = queued(&pool, &first).await;
    hand.run().await;
    for number in 0..20 {
        hand.print(StepName::Build, &line(number)).await;
    }
    soon("the stream is open", async {
        while wire.streams() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    wire.set(None);
    first.stop().await;
    for number in 20..40 {
        hand.print(StepName::Build, &line(number)).await;
    }
    let second = start(&pool).await;
    wire.set(Some(address(&second)));
    for number in 40..60 {
        hand.print(StepName::Build, &line(number)).await;
    }
    hand.fail(FailureCode::BuildFailed).await;
    let ran = soon("the end of the client", client).await.expect("no panic").expect(1);
    assert_eq!(ran.out, (0..60).map(line).collect::<String>());
    ran.says(&["kiln: failed after", "build_failed: it broke"]);
    second.stop().await;
}

#[sqlx::test]
async fn a_retried_attempt_is_told_and_json_stands_alone(pool: PgPool) {
    let app = start(&pool).await;
    let shell = Shell::of(&app, Scope::BuildsWrite).await;
    let mut arguments = BUILD.to_vec();
    arguments.push("--json");
    let client = follow(&shell, &arguments);
    let mut hand = queued(&pool, &app).await;
    hand.run().await;
    hand.print(StepName::Build, "first\n").await;
    hand.fail(FailureCode::NodeLost).await;
    let mut hand = Hand::claim(&pool, &app.signals).await;
    hand.run().await;
    hand.print(StepName::Build, "second\n").await;
    hand.succeed().await;
    let ran = soon("the end of the client", client).await.expect("no panic").expect(0);
    let build = ran.json();
    assert_eq!(
        (&build["state"], build["attempts"].as_array().map(Vec::len)),
        (&Value::from("succeeded"), Some(2))
    );
    ran.says(&[
        "first\n",
        "attempt 1 failed (node_lost): it broke; it is tried again",
        "second\n",
        ", 2 attempts",
    ]);
    app.stop().await;
}

#[sqlx::test]
async fn a_reader_that_goes_away_is_no_panic(pool: PgPool) {
    let app = start(&pool).await;
    let shell = Shell::of(&app, Scope::BuildsWrite).await;
    let id = shell
        .run(&["build", "https://git.example/app.git", "--no-push", "-d"])
        .await
        .expect(0)
        .out;
    let mut hand = Hand::claim(&pool, &app.signals).await;
    hand.run().await;
    for number in 0..50 {
        hand.print(StepName::Build, &format!("{}{}", line(number), "y".repeat(8000)))
            .await;
    }
    let mut command = shell.command(&["logs", id.trim()]);
    let mut child = command.spawn().expect("starts");
    drop(child.stdout.take());
    let ended = soon("the end of the client", child.wait_with_output())
        .await
        .expect("waited for");
    assert_eq!(ended.status.code(), Some(141));
    assert_eq!(String::from_utf8_lossy(&ended.stderr), "");
    app.stop().await;
}
