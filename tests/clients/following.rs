//! One build, one replica that is restarted on the same port in the middle of it.

use std::{
    env,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use kiln::{
    domain::{event::StepName, failure::FailureCode, project::Scope},
    http::{PeerTimeouts, StreamTiming},
    journal::LogLimits,
};
use reqwest::StatusCode;
use serde::Deserialize;
use serde_json::json;
use sqlx::PgPool;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
};

use super::{
    service::{Answer, TestApp, id, soon},
    worker::Hand,
};

/// Lines that are printed before the restart, and after it.
const HALF: usize = 25;

/// What a client tells.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Told {
    Event {
        id: i64,
        kind: String,
    },
    #[expect(dead_code, reason = "that it was told is what counts")]
    Opened {
        opened: bool,
    },
    Closed {
        closed: serde_json::Value,
    },
}

struct Client {
    process: Child,
    output: Lines<BufReader<ChildStdout>>,
    events: Vec<(i64, String)>,
    opened: usize,
    closed: Option<serde_json::Value>,
}

impl Client {
    fn start(program: &str, arguments: &[&str]) -> Self {
        let mut process = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}; run scripts/test-clients.sh"));
        let output = BufReader::new(process.stdout.take().expect("a pipe")).lines();
        Self {
            process,
            output,
            events: Vec::new(),
            opened: 0,
            closed: None,
        }
    }

    /// Reads what it tells while `more` says so; false when it has ended.
    async fn listen(&mut self, more: impl Fn(&Self) -> bool) -> bool {
        while more(self) {
            let Some(line) = soon("what the client tells", self.output.next_line())
                .await
                .expect("reads")
            else {
                return false;
            };
            match serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}")) {
                Told::Event { id, kind } => self.events.push((id, kind)),
                Told::Opened { .. } => self.opened += 1,
                Told::Closed { closed } => self.closed = Some(closed),
            }
        }
        true
    }
}

/// Where the programs of the clients are.
fn folder() -> PathBuf {
    PathBuf::from(env::var_os("KILN_TEST_CLIENTS").expect("KILN_TEST_CLIENTS: run scripts/test-clients.sh"))
}

struct Scene {
    pool: PgPool,
    address: SocketAddr,
    app: TestApp,
    hand: Hand,
    /// The build's events, for whoever has this address.
    stream: String,
}

fn start(pool: &PgPool, address: &str) -> (TestApp, SocketAddr) {
    let listener = TcpListener::bind(address).expect("the port is free");
    let address = listener.local_addr().expect("an address");
    let app = TestApp::start_at(pool, LogLimits::default(), listener, PeerTimeouts::default(), |app| {
        app.streams = StreamTiming {
            retry: (Duration::from_millis(100), Duration::from_millis(200)),
            ..StreamTiming::default()
        };
    });
    (app, address)
}

impl Scene {
    async fn set(pool: PgPool) -> Self {
        let (app, address) = start(&pool, "127.0.0.1:0");
        let caller = app.caller(Scope::BuildsWrite).await;
        let build = caller.create().await;
        let asked = caller.post("/v1/stream-tickets").json(&json!({"build": build["id"]}));
        let ticket = Answer::of(asked).await.json();
        let stream = format!(
            "http://{address}/v1/builds/{}/events?ticket={}",
            id(&build),
            ticket["ticket"].as_str().expect("a ticket")
        );
        let mut hand = Hand::claim(&pool, &app.signals).await;
        hand.run().await;
        Self {
            pool,
            address,
            app,
            hand,
            stream,
        }
    }

    async fn print(&mut self) {
        for line in 0..HALF {
            self.hand.print(StepName::Build, &format!("line {line}\r\n")).await;
        }
    }

    async fn restart(self) -> Self {
        let Self {
            pool,
            address,
            app,
            hand,
            stream,
        } = self;
        app.stop().await;
        let (app, address) = start(&pool, &address.to_string());
        Self {
            pool,
            address,
            app,
            hand,
            stream,
        }
    }

