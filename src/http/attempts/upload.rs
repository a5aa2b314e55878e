//! `GET /internal/v1/attempts/{attempt}/upload`: the archive that the attempt is to build from.

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use futures::{Stream, stream};
use sqlx::PgPool;

use super::FetchingAttempt;
use crate::{
    domain::id::UploadId,
    http::{
        error::{ApiError, Missing},
        state::App,
    },
    store::uploads::{self, CHUNK, Upload},
};

/// Sends the archive from where `Range: bytes=N-` says, so that a connection that broke costs no more than what was on
/// its way.
pub(in crate::http) async fn get(
    State(app): State<App>,
    FetchingAttempt(attempt): FetchingAttempt,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let upload = uploads::of_attempt(&app.pool, attempt)
        .await?
        .ok_or(ApiError::NotFound(Missing::Upload))?;
    let from = headers.get(header::RANGE).and_then(first_byte);
    let start = from.unwrap_or(0);
    if start > 0 && start >= upload.bytes {
        return Err(ApiError::RangeNotSatisfiable(upload.bytes));
    }
    let left = upload.bytes - start;
    let digest = repr_digest(&upload);
    let (last, total) = (upload.bytes - 1, upload.bytes);
    let body = Body::from_stream(pieces(app.pool.clone(), upload.id, start, left));
    let mut response = body.into_response();
    let mut set = |name, value: String| {
        // Numbers and base64 are fit for headers.
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(name, value);
        }
    };
    set(header::CONTENT_TYPE, "application/octet-stream".to_owned());
    set(header::CONTENT_LENGTH, left.to_string());
    set(header::ACCEPT_RANGES, "bytes".to_owned());
    set(header::HeaderName::from_static("repr-digest"), digest);
    if from.is_some() {
        set(header::CONTENT_RANGE, format!("bytes {start}-{last}/{total}"));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

/// The digest of the whole archive, whatever part of it is sent (RFC 9530).
fn repr_digest(upload: &Upload) -> String {
    let bytes = hex::decode(upload.sha256.as_str()).unwrap_or_default();
    format!("sha-256=:{}:", BASE64_STANDARD.encode(bytes))
}

/// The first byte of a range that is open at its end; other ranges aren't honoured, which HTTP allows.
fn first_byte(range: &HeaderValue) -> Option<u64> {
    range
        .to_str()
        .ok()?
        .strip_prefix("bytes=")?
        .strip_suffix('-')?
        .parse()
        .ok()
}

/// Reads piece by piece, each when the one before is on its way.
fn pieces(pool: PgPool, id: UploadId, start: u64, left: u64) -> impl Stream<Item = Result<Bytes, Gone>> {
    let chunk = CHUNK as u64;
    stream::try_unfold((start, left), move |(at, left)| {
        let pool = pool.clone();
        async move {
            if left == 0 {
                return Ok(None);
            }
            let number = i32::try_from(at / chunk).map_err(|_| Gone)?;
            let piece = uploads::chunk(&pool, id, number).await.map_err(|error| {
                tracing::warn!(upload.id = %id, error = %error, "an upload can't be read; the attempt will ask again");
                Gone
            })?;
            let skip = usize::try_from(at % chunk).map_err(|_| Gone)?;
            let piece = piece.filter(|piece| piece.len() > skip).ok_or(Gone)?.slice(skip..);
            let sent = piece.len() as u64;
            Ok(Some((piece, (at + sent, left.saturating_sub(sent)))))
        }
    })
}

/// The rest can't be had now. The connection is cut, so that a part never looks whole.
#[derive(Debug, thiserror::Error)]
#[error("the rest of the upload can't be read")]
struct Gone;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_to_the_end_are_understood() {
        let read = |text: &str| first_byte(&text.parse().expect("a header value"));
        assert_eq!(read("bytes=0-"), Some(0));
        assert_eq!(read("bytes=1024-"), Some(1024));
        for other in ["bytes=-5", "bytes=1-2", "items=1-", "bytes=a-", "bytes=1-,5-"] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
