//! What a stream of events costs with axum alone: `axum::response::Sse` behind a `tokio` broadcast channel, as its own
//! example has it. It runs as a process of its own, as Kiln does.

use std::{
    convert::Infallible,
    env,
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, Command, Stdio},
    sync::Arc,
};

use anyhow::Context as _;
use axum::{
    Router,
    extract::State,
    response::{
        Sse,
        sse::{Event, KeepAlive},
    },
    routing::get,
};
use futures::stream;
use tokio::sync::broadcast::{self, error::RecvError};

/// Set in the process that serves: the data of its events.
pub(crate) const DATA: &str = "KILN_BENCH_BARE_DATA";
/// More than is ever sent at once, so that no subscriber misses anything.
const CAPACITY: usize = 16 * 1024;

type Sender = broadcast::Sender<(u64, Arc<str>)>;

/// Serves until its input ends; prints its address first. Each line of input is a number of events to be sent.
pub(crate) fn serve(data: &str) -> anyhow::Result<()> {
    tokio::runtime::Runtime::new()?.block_on(async {
        let sender = Sender::new(CAPACITY);
        let router = Router::new().route("/", get(subscribe)).with_state(sender.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        let data: Arc<str> = data.into();
        std::thread::spawn(move || {
            let mut id = 0;
            for line in std::io::stdin().lines().map_while(Result::ok) {
                for _ in 0..line.parse::<u64>().unwrap_or(0) {
                    id += 1;
                    // Nobody may listen yet.
                    let _ = sender.send((id, Arc::clone(&data)));
                }
            }
        });
        Ok(axum::serve(listener, router).await?)
    })
}

async fn subscribe(State(sender): State<Sender>) -> Sse<impl stream::Stream<Item = Result<Event, Infallible>>> {
    let events = stream::unfold(sender.subscribe(), |mut receiver| async move {
        loop {
            match receiver.recv().await {
                Ok((id, data)) => {
                    let event = Event::default().id(id.to_string()).event("log").data(data);
                    return Some((Ok(event), receiver));
                }
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    });
    Sse::new(events).keep_alive(KeepAlive::default())
}

/// The running process; dropping it kills it.
pub(crate) struct Bare {
    process: Child,
    input: ChildStdin,
    pub(crate) base: String,
}

impl Bare {
    pub(crate) fn start(data: &str) -> anyhow::Result<Self> {
        let mut process = Command::new(env::current_exe()?)
            .env(DATA, data)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = process.stdin.take().context("it has an input")?;
        let mut address = String::new();
        BufReader::new(process.stdout.take().context("it has an output")?).read_line(&mut address)?;
        Ok(Self {
            process,
            input,
            base: format!("http://{}", address.trim()),
        })
    }

    /// Has it send events.
    pub(crate) fn publish(&mut self, events: usize) -> anyhow::Result<()> {
        Ok(writeln!(self.input, "{events}")?)
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // It has ended already, or it ends now.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
