//! The text of a finished build, which never changes again: any range of its bytes can be had (RFC 9110, section 14).
//! Journals are compressed, so a range costs one reading to know the length and one to send.

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures::stream;

use super::{
    Selection,
    document::{self, Encoder, Form, Pages},
};
use crate::{
    domain::id::BuildId,
    http::{
        error::{ApiError, Missing},
        state::App,
    },
    journal::{ReadError, Reader, reader::Opened},
};

/// The whole text, or the range that was asked for.
pub(in crate::http) async fn respond(
    app: &App,
    headers: &HeaderMap,
    id: BuildId,
    opened: Opened,
    selection: Selection,
) -> Result<Response, ApiError> {
    let head = opened.progress.head;
    let after = opened.reader.position();
    // What is selected is told by the URL; that it won't change, by the head.
    let etag = format!("\"{head}\"");
    let mut response = match requested(headers, &etag) {
        None => document::respond(app, opened, Form::Text, selection, false),
        Some(range) => {
            let length = length(opened.reader, head, selection).await?;
            let (first, last) = range.within(length).ok_or(ApiError::RangeNotSatisfiable(length))?;
            let opened = Reader::open(&app.history, &app.signals, id, after)
                .await?
                .ok_or(ApiError::NotFound(Missing::Build))?;
            let body = slice(opened.reader, head, selection, first, last);
            let mut response = (StatusCode::PARTIAL_CONTENT, document::headers(Form::Text), body).into_response();
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(last - first + 1));
            // Digits and ASCII.
            if let Ok(value) = HeaderValue::from_str(&format!("bytes {first}-{last}/{length}")) {
                headers.insert(header::CONTENT_RANGE, value);
            }
            response
        }
    };
    let headers = response.headers_mut();
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Ok(etag) = HeaderValue::from_str(&etag) {
        headers.insert(header::ETAG, etag);
    }
    Ok(response)
}

async fn length(reader: Reader, head: i64, selection: Selection) -> Result<u64, ReadError> {
    let mut pages = Pages {
        reader,
        until: Some(head),
    };
    let mut encoder = Encoder::new(Form::Text, selection);
    let mut length = 0;
    while let Some(page) = pages.next().await? {
        length += encoder.encode(&page).len() as u64;
    }
    Ok(length)
}

/// The bytes `first..=last` of the text.
fn slice(reader: Reader, head: i64, selection: Selection, first: u64, last: u64) -> Body {
    struct Slice {
        pages: Pages,
        encoder: Encoder,
        skip: u64,
        take: u64,
    }
    let slice = Slice {
        pages: Pages {
            reader,
            until: Some(head),
        },
        encoder: Encoder::new(Form::Text, selection),
        skip: first,
        take: last - first + 1,
    };
    Body::from_stream(stream::try_unfold(slice, |mut slice| async move {
        while slice.take > 0 {
            let Some(page) = slice.pages.next().await? else { break };
            let mut bytes = Bytes::from(slice.encoder.encode(&page));
            let skipped = clamp(slice.skip, bytes.len());
            drop(bytes.split_to(skipped));
            slice.skip -= skipped as u64;
            bytes.truncate(clamp(slice.take, bytes.len()));
            slice.take -= bytes.len() as u64;
            if !bytes.is_empty() {
                return Ok::<_, ReadError>(Some((bytes, slice)));
            }
        }
        Ok(None)
    }))
}

fn clamp(wanted: u64, available: usize) -> usize {
    usize::try_from(wanted).map_or(available, |wanted| wanted.min(available))
}

/// One range of bytes, as it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum ByteRange {
    From(u64),
    Between(u64, u64),
    Last(u64),
}

impl ByteRange {
    /// Reads a Range header. `None` when there is none to be honoured: several ranges, another unit, bad syntax.
    pub(in crate::http) fn parse(text: &str) -> Option<Self> {
        let (first, last) = text.trim().strip_prefix("bytes=")?.split_once('-')?;
        let number = |text: &str| {
            let text = text.trim();
            // Digits that don't fit name a place behind the end of any text.
            (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().unwrap_or(u64::MAX))
        };
        match (first.trim(), last.trim()) {
            ("", last) => number(last).map(Self::Last),
            (first, "") => number(first).map(Self::From),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::Between(first, last))
            }
        }
    }

    /// First and last byte in a text of this length.
    pub(in crate::http) fn within(self, length: u64) -> Option<(u64, u64)> {
        let end = length.checked_sub(1)?;
        match self {
            Self::From(first) => (first <= end).then_some((first, end)),
            Self::Between(first, last) => (first <= end).then_some((first, last.min(end))),
            Self::Last(0) => None,
            Self::Last(count) => Some((length.saturating_sub(count), end)),
        }
    }
}

fn requested(headers: &HeaderMap, etag: &str) -> Option<ByteRange> {
    // A range of another state of the text would not fit to what the caller has; then it gets all of it.
    if headers.get(header::IF_RANGE).is_some_and(|value| value != etag) {
        return None;
    }
    ByteRange::parse(headers.get(header::RANGE)?.to_str().ok()?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ranges_are_read() {
        for (text, range) in [
            ("bytes=0-99", Some(ByteRange::Between(0, 99))),
            ("bytes=100-", Some(ByteRange::From(100))),
            ("bytes=0-99999999999999999999", Some(ByteRange::Between(0, u64::MAX))),
            ("bytes=-99999999999999999999", Some(ByteRange::Last(u64::MAX))),
            ("bytes=-5", Some(ByteRange::Last(5))),
            ("bytes=5-4", None),
            ("bytes=-", None),
            ("bytes=0-1,3-4", None),
            ("bytes=+1-2", None),
            ("lines=0-1", None),
        ] {
            assert_eq!(ByteRange::parse(text), range, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_range_lies_within(a in 0_u64..20, b in 0_u64..20, length in 0_u64..20) {
            for range in [ByteRange::From(a), ByteRange::Between(a.min(b), a.max(b)), ByteRange::Last(a)] {
                if let Some((first, last)) = range.within(length) {
                    prop_assert!(first <= last && last < length);
                }
            }
        }
    }
}