    /// A client reads half of it, the replica is restarted, the client comes back by itself and stops at the end.
    async fn follow_with(mut self, mut client: Client) {
        soon("the first answer", client.listen(|client| client.opened == 0)).await;
        self.print().await;
        client.listen(|client| client.events.len() < HALF / 2).await;
        let mut restarted = self.restart().await;
        restarted.print().await;
        client.listen(|client| client.opened < 2).await;
        restarted.hand.fail(FailureCode::BuildFailed).await;
        client.listen(|client| client.closed.is_none()).await;
        let last = i64::try_from(2 * HALF).expect("small") + 5;
        let ids: Vec<i64> = client.events.iter().map(|(id, _)| *id).collect();
        assert!(ids.iter().copied().eq(1..=last), "{ids:?}, {:?}", client.closed);
        assert_eq!(client.events.last().map(|(_, kind)| kind.as_str()), Some("end"));
        let status = soon("the end of the client", client.process.wait())
            .await
            .expect("it ran");
        assert!(status.success(), "{status}");
        restarted.app.stop().await;
    }
}

#[sqlx::test]
async fn the_eventsource_of_npm(pool: PgPool) {
    let scene = Scene::set(pool).await;
    let script = folder().join("node.js");
    let client = Client::start("node", &[script.to_str().expect("text"), &scene.stream]);
    scene.follow_with(client).await;
}

#[sqlx::test]
async fn the_eventsource_of_a_browser(pool: PgPool) {
    let scene = Scene::set(pool).await;
    let script = folder().join("browser.js");
    // Any page of the service's will do.
    let page = format!("http://{}/healthz", scene.address);
    let arguments = [
        script.to_str().expect("text"),
        "/usr/bin/chromium",
        &page,
        &scene.stream,
    ];
    let client = Client::start("node", &arguments);
    scene.follow_with(client).await;
}

/// curl comes back when it is told to, after the last event that was whole.
#[sqlx::test]
async fn curl(pool: PgPool) {
    let mut scene = Scene::set(pool).await;
    let run = |after: i64, stream: &str| {
        let mut command = Command::new("curl");
        command
            .args(["-sSN", "--write-out", "\n%{http_code}\n", "--header"])
            .arg(format!("Last-Event-ID: {after}"))
            .arg(stream)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true);
        command.spawn().expect("curl")
    };
    let read = |output: &str| -> Vec<i64> {
        let ids = output.lines().filter_map(|line| line.strip_prefix("id: "));
        ids.map(|id| id.parse().expect("a number")).collect()
    };
    let mut first = run(0, &scene.stream);
    let mut lines = BufReader::new(first.stdout.take().expect("a pipe")).lines();
    let mut received = String::new();
    scene.print().await;
    while read(&received).len() < HALF {
        let line = soon("a line", lines.next_line()).await.expect("reads").expect("no end");
        received.push_str(&line);
        received.push('\n');
    }
    let mut scene = scene.restart().await;
    while let Some(line) = soon("the end", lines.next_line()).await.expect("reads") {
        received.push_str(&line);
        received.push('\n');
    }
    // The server has closed the stream as it should.
    assert!(soon("curl ends", first.wait()).await.expect("ends").success());
    scene.print().await;
    let mut ids = read(&received);
    let second = run(*ids.last().expect("an event"), &scene.stream);
    scene.hand.fail(FailureCode::BuildFailed).await;
    let output = soon("curl ends", second.wait_with_output()).await.expect("ends");
    assert!(output.status.success());
    ids.extend(read(&String::from_utf8(output.stdout).expect("text")));
    let last = i64::try_from(2 * HALF).expect("small") + 5;
    assert!(ids.iter().copied().eq(1..=last), "{ids:?}");
    let third = soon("curl ends", run(last, &scene.stream).wait_with_output())
        .await
        .expect("ends");
    let code = StatusCode::NO_CONTENT.as_str();
    assert_eq!(String::from_utf8(third.stdout).expect("text").trim(), code);
    scene.app.stop().await;
}
