//! Output as a document that is sent while it is read: text, or a JSON object a line.

use axum::{
    body::{Body, Bytes},
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use futures::{StreamExt as _, stream};
use tokio_util::sync::CancellationToken;

use super::{Selection, encode};
use crate::{
    domain::event::Event,
    http::{
        accept,
        live::{self, Cut},
        metrics::OpenStream,
        state::App,
    },
    journal::{ReadError, Reader, Slice, reader::Opened},
};

/// How the output is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Form {
    /// As it was printed.
    Text,
    /// One JSON object a line.
    JsonLines,
}

/// The output as it is now, or with `follow` until the build is over.
pub(in crate::http) fn respond(app: &App, opened: Opened, form: Form, selection: Selection, follow: bool) -> Response {
    let document = Document {
        pages: Pages {
            until: (!follow).then_some(opened.progress.head),
            reader: opened.reader,
        },
        encoder: Encoder::new(form, selection),
        stopping: app.stopping.clone(),
        _open: app.metrics.stream(),
    };
    let source = stream::unfold(Some(document), |document| async move {
        let mut document = document?;
        match document.next().await {
            Ok(None) => None,
            Ok(Some(bytes)) => Some((Ok(bytes), Some(document))),
            Err(cut) => {
                let cause = std::error::Error::source(&cut);
                tracing::warn!(error = %cut, cause = ?cause, "a log was cut off while it was being sent");
                Some((Err(cut), None))
            }
        }
    });
    if follow {
        live::respond(headers(form), source.boxed())
    } else {
        (headers(form), Body::from_stream(source)).into_response()
    }
}

pub(super) fn headers(form: Form) -> [(HeaderName, HeaderValue); 4] {
    let content_type = match form {
        Form::Text => "text/plain; charset=utf-8",
        Form::JsonLines => accept::NDJSON,
    };
    [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, "private, no-cache, no-transform"),
        (HeaderName::from_static("x-accel-buffering"), "no"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ]
    .map(|(name, value)| (name, HeaderValue::from_static(value)))
}

struct Document {
    pages: Pages,
    encoder: Encoder,
    stopping: CancellationToken,
    _open: OpenStream,
}

impl Document {
    async fn next(&mut self) -> Result<Option<Bytes>, Cut> {
        loop {
            let page = tokio::select! {
                biased;
                () = self.stopping.cancelled() => return Err(Cut::Stopping),
                page = self.pages.next() => page?,
            };
            let Some(page) = page else { return Ok(None) };
            let bytes = self.encoder.encode(&page);
            if !bytes.is_empty() {
                return Ok(Some(bytes.into()));
            }
        }
    }
}

/// Pages up to an entry, or to the end of the build.
pub(super) struct Pages {
    pub(super) reader: Reader,
    pub(super) until: Option<i64>,
}

impl Pages {
    pub(super) async fn next(&mut self) -> Result<Option<Slice>, ReadError> {
        match self.until {
            None => self.reader.next().await,
            // They are all there; an end that comes early is no end.
            Some(head) if self.reader.position() < head => {
                self.reader.available().await?.map(Some).ok_or(ReadError::Deleted)
            }
            Some(_) => Ok(None),
        }
    }
}

/// Writes pages in a form.
pub(super) struct Encoder {
    form: Form,
    selection: Selection,
    text: encode::Text,
}

impl Encoder {
    pub(super) fn new(form: Form, selection: Selection) -> Self {
        Self {
            form,
            selection,
            text: encode::Text::default(),
        }
    }

    pub(super) fn encode(&mut self, page: &Slice) -> Vec<u8> {
        let mut out = Vec::new();
        let selection = self.selection;
        let wanted = |event: &Event| !matches!(event, Event::End(_)) && selection.holds(event);
        match self.form {
            Form::JsonLines => page.json_lines(&mut out, wanted),
            Form::Text => {
                for (_, event) in page.iter().filter(|(_, event)| wanted(event)) {
                    self.text.write(&mut out, event);
                }
            }
        }
        out
    }
}
