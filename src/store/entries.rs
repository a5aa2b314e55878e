//! How journal entries are packed into rows: one JSON object a line, compressed when that pays.

use std::borrow::Cow;

use crate::domain::event::Event;

/// Below this size compression costs more than it saves.
const COMPRESS_FROM: usize = 512;
/// Fast, and close to the higher levels on log text.
const LEVEL: i32 = 1;
/// Bound for decompression, so that a damaged row can't exhaust memory. Far above what is ever packed into a row.
const MAX_PLAIN: usize = 64 << 20;

/// Entries in the form of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// How many.
    pub count: i64,
    /// 0: plain, 1: zstd.
    pub codec: i16,
    /// The bytes.
    pub body: Vec<u8>,
}

impl Packed {
    /// No entries: nothing that a row could hold.
    pub const NOTHING: Self = Self {
        count: 0,
        codec: 0,
        body: Vec::new(),
    };
}

/// A row's bytes aren't what [`pack`] makes.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The compression is damaged or unknown.
    #[error("the row can't be decompressed")]
    Codec(#[source] std::io::Error),
    /// The JSON is damaged.
    #[error("the row holds something that isn't an entry")]
    Json(#[source] serde_json::Error),
}

/// Packs entries for one row.
///
/// # Panics
/// When there are none, because a row without entries has no number.
pub fn pack(events: &[Event]) -> Packed {
    assert!(!events.is_empty(), "a row holds at least one entry");
    let mut plain = Vec::with_capacity(256);
    for event in events {
        // Unwrap: strings, numbers and dates always serialise, and a Vec takes every write.
        serde_json::to_writer(&mut plain, event).expect("events serialise");
        plain.push(b'\n');
    }
    let count = i64::try_from(events.len()).expect("no more than fit in memory");
    if plain.len() >= COMPRESS_FROM
        // Only fails when memory does.
        && let Ok(compressed) = zstd::bulk::compress(&plain, LEVEL)
        && compressed.len() < plain.len()
    {
        return Packed {
            count,
            codec: 1,
            body: compressed,
        };
    }
    Packed {
        count,
        codec: 0,
        body: plain,
    }
}

/// A row's bytes without the compression: one JSON object a line.
pub fn plain(codec: i16, body: &[u8]) -> Result<Cow<'_, [u8]>, UnpackError> {
    match codec {
        0 => Ok(body.into()),
        1 => decompress(body).map(Cow::from).map_err(UnpackError::Codec),
        other => Err(UnpackError::Codec(std::io::Error::other(format!(
            "unknown codec {other}"
        )))),
    }
}

/// Reads a row's entries.
pub fn unpack(codec: i16, body: &[u8]) -> Result<Vec<Event>, UnpackError> {
    plain(codec, body)?
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).map_err(UnpackError::Json))
        .collect()
}

fn decompress(body: &[u8]) -> std::io::Result<Vec<u8>> {
    let bound = match zstd::zstd_safe::get_frame_content_size(body) {
        Ok(Some(size)) => usize::try_from(size).unwrap_or(usize::MAX),
        _ => return Err(std::io::Error::other("not a zstd frame of known size")),
    };
    if bound > MAX_PLAIN {
        return Err(std::io::Error::other("larger than any row that was ever written"));
    }
    zstd::bulk::decompress(body, bound)
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use proptest::prelude::*;

    use super::*;
    use crate::domain::event::{Log, LogStream, StepName};

    proptest! {
        #[test]
        fn what_is_packed_reads_back(texts in proptest::collection::vec(".{0,300}", 1..20)) {
            let events: Vec<Event> = texts
                .into_iter()
                .map(|text| Event::Log(Log {
                    step: StepName::Build,
                    stream: LogStream::Stdout,
                    at: DateTime::UNIX_EPOCH,
                    text,
                    partial: false,
                    replaced: 0,
                }))
                .collect();
            let packed = pack(&events);
            prop_assert_eq!(packed.count, i64::try_from(events.len()).expect("small"));
            prop_assert_eq!(unpack(packed.codec, &packed.body).expect("unpacks"), events);
        }

        #[test]
        fn damaged_rows_are_errors(codec in -1_i16..3, body in proptest::collection::vec(any::<u8>(), 1..200)) {
            // Never a panic, and never an entry out of bytes that aren't one.
            if let Ok(events) = unpack(codec, &body) {
                let looks_like_json = body.contains(&123);
                prop_assert!(events.is_empty() || looks_like_json);
            }
        }
    }
}
