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

#[tokio::test(flavor = "multi_thread")]
async fn output_of_any_kind_arrives_as_it_was_printed() {
    // Longer than a journal entry and than the pieces of the container runtime; not text; no line break at the end.
    // What BuildKit says of its other steps comes before: it would stand between the pieces of a long line.
    let dockerfile = "FROM busybox\n\
        RUN sleep 1; echo kiln line 1; head -c 1048576 /dev/zero | tr '\\0' x; echo; \
        printf '10%%\\r20%%\\rdone\\n'; printf '\\377\\376 kiln\\n'; echo 'é 漢字 🔥'; printf 'kiln line 2'\n";
    run(
        1,
        |_| {},
        async |kiln: &Installation| {
            let replica = kiln.start().await;
            let id = replica.api.create(&inline(dockerfile)).await;
            let mut transcript = Transcript::new(&id);
            assert_eq!(transcript.read_to_end(&replica.api).await["state"], "succeeded");
            let log = transcript.text();
            assert_eq!(kiln_lines(&log), [1, 2]);
            let wide = "x".repeat(1 << 20);
            for line in [&wide, "10%\r20%\rdone", "\u{fffd}\u{fffd} kiln", "é 漢字 🔥"] {
                let printed = |printed: &str| printed.starts_with('#') && printed.ends_with(&format!(" {line}"));
                assert!(log.split('\n').any(printed), "{} is missing", line.escape_debug());
            }
            let entries = transcript.of_kind("log");
            let partial = entries.iter().filter(|entry| entry["partial"] == true).count();
            // BuildKit puts a few characters before the line.
            assert_eq!(partial, (1 << 20) / 65_536, "pieces of 64 KiB, and the rest");
            let replaced: u64 = entries.iter().filter_map(|entry| entry["replaced"].as_u64()).sum();
            assert_eq!(replaced, 2);
            assert_eq!(replica.api.logs(&id).await, log);
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_node_rotates_away_is_counted() {
    // 30 MB at once; a kubelet keeps 10 MB in one file, and its log API loses what it rotates before it was read.
    const LINES: u64 = 300_000;
    let padding = "x".repeat(90);
    let print = format!("for (i = 1; i <= {LINES}; i++) print \"kiln line \" i \" {padding}\"");
    let dockerfile = format!("FROM busybox\nRUN awk 'BEGIN {{ {print} }}'\n");
    run(
        2,
        // So that the log is read from the cluster.
        |config| drop(config.remove("agent_url")),
        async |kiln: &Installation| {
            let replica = kiln.start().await;
            let id = replica.api.create(&inline(&dockerfile)).await;
            let mut transcript = Transcript::new(&id);
            let end = transcript.read_to_end(&replica.api).await;
            assert_eq!(end["state"], "succeeded", "{end}");
            let log = transcript.text();
            let lines = kiln_lines(&log);
            assert!(lines.is_sorted_by(|one, next| one < next), "{}", difference(&lines));
            let gaps = transcript.of_kind("gap");
            let lost = gaps
                .iter()
                .map(|gap| gap["lines"].as_u64().expect("a number of lines"))
                .sum::<u64>();
            // What BuildKit says around the lines may be lost as well.
            let missing = LINES - u64::try_from(lines.len()).expect("small");
            assert!(
                (missing..=missing + 50).contains(&lost),
                "{lost} lines are said to be lost, {missing} are"
            );
            assert!(missing > 0 || gaps.is_empty(), "{gaps:?}");
            let notices = replica.api.logs(&id).await;
            assert_eq!(notices.matches("[kiln: ").count(), gaps.len());
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
