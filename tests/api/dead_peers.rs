//! Clients that are gone without a word: their streams end by themselves. The clients have a network of their own (a
//! namespace, which takes root), whose cable is then pulled.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::mpsc,
    thread,
    time::Duration,
};

use kiln::{domain::project::Scope, http::PeerTimeouts, journal::LogLimits};
use nix::{
    sched::{CloneFlags, unshare},
    unistd::gettid,
};
use sqlx::PgPool;
use tokio::sync::oneshot;

use super::support::{TestApp, id, soon, token};

type Job = Box<dyn FnOnce() + Send>;

/// A network with nothing in it: a thread that is in it, which does what it is told. Sockets stay in the network they
/// were made in.
struct Network {
    jobs: mpsc::Sender<Job>,
    thread: i32,
}

impl Network {
    fn new() -> Self {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (sender, thread) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace, which only root may make");
            sender.send(gettid().as_raw()).expect("waited for");
            for job in inbox {
                job();
            }
        });
        Self {
            jobs,
            thread: thread.recv().expect("a namespace"),
        }
    }

    async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (sender, outcome) = oneshot::channel();
        let job = Box::new(move || drop(sender.send(job())));
        self.jobs.send(job).expect("the thread waits");
        soon("what is done in a network", outcome).await.expect("done")
    }

    async fn ip(&self, arguments: &str) {
        let arguments: Vec<String> = arguments.split(' ').map(str::to_owned).collect();
        let output = self.run(move || Command::new("ip").args(arguments).output().expect("iproute2"));
        let output = output.await;
        assert!(output.status.success(), "{output:?}");
    }
}

#[sqlx::test]
async fn streams_of_dead_clients_end(pool: PgPool) {
    let (ours, theirs) = (Network::new(), Network::new());
    ours.ip(&format!(
        "link add kiln0 type veth peer name kiln1 netns {}",
        theirs.thread
    ))
    .await;
    ours.ip("addr add 192.0.2.1/24 dev kiln0").await;
    ours.ip("link set kiln0 up").await;
    theirs.ip("addr add 192.0.2.2/24 dev kiln1").await;
    theirs.ip("link set kiln1 up").await;
    let listener = ours.run(|| TcpListener::bind("192.0.2.1:0").expect("listens")).await;
    let address: SocketAddr = listener.local_addr().expect("an address");
    let peers = PeerTimeouts {
        acknowledge: Duration::from_secs(1),
        ask_after: Duration::from_secs(1),
    };
    let app = TestApp::start_at(&pool, LogLimits::default(), listener, peers, |app| {
        app.streams.keep_alive = Duration::from_millis(100);
    });
    let token = token(&pool, "default", Scope::BuildsWrite, None).await;

    // Where the test itself can reach it.
    let near = TestApp::start(&pool).await;
    let caller = near.caller(Scope::BuildsWrite).await;
    // One that is sent comments all the time, and one that nothing is sent.
    let mut clients = Vec::new();
    for what in ["events", "logs?follow=1"] {
        let build = caller.create().await;
        let get = format!(
            "GET /v1/builds/{}/{what} HTTP/1.1\r\nhost: kiln\r\nauthorization: Bearer {token}\r\n\r\n",
            id(&build)
        );
        let open = move || {
            let mut stream = TcpStream::connect(address).expect("connects");
            stream.write_all(get.as_bytes()).expect("asks");
            let mut answer = [0; 15];
            stream.read_exact(&mut answer).expect("an answer");
            assert_eq!(&answer, b"HTTP/1.1 200 OK");
            stream
        };
        clients.push(theirs.run(open).await);
    }
    let followed = |count: usize| {
        let heads = app.signals.heads();
        soon("the number of followed builds", async move {
            while heads.watched() != count {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
    };
    followed(2).await;
    theirs.ip("link set kiln1 down").await;
    followed(0).await;
    // They have never closed their ends.
    drop(clients);
    near.stop().await;
    app.stop().await;
}
