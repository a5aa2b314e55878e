//! `POST /internal/v1/attempts/{attempt}/log`: a piece of a step's log, or a sign of life.

pub(in crate::http) mod seal;

use std::{io, io::Read as _, str::FromStr};

use axum::{
    Json,
    body::{Body, Bytes, HttpBody as _},
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, header},
};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use kiln_agent::wire::push::{MAX_PUSH, PRINTED, Printed, PushAnswer, SpoolStep};

use super::{LoggingAttempt, pushes::Pushes};
use crate::{
    domain::{
        event::StepName,
        spec::{
            Invalid,
            reader::{Object, Reported},
        },
    },
    http::{
        body,
        error::{ApiError, Missing},
        query::{Parameters, Query},
        state::App,
    },
    journal::push::{Acknowledged, Piece, PushError},
};

/// Bytes that compression may add to what can't be compressed.
const OVERHEAD: usize = 64 * 1024;

/// Which bytes a push brings.
pub(in crate::http) struct Place {
    step: StepName,
    offset: u64,
}

impl Parameters for Place {
    fn read(query: &Object<'_>) -> Result<Self, Reported> {
        let step = step(query);
        let field = query.field("offset");
        let offset = field.parse::<Offset>().and_then(|offset| {
            let expected = || field.report("expected where in the step's spool the body begins");
            offset.ok_or_else(expected)
        });
        let (step, Offset(offset)) = (step?, offset?);
        Ok(Self { step, offset })
    }
}

/// The step that a call is about.
fn step(query: &Object<'_>) -> Result<StepName, Reported> {
    let field = query.field("step");
    let step = field.parse::<Step>()?;
    step.map(|Step(step)| step)
        .ok_or_else(|| field.report("expected `source` or `build`"))
}

struct Step(StepName);

impl FromStr for Step {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text.parse() {
            Ok(SpoolStep::Source) => Ok(Self(StepName::Source)),
            Ok(SpoolStep::Build) => Ok(Self(StepName::Build)),
            Err(_) => Err(Invalid::new("expected `source` or `build`")),
        }
    }
}

struct Offset(u64);

impl FromStr for Offset {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        // Far from where adding lengths would overflow.
        let offset = text.parse::<i64>().ok().and_then(|offset| u64::try_from(offset).ok());
        offset
            .map(Self)
            .ok_or_else(|| Invalid::new("expected a number of bytes"))
    }
}

/// Answers once everything that was sent is durable.
pub(in crate::http) async fn push(
    State(app): State<App>,
    LoggingAttempt(attempt): LoggingAttempt,
    Query(Place { step, offset }): Query<Place>,
    request: Request,
) -> Result<Json<PushAnswer>, ApiError> {
    let pushes = &app.pushes;
    let counted = async {
        let packed = Encoding::of(request.headers())?;
        let printed = printed(request.headers());
        let _memory = pushes.admit(request.body().size_hint().exact()).await?;
        let body = read(request.into_body()).await?;
        let bytes = unpack(packed, body)?;
        let piece = Piece {
            step,
            offset,
            bytes: &bytes,
            printed,
        };
        let told = pushes.logs().push(attempt, piece).await.map_err(refused)?;
        pushes.metrics().took(bytes.len(), told.newest_ms, app.clock.now());
        Ok(told)
    };
    answer(pushes, counted.await)
}

/// What an attempt is told, which is also counted.
fn answer(pushes: &Pushes, told: Result<Acknowledged, ApiError>) -> Result<Json<PushAnswer>, ApiError> {
    let told = told.inspect_err(|error| pushes.metrics().refused(error))?;
    Ok(Json(PushAnswer {
        offset: told.offset,
        cancel: told.cancel,
    }))
}

fn refused(error: PushError) -> ApiError {
    match error {
        PushError::Over => ApiError::AttemptOver,
        PushError::Never => ApiError::NotFound(Missing::Route),
        PushError::Offset(offset) => ApiError::LogOffset(offset),
        PushError::Frames { offset, problem } => ApiError::InvalidFrames { offset, problem },
        PushError::Failed => ApiError::Journal,
        PushError::Store(error) => ApiError::Store(error),
    }
}

/// How much the step has printed. Only the counting of what may get lost depends on it, so nothing is refused for it.
fn printed(headers: &HeaderMap) -> Option<Printed> {
    headers.get(PRINTED)?.to_str().ok()?.parse().ok()
}

/// How a body is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Plain,
    Zstd,
}

impl Encoding {
    fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        match headers.get(header::CONTENT_ENCODING).map(HeaderValue::as_bytes) {
            None | Some(b"identity") => Ok(Self::Plain),
            Some(b"zstd") => Ok(Self::Zstd),
            Some(_) => Err(ApiError::UnsupportedEncoding),
        }
    }
}

async fn read(body: Body) -> Result<Bytes, ApiError> {
    let whole = Limited::new(body, MAX_PUSH + OVERHEAD).collect();
    let whole = tokio::time::timeout(body::TIMEOUT, whole).await;
    match whole.map_err(|_| ApiError::BodyTimeout)? {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ApiError::BodyTooLarge(MAX_PUSH)),
        Err(_) => Err(ApiError::BodyIncomplete),
    }
}

/// The frames of a body, of which there may be [`MAX_PUSH`] bytes, however small they were made.
fn unpack(encoding: Encoding, body: Bytes) -> Result<Bytes, ApiError> {
    let bytes = match encoding {
        Encoding::Plain => body,
        Encoding::Zstd if body.is_empty() => body,
        Encoding::Zstd => decompress(&body)?,
    };
    if bytes.len() > MAX_PUSH {
        return Err(ApiError::BodyTooLarge(MAX_PUSH));
    }
    Ok(bytes)
}

fn decompress(body: &[u8]) -> Result<Bytes, ApiError> {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(body.len() * 4);
        let mut decoder = zstd::Decoder::new(body)?;
        // A frame can't make the decoder keep more than it could ever need here.
        decoder.window_log_max(MAX_PUSH.ilog2() + 3)?;
        decoder.take(MAX_PUSH as u64 + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map(Bytes::from).map_err(ApiError::MalformedEncoding)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_bounded_by_what_they_become() {
        let zeros = |length| zstd::encode_all(vec![b'0'; length].as_slice(), 3).expect("compresses");
        let unpack = |bytes: Vec<u8>| unpack(Encoding::Zstd, bytes.into());
        assert_eq!(unpack(zeros(MAX_PUSH)).expect("fits").len(), MAX_PUSH);
        assert!(matches!(
            unpack(zeros(MAX_PUSH + 1)),
            Err(ApiError::BodyTooLarge(MAX_PUSH))
        ));
        assert!(matches!(unpack(zeros(1 << 30)), Err(ApiError::BodyTooLarge(MAX_PUSH))));
        assert!(matches!(
            unpack(b"no zstd".to_vec()),
            Err(ApiError::MalformedEncoding(_))
        ));
        let mut cut = zeros(1000);
        cut.pop();
        assert!(matches!(unpack(cut), Err(ApiError::MalformedEncoding(_))));
        assert_eq!(unpack(Vec::new()).expect("nothing"), Bytes::new());
    }
}
