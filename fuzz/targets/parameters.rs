//! Query strings with their cursors, `Last-Event-ID` and `Range`.
#![no_main]

use kiln::http::fuzzing::{last_event_id, queries, range};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    queries(text);
    if let Some(seq) = last_event_id(text) {
        assert!(seq >= 0);
    }
    for length in [0, 1, 1000, u64::MAX] {
        if let Some((first, last)) = range(text, length) {
            assert!(first <= last && last < length);
        }
    }
});
