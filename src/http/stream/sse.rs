//! Server-sent events. Every stream pulls from its reader, so a slow client costs itself only and loses nothing.

use std::{future::Future, time::Duration};

use axum::{
    body::Bytes,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures::{StreamExt as _, stream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Selection;
use crate::{
    domain::{event::Change, state::StateName},
    http::{error::ApiError, live, metrics::OpenStream, state::App},
    journal::{ChangeReader, ReadError, Reader, reader::Opened},
};

/// When streams say something, and how long they live.
#[derive(Clone, Copy, Debug)]
pub struct StreamTiming {
    /// Silence after which a comment is sent: proxies cut connections that are silent, many after a minute.
    pub keep_alive: Duration,
    /// Bounds of a stream's life. Peers that are gone without a word pile up behind proxies; a client that is still
    /// there comes back.
    pub lifetime: (Duration, Duration),
    /// Bounds of a client's wait before it comes back, so that not all come back at once.
    pub retry: (Duration, Duration),
}

impl Default for StreamTiming {
    fn default() -> Self {
        Self {
            keep_alive: Duration::from_secs(15),
            lifetime: (Duration::from_mins(25), Duration::from_mins(35)),
            retry: (Duration::from_millis(500), Duration::from_secs(3)),
        }
    }
}

/// The sequence number that a client saw last.
pub(in crate::http) fn last_event_id(headers: &HeaderMap) -> Result<Option<i64>, ApiError> {
    let Some(value) = headers.get("last-event-id").filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    match value.to_str().ok().and_then(|text| text.parse().ok()) {
        Some(seq) if seq >= 0 => Ok(Some(seq)),
        _ => Err(ApiError::InvalidHeader {
            name: "Last-Event-ID",
            detail: "expected the id of an event of this stream",
        }),
    }
}

/// The stream, or 204 when it was sent to its end before.
pub(in crate::http) fn respond(app: &App, opened: Opened, selection: Selection) -> Response {
    if opened.is_caught_up() {
        return StatusCode::NO_CONTENT.into_response();
    }
    let source = Entries {
        reader: opened.reader,
        selection,
    };
    stream(app, source, "")
}

/// Changes of many builds, from where the reader stands. The stream has no end of its own.
pub(in crate::http) fn respond_changes(app: &App, reader: ChangeReader, states: Vec<StateName>) -> Response {
    // A client that comes back before it has seen a change goes on from here.
    let position = format!("id: {}\n", reader.position());
    stream(app, Changes { reader, states }, &position)
}

/// Where the events of a stream come from.
trait Source: Send + 'static {
    /// The next events; waits for some. `None` at the end of all. Dropping the future loses nothing.
    fn next(&mut self) -> impl Future<Output = Result<Option<Bytes>, ReadError>> + Send;
}

/// A build's journal.
struct Entries {
    reader: Reader,
    selection: Selection,
}

impl Source for Entries {
    async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        loop {
            let Some(page) = self.reader.next().await? else {
                return Ok(None);
            };
            let events = page.server_sent(|event| self.selection.holds(event));
            if !events.is_empty() {
                return Ok(Some(events));
            }
        }
    }
}

/// States that builds have entered.
struct Changes {
    reader: ChangeReader,
    /// Only these; all when empty.
    states: Vec<StateName>,
}

impl Source for Changes {
    async fn next(&mut self) -> Result<Option<Bytes>, ReadError> {
        loop {
            let changes = self.reader.next().await?;
            let wanted = |change: &Change| self.states.is_empty() || self.states.contains(&change.state);
            let events = changes.server_sent(wanted);
            if !events.is_empty() {
                return Ok(Some(events));
            }
        }
    }
}

fn stream(app: &App, source: impl Source, position: &str) -> Response {
    let timing = app.streams;
    let retry = app.random.between(timing.retry.0, timing.retry.1).as_millis();
    let now = Instant::now();
    let events = Events {
        // Headers go out with the first bytes.
        greeting: Some(Bytes::from(format!("retry: {retry}\n{position}: kiln\n\n"))),
        source,
        keep_alive: timing.keep_alive,
        keep_alive_at: now + timing.keep_alive,
        close_at: now + app.random.between(timing.lifetime.0, timing.lifetime.1),
        stopping: app.stopping.clone(),
        _open: app.metrics.stream(),
    };
    let source = stream::unfold(events, |mut events| async move {
        let bytes = events.next().await?;
        Some((Ok(bytes), events))
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache, no-transform"),
        (HeaderName::from_static("x-accel-buffering"), "no"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ]
    .map(|(name, value)| (name, HeaderValue::from_static(value)));
    live::respond(headers, source.boxed())
}

struct Events<S> {
    greeting: Option<Bytes>,
    source: S,
    keep_alive: Duration,
    keep_alive_at: Instant,
    close_at: Instant,
    stopping: CancellationToken,
    _open: OpenStream,
}

impl<S: Source> Events<S> {
    /// The next bytes; `None` closes the stream. A client that has not seen `end` comes back by itself.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(greeting) = self.greeting.take() {
            return Some(greeting);
        }
        let next = tokio::select! {
            biased;
            () = self.stopping.cancelled() => return None,
            () = tokio::time::sleep_until(self.close_at) => return None,
            next = tokio::time::timeout_at(self.keep_alive_at, self.source.next()) => next,
        };
        let bytes = match next {
            Err(_) => Bytes::from_static(b":\n\n"),
            Ok(Ok(bytes)) => bytes?,
            Ok(Err(error)) => {
                tracing::warn!(error = %error, "an event stream was closed because the journal can't be read");
                return None;
            }
        };
        self.keep_alive_at = Instant::now() + self.keep_alive;
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_event_id_is_a_number() {
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("last-event-id", value.parse().expect("a header value"));
            last_event_id(&headers).ok()
        };
        assert_eq!(last_event_id(&HeaderMap::new()).ok(), Some(None));
        assert_eq!(read(""), Some(None));
        assert_eq!(read("7"), Some(Some(7)));
        for bad in ["-1", "x", "99999999999999999999"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
