//! Following a build: server-sent events, resumed after the last one that was seen, over dropped connections and
//! restarted replicas, without losing or doubling any.

use std::{sync::Arc, time::Duration};

use futures::StreamExt as _;
use reqwest::{Response, header};
use sse_stream::SseByteStream;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::task::AbortOnDropHandle;

use super::{
    api::Api,
    error::ClientError,
    wire::{Entry, Event},
};

/// The server says something every 15 seconds; after this much silence the connection is dead.
const SILENCE: Duration = Duration::from_mins(1);
/// Pause before the first try to come back, unless the server asks for another, and the longest.
pub(super) const FIRST_PAUSE: Duration = Duration::from_millis(500);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// How long a service may be away before following it is given up.
pub(super) const PATIENCE: Duration = Duration::from_mins(10);
/// Entries that are held for a slow terminal.
const AHEAD: usize = 256;

/// What of a build is followed.
#[derive(Clone, Debug)]
pub(super) enum What {
    /// Everything.
    Events,
    /// The output, of one step if one is named.
    Output(Option<String>),
}

/// What a follower tells.
#[derive(Debug)]
pub(super) enum News {
    /// The next thing that happened.
    Entry(Entry),
    /// The connection is gone; another is being made.
    Lost,
    /// It is there again.
    Back,
    /// It can't be followed any further.
    Failed(ClientError),
}

/// A build that is being followed, by a task that ends with this.
pub(super) struct Follower {
    news: mpsc::Receiver<News>,
    _task: AbortOnDropHandle<()>,
}

impl Follower {
    /// Follows a build from right after this event. `known` says that the service was just there and is worth waiting for
    /// from the beginning; without, the first connection has to succeed.
    pub(super) fn start(api: &Api, id: String, what: What, after: i64, known: bool) -> Self {
        let (sender, news) = mpsc::channel(AHEAD);
        let task = Task {
            api: api.clone(),
            id: id.into(),
            what,
            position: after,
            known,
            base: FIRST_PAUSE,
            news: sender,
        };
        Self {
            news,
            _task: AbortOnDropHandle::new(tokio::spawn(task.run())),
        }
    }

    /// The next piece of news; `None` once all has been told. Can be dropped and called again without losing any.
    pub(super) async fn next(&mut self) -> Option<News> {
        self.news.recv().await
    }
}

struct Task {
    api: Api,
    id: Arc<str>,
    what: What,
    /// The last event that was passed on.
    position: i64,
    /// Whether the service has been there.
    known: bool,
    /// Pause before the first try to come back.
    base: Duration,
    news: mpsc::Sender<News>,
}

/// How a connection ended.
enum Cut {
    /// All has been told, or nobody listens any more.
    Done,
    /// It broke, or the server closed it as it does now and then.
    Broken(ClientError),
    /// What came makes no sense, and wouldn't the next time.
    Failed(ClientError),
}

impl Task {
    async fn run(mut self) {
        let mut pause = self.base;
        let mut away: Option<Instant> = None;
        loop {
            let before = self.position;
            let error = match self.open().await {
                Ok(None) => return,
                Ok(Some(response)) => {
                    self.known = true;
                    if away.take().is_some() && self.news.send(News::Back).await.is_err() {
                        return;
                    }
                    match self.read(response).await {
                        Cut::Done => return,
                        Cut::Failed(error) => return self.fail(error).await,
                        Cut::Broken(error) => error,
                    }
                }
                Err(error) => error,
            };
            let since = *away.get_or_insert_with(Instant::now);
            if !error.is_passing() || !self.known || since.elapsed() > PATIENCE {
                return self.fail(error).await;
            }
            let progress = self.position > before;
            // A server that closes a stream which has said something does so on purpose: no news for anybody.
            if !progress && self.news.send(News::Lost).await.is_err() {
                return;
            }
            pause = if progress { self.base } else { pause.max(self.base) };
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn fail(self, error: ClientError) {
        // Nobody needs it if nobody listens.
        let _ = self.news.send(News::Failed(error)).await;
    }

    async fn open(&self) -> Result<Option<Response>, ClientError> {
        let end = match self.what {
            What::Events => "events",
            What::Output(_) => "logs",
        };
        let mut request = self.api.get(&["v1", "builds", &self.id, end]);
        if let What::Output(Some(step)) = &self.what {
            request = request.query(&[("step", step)]);
        }
        request = request
            .header(header::ACCEPT, "text/event-stream")
            .header("Last-Event-ID", self.position.to_string());
        self.api.stream(request).await
    }

    /// Passes on what a connection brings. Only whole events count, so one that was cut in the middle comes again.
    async fn read(&mut self, response: Response) -> Cut {
        let lost = |instead: Option<String>| {
            Cut::Broken(ClientError::Lost {
                url: self.api.url().clone(),
                instead,
            })
        };
        let mut blocks = SseByteStream::new(response.bytes_stream().boxed());
        loop {
            let block = match tokio::time::timeout(SILENCE, blocks.next()).await {
                Err(_) => return lost(Some("it has gone silent".to_owned())),
                Ok(None) => return lost(None),
                Ok(Some(Err(error))) => return lost(Some(error.to_string())),
                Ok(Some(Ok(block))) => block,
            };
            if let Some(retry) = block.retry {
                self.base = Duration::from_millis(retry).min(LONGEST_PAUSE);
            }
            let Some(data) = block.data else { continue };
            let kind = block.event.as_deref().unwrap_or("message");
            let Some(entry) = Entry::read(kind, &data) else {
                return Cut::Failed(ClientError::NotKiln {
                    url: self.api.url().clone(),
                    what: format!("an event of kind {kind} can't be read"),
                });
            };
            if entry.seq <= self.position {
                continue;
            }
            self.position = entry.seq;
            let ended = matches!(entry.event, Event::End(_));
            if self.news.send(News::Entry(entry)).await.is_err() || ended {
                return Cut::Done;
            }
        }
    }
}
