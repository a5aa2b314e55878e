//! Many subscribers in a process of their own, so that what they need isn't counted as the server's. They read and count
//! events, and do as little else as can be.

use std::{
    env,
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpSocket, TcpStream},
    sync::watch,
    task::JoinSet,
};
use url::Url;

/// Set in the process of the subscribers: what they are to do, as JSON.
pub(crate) const TASK: &str = "KILN_BENCH_SUBSCRIBERS";
/// Stands once in every event, and nowhere else.
pub(crate) const MARK: u8 = b'~';
/// Connections made at the same time.
const OPENING: usize = 64;
/// What a slow subscriber reads in a second.
const SLOW: usize = 1024;
const LIMIT: Duration = Duration::from_mins(2);

#[derive(Serialize, Deserialize)]
pub(crate) struct Task {
    pub(crate) url: Url,
    pub(crate) token: Option<String>,
    pub(crate) subscribers: usize,
    /// So many of them read slowly and aren't waited for.
    pub(crate) slow: usize,
}

/// Subscribes and prints a line when everybody has an answer. Each line of input is a number of events that every
/// subscriber is to receive from then on; it is answered by a line at once, and by one with the seconds after which each
/// fast one had them.
pub(crate) fn run(task: &str) -> anyhow::Result<()> {
    let task: Task = serde_json::from_str(task)?;
    tokio::runtime::Runtime::new()?.block_on(subscribe(task))
}

async fn subscribe(task: Task) -> anyhow::Result<()> {
    let authorization = task.token.map(|token| format!("authorization: Bearer {token}\r\n"));
    let request = format!(
        "GET {} HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n{}\r\n",
        task.url.path(),
        authorization.unwrap_or_default()
    );
    let address = task.url.socket_addrs(|| None)?[0];
    let (goals, _) = watch::channel((0_u64, Instant::now()));
    let finished = Finished::default();
    let opening = Arc::new(tokio::sync::Semaphore::new(OPENING));
    let mut opened = JoinSet::new();
    for number in 0..task.subscribers {
        let (request, goal, finished, opening) = (
            request.clone(),
            goals.subscribe(),
            Arc::clone(&finished),
            Arc::clone(&opening),
        );
        opened.spawn(async move {
            let _permit = opening.acquire().await?;
            let socket = TcpSocket::new_v4()?;
            let slow = number < task.slow;
            if slow {
                socket.set_recv_buffer_size(4096)?;
            }
            let mut stream = socket.connect(address).await?;
            stream.write_all(request.as_bytes()).await?;
            let mut head = [0; 15];
            tokio::io::AsyncReadExt::read_exact(&mut stream, &mut head).await?;
            if !head.starts_with(b"HTTP/1.1 200 OK") {
                bail!("the server answered {}", String::from_utf8_lossy(&head));
            }
            if slow {
                tokio::spawn(read_slowly(stream));
            } else {
                tokio::spawn(count(stream, goal, finished));
            }
            Ok(())
        });
    }
    while let Some(outcome) = opened.join_next().await {
        outcome??;
    }
    println!("{{}}");
    for line in std::io::stdin().lines() {
        let wanted: u64 = line?.parse()?;
        taken(&finished).clear();
        goals.send_modify(|goal| *goal = (goal.0 + wanted, Instant::now()));
        // Nothing may come before it is counted.
        println!("{{}}");
        let fast = task.subscribers - task.slow;
        let deadline = Instant::now() + LIMIT;
        let seconds = loop {
            let seconds = taken(&finished).clone();
            if seconds.len() == fast {
                break seconds;
            }
            if Instant::now() > deadline {
                bail!("only {} of {fast} subscribers got everything", seconds.len());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        println!("{}", serde_json::to_string(&seconds)?);
    }
    Ok(())
}

/// Seconds after which each had what was wanted.
type Finished = Arc<Mutex<Vec<f64>>>;

fn taken(finished: &Finished) -> MutexGuard<'_, Vec<f64>> {
    finished.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn count(stream: TcpStream, mut goal: watch::Receiver<(u64, Instant)>, finished: Finished) {
    let seen = AtomicU64::new(0);
    let read = async {
        loop {
            if stream.readable().await.is_err() {
                return;
            }
            let counted = BUFFER.with_borrow_mut(|buffer| match stream.try_read(buffer) {
                Ok(0) => None,
                Ok(length) => Some(marks(&buffer[..length])),
                Err(error) => (error.kind() == std::io::ErrorKind::WouldBlock).then_some(0),
            });
            let Some(counted) = counted else { return };
            let total = seen.fetch_add(counted, Ordering::Relaxed) + counted;
            let (wanted, begun) = *goal.borrow_and_update();
            if counted > 0 && total >= wanted && total - counted < wanted {
                taken(&finished).push(begun.elapsed().as_secs_f64());
            }
        }
    };
    read.await;
}

fn marks(bytes: &[u8]) -> u64 {
    bytes.iter().map(|byte| u64::from(*byte == MARK)).sum()
}

async fn read_slowly(stream: TcpStream) {
    let mut buffer = [0; SLOW];
    while stream.readable().await.is_ok() {
        match stream.try_read(&mut buffer) {
            Ok(0) => return,
            Ok(_) => tokio::time::sleep(Duration::from_secs(1)).await,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

thread_local! {
    /// One for all subscribers of a thread.
    static BUFFER: std::cell::RefCell<Vec<u8>> = std::cell::RefCell::new(vec![0; 256 << 10]);
}

/// The running process; dropping it ends it.
pub(crate) struct Subscribers {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Subscribers {
    /// Returns when all of them have an answer.
    pub(crate) fn start(task: &Task) -> anyhow::Result<Self> {
        let mut process = Command::new(env::current_exe()?)
            .env(TASK, serde_json::to_string(task)?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = process.stdin.take().context("it has an input")?;
        let output = BufReader::new(process.stdout.take().context("it has an output")?);
        let mut subscribers = Self { process, input, output };
        subscribers.line()?;
        Ok(subscribers)
    }

    /// Says how many events are about to come.
    pub(crate) fn expect(&mut self, events: usize) -> anyhow::Result<()> {
        writeln!(self.input, "{events}")?;
        self.line()?;
        Ok(())
    }

    /// Waits until everybody who reads fast has them; the seconds that it took each.
    pub(crate) fn received(&mut self) -> anyhow::Result<Vec<f64>> {
        Ok(serde_json::from_str(&self.line()?)?)
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            bail!("the subscribers gave up");
        }
        Ok(line)
    }
}

impl Drop for Subscribers {
    fn drop(&mut self) {
        // It has ended already, or it ends now.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
