//! What a build prints is what its readers get.

use serde_json::Value;

use super::support::{Installation, Transcript, inline, kiln_lines, run};

const LINES: u32 = 100_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_lines_arrive_once_and_in_order() {
    run(
        2,
        |_| {},
        async |kiln: &Installation| {
            let replica = kiln.start().await;
            let dockerfile =
                format!("FROM busybox\nRUN awk 'BEGIN {{ for (i = 1; i <= {LINES}; i++) print \"kiln line \" i }}'\n");
            let id = replica.api.create(&inline(&dockerfile)).await;
            // From before the first line on.
            let mut transcript = Transcript::new(&id);
            let end = transcript.read_to_end(&replica.api).await;
            assert_eq!(end["state"], "succeeded", "{end}");

            let expected: Vec<u32> = (1..=LINES).collect();
            let live = transcript.text();
            assert!(kiln_lines(&live) == expected, "{}", difference(&kiln_lines(&live)));
            assert_eq!(transcript.of_kind("gap"), [] as [&Value; 0]);
            assert!(replica.api.logs(&id).await == live, "the text isn't what was streamed");
            let mut again = Transcript::new(&id);
            again.read_to_end(&replica.api).await;
            assert!(again.text() == live, "a second reader gets something else");
        },
    )
    .await;
}

/// Where the lines first differ from 1, 2, 3, …
fn difference(lines: &[u32]) -> String {
    let wrong = lines.iter().zip(1..).position(|(line, number)| *line != number);
    match wrong {
        Some(place) => format!("{} lines; after {place} comes {}", lines.len(), lines[place]),
        None => format!("{} lines", lines.len()),
    }
}
