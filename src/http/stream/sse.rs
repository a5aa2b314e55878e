//! Server-sent events. Every stream pulls from its reader, so a slow client costs itself only and loses nothing.

use std::{convert::Infallible, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures::stream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Selection, encode};
use crate::{
    http::{error::ApiError, metrics::OpenStream, state::App},
    journal::{Reader, reader::Opened},
    store::journal::Page,
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
            detail: "expected the id of an event of this build",
        }),
    }
}

/// The stream, or 204 when it was sent to its end before.
pub(in crate::http) fn respond(app: &App, opened: Opened, selection: Selection) -> Response {
    if opened.is_caught_up() {
        return StatusCode::NO_CONTENT.into_response();
    }
    let timing = app.streams;
    let retry = app.random.between(timing.retry.0, timing.retry.1).as_millis();
    let now = Instant::now();
    let events = Events {
        // Headers go out with the first bytes.
        greeting: Some(Bytes::from(format!("retry: {retry}\n: kiln\n\n"))),
        reader: opened.reader,
        selection,
        keep_alive: timing.keep_alive,
        keep_alive_at: now + timing.keep_alive,
        close_at: now + app.random.between(timing.lifetime.0, timing.lifetime.1),
        stopping: app.stopping.clone(),
        _open: app.metrics.stream(),
    };
    let body = stream::unfold(events, |mut events| async move {
        let bytes = events.next().await?;
        Some((Ok::<_, Infallible>(bytes), events))
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache, no-transform"),
        (HeaderName::from_static("x-accel-buffering"), "no"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ]
    .map(|(name, value)| (name, HeaderValue::from_static(value)));
    (headers, Body::from_stream(body)).into_response()
}

struct Events {
    greeting: Option<Bytes>,
    reader: Reader,
    selection: Selection,
    keep_alive: Duration,
    keep_alive_at: Instant,
    close_at: Instant,
    stopping: CancellationToken,
    _open: OpenStream,
}

impl Events {
    /// The next bytes; `None` closes the stream. A client that has not seen `end` comes back by itself.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(greeting) = self.greeting.take() {
            return Some(greeting);
        }
        let bytes = loop {
            let page = tokio::select! {
                biased;
                () = self.stopping.cancelled() => return None,
                () = tokio::time::sleep_until(self.close_at) => return None,
                page = tokio::time::timeout_at(self.keep_alive_at, self.reader.next()) => page,
            };
            match page {
                Err(_) => break Bytes::from_static(b":\n\n"),
                Ok(Ok(None)) => return None,
                Ok(Ok(Some(page))) => {
                    let bytes = self.encode(&page);
                    if !bytes.is_empty() {
                        break bytes;
                    }
                }
                Ok(Err(error)) => {
                    tracing::warn!(error = %error, "an event stream was closed because the journal can't be read");
                    return None;
                }
            }
        };
        self.keep_alive_at = Instant::now() + self.keep_alive;
        Some(bytes)
    }

    fn encode(&self, page: &Page) -> Bytes {
        let mut out = Vec::new();
        for (seq, event) in page.iter().filter(|(_, event)| self.selection.holds(event)) {
            encode::server_sent(&mut out, *seq, event);
        }
        out.into()
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
