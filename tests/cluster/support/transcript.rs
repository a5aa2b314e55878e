//! What was received of a build's events, over any number of connections.

use std::{pin::Pin, time::Duration};

use futures::{Stream, StreamExt};
use reqwest::StatusCode;
use serde_json::Value;

use super::{Api, DEADLINE, text};

/// One server-sent event.
#[derive(Clone, Debug)]
pub(in crate::cluster) struct Event {
    pub(in crate::cluster) kind: String,
    pub(in crate::cluster) data: Value,
}

/// Why reading stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cluster) enum Stop {
    /// What was waited for came.
    Wanted,
    /// The server closed the stream as HTTP wants it.
    Closed,
    /// The connection broke.
    Broken,
}

/// An open connection to `/v1/builds/{id}/events`.
pub(in crate::cluster) struct Connection {
    bytes: Pin<Box<dyn Stream<Item = reqwest::Result<bytes::Bytes>> + Send>>,
    /// Received, and not yet a whole event.
    pending: Vec<u8>,
}

/// The events of one build in the order of their arrival. Panics at the first that is missing, doubled or out of
/// order, whatever connections they came by.
pub(in crate::cluster) struct Transcript {
    build: String,
    last: i64,
    pub(in crate::cluster) events: Vec<Event>,
}

impl Transcript {
    pub(in crate::cluster) fn new(build: &str) -> Self {
        Self {
            build: build.to_owned(),
            last: 0,
            events: Vec::new(),
        }
    }

    /// Opens a connection that goes on where the events received so far end.
    pub(in crate::cluster) async fn connect(&self, api: &Api) -> Connection {
        self.try_connect(api).await.expect("an answer")
    }

    /// The same, where perhaps nobody answers.
    pub(in crate::cluster) async fn try_connect(&self, api: &Api) -> Option<Connection> {
        let request = api.get_request(&format!("/v1/builds/{}/events", self.build));
        let request = request.header("accept", "text/event-stream");
        let response = request.header("last-event-id", self.last).send().await.ok()?;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Some(Connection {
            bytes: response.bytes_stream().boxed(),
            pending: Vec::new(),
        })
    }

    /// Reads until an event is what is waited for, or the connection ends.
    pub(in crate::cluster) async fn read(
        &mut self,
        connection: &mut Connection,
        wanted: impl FnMut(&Event) -> bool,
    ) -> Stop {
        self.read_within(DEADLINE, connection, wanted).await
    }

    async fn read_within(
        &mut self,
        limit: Duration,
        connection: &mut Connection,
        mut wanted: impl FnMut(&Event) -> bool,
    ) -> Stop {
        let reading = async {
            loop {
                let event = match connection.next().await {
                    Ok(Some((id, event))) => {
                        self.take(id, &event);
                        event
                    }
                    Ok(None) => return Stop::Closed,
                    Err(_) => return Stop::Broken,
                };
                let stop = wanted(&event);
                self.events.push(event);
                if stop {
                    return Stop::Wanted;
                }
            }
        };
        let read = tokio::time::timeout(limit, reading).await;
        read.unwrap_or_else(|_| panic!("the events don't go on after {:?}", self.events.last()))
    }

    /// Reads until the build has printed this many of its numbered lines.
    pub(in crate::cluster) async fn read_lines(&mut self, connection: &mut Connection, count: usize) {
        let mut seen = kiln_lines(&self.text()).len();
        if seen >= count {
            return;
        }
        let stop = self
            .read(connection, |event| {
                if event.kind == "log" {
                    seen += kiln_lines(text(&event.data, "/text")).len();
                }
                seen >= count
            })
            .await;
        assert_eq!(stop, Stop::Wanted, "ended after {seen} lines");
    }

    /// Reads to the build's end, and makes sure that nothing follows. Returns the `end` event's data.
    pub(in crate::cluster) async fn read_to_end(&mut self, api: &Api) -> Value {
        self.read_to_end_within(api, DEADLINE).await
    }

    /// The same for a build that takes longer.
    pub(in crate::cluster) async fn read_to_end_within(&mut self, api: &Api, limit: Duration) -> Value {
        if self.events.last().is_none_or(|event| event.kind != "end") {
            let mut connection = self.connect(api).await;
            let stop = self.read_within(limit, &mut connection, |_| false).await;
            assert_eq!(stop, Stop::Closed);
        }
        let end = self.events.last().expect("events");
        assert_eq!(end.kind, "end", "the stream was closed before the end");
        let request = api.get_request(&format!("/v1/builds/{}/events", self.build));
        let request = request.header("last-event-id", self.last);
        let response = request
            .timeout(Duration::from_secs(10))
            .send()
            .await
            .expect("an answer");
        assert_eq!(response.status(), StatusCode::NO_CONTENT, "something follows the end");
        end.data.clone()
    }

    /// All output, as it was printed.
    pub(in crate::cluster) fn text(&self) -> String {
        let logs = self.events.iter().filter(|event| event.kind == "log");
        logs.map(|event| text(&event.data, "/text")).collect()
    }

    /// Events of a kind.
    pub(in crate::cluster) fn of_kind(&self, kind: &str) -> Vec<&Value> {
        let events = self.events.iter().filter(|event| event.kind == kind);
        events.map(|event| &event.data).collect()
    }

    /// The states that the build went through.
    pub(in crate::cluster) fn states(&self) -> Vec<&str> {
        let mut states: Vec<_> = self
            .of_kind("status")
            .into_iter()
            .map(|data| text(data, "/state"))
            .collect();
        states.dedup();
        states
    }

    fn take(&mut self, id: i64, event: &Event) {
        assert_eq!(id, self.last + 1, "not the event that follows: {event:?}");
        assert_eq!(event.data["seq"], id);
        assert!(
            self.events.last().is_none_or(|last| last.kind != "end"),
            "an event after the end: {event:?}"
        );
        self.last = id;
    }
}

impl Connection {
    /// The next event with its id; comments and `retry` are passed over.
    async fn next(&mut self) -> reqwest::Result<Option<(i64, Event)>> {
        loop {
            if let Some(end) = self.pending.windows(2).position(|pair| pair == b"\n\n") {
                let block: Vec<u8> = self.pending.drain(..end + 2).collect();
                let block = String::from_utf8(block).expect("UTF-8");
                if let Some(event) = parse(&block) {
                    return Ok(Some(event));
                }
                continue;
            }
            match self.bytes.next().await {
                Some(bytes) => self.pending.extend_from_slice(&bytes?),
                None => return Ok(None),
            }
        }
    }
}

fn parse(block: &str) -> Option<(i64, Event)> {
    let field = |name: &str| {
        block
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    };
    let data = field("data")?;
    let id = field("id").expect("an id").parse().expect("a number");
    let event = Event {
        kind: field("event").expect("a kind").to_owned(),
        data: serde_json::from_str(data).expect("JSON"),
    };
    Some((id, event))
}

/// The numbers of the lines `kiln line <number>` (and perhaps more) that a command of the Dockerfile printed; BuildKit puts the vertex
/// and the time before each.
pub(in crate::cluster) fn kiln_lines(log: &str) -> Vec<u32> {
    log.lines()
        .filter_map(|line| {
            let (vertex, rest) = line.split_once(' ')?;
            let (time, printed) = rest.split_once(' ')?;
            vertex.strip_prefix('#')?.parse::<u32>().ok()?;
            time.parse::<f64>().ok()?;
            printed.strip_prefix("kiln line ")?.split(' ').next()?.parse().ok()
        })
        .collect()
}
