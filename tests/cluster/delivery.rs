//! Every line that a build prints arrives once and in order, whatever dies or breaks on the way.

mod interruptions;
mod kills;
mod volume;

use serde_json::Value;

use super::support::{Api, Transcript, kiln_lines, text};

/// How the attempt's log came, as callers see it.
#[track_caller]
fn expect_carried(build: &Value, via: &str, sealed: bool) {
    let attempts = build["attempts"].as_array().expect("attempts");
    let log = &attempts.last().expect("an attempt")["log"];
    assert_eq!(text(log, "/via"), via, "{build:#}");
    assert_eq!(log["sealed"], sealed, "{build:#}");
}

/// Reads to the end: the build succeeded in its first attempt, which pushed its log, and lines 1 to `count` are there
/// once and in order.
async fn expect_whole(api: &Api, transcript: &mut Transcript, id: &str, count: u32) {
    let end = transcript.read_to_end(api).await;
    assert_eq!(end["state"], "succeeded", "{end}");
    let build = api.get(id).await;
    assert_eq!(build["attempts"].as_array().map(Vec::len), Some(1), "{build:#}");
    expect_carried(&build, "push", true);
    assert_eq!(transcript.of_kind("gap"), [] as [&Value; 0]);
    expect_numbers(&kiln_lines(&transcript.text()), count);
}

/// These are the numbers from 1 to `count`.
#[track_caller]
fn expect_numbers(lines: &[u32], count: u32) {
    let wrong = lines.iter().zip(1..).position(|(line, number)| *line != number);
    if let Some(place) = wrong {
        panic!("{} lines; after {place} comes {}", lines.len(), lines[place]);
    }
    assert_eq!(lines.len(), usize::try_from(count).expect("fits"));
}
