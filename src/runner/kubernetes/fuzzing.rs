//! What fuzz targets call of the reader of pods' logs.

use bytes::Bytes;

use super::log::lines::Lines;
use crate::runner::LogPosition;

/// The framed lines that a log holds which arrives in these portions, and what no agent wrote.
pub fn lines(portions: &[Bytes]) -> (Vec<u8>, Option<String>) {
    let mut lines = Lines::new(LogPosition::default());
    let mut taken = Vec::new();
    for portion in portions {
        // Without `strict` no beginning is refused.
        for chunk in lines.take(portion, false).unwrap_or_default() {
            taken.extend_from_slice(&chunk);
        }
    }
    (taken, lines.foreign().map(str::to_owned))
}
