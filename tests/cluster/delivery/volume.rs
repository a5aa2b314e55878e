//! As much as a pod can print, on nodes that keep a megabyte of it.

use std::{process::Stdio, time::Duration};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
    time::Instant,
};

use super::{
    super::support::{DEADLINE, Installation, Transcript, eventually, inline, kubectl, run, set, text},
    expect_carried, expect_numbers,
};

const LINES: u32 = 2_000_000;
/// Bytes of a line with its line break.
const WIDTH: usize = 100;
/// Two shared cores and programs that aren't optimised.
const LIMIT: Duration = Duration::from_mins(20);

fn numbered(number: u32) -> String {
    let words = format!("kiln line {number} ");
    format!("{words:x<width$}\n", width = WIDTH - 1)
}

/// What is left of a line of the log without what BuildKit puts before it.
fn printed(line: &str) -> Option<&str> {
    let at = line.find(" kiln line ")?;
    line.starts_with('#').then(|| &line[at + 1..])
}

/// How much of a container's log the node keeps in one file.
async fn log_max_size(node: &str) -> String {
    let path = format!("/api/v1/nodes/{node}/proxy/configz");
    let config = kubectl(vec!["get", "--raw", &path], None).await;
    let config: Value = serde_json::from_str(&config).expect("JSON");
    text(&config, "/kubeletconfig/containerLogMaxSize").to_owned()
}

/// Counts the lines that `kubectl logs --follow` shows of the build, until it ends.
async fn follow(pod: String) -> (u32, Vec<u8>) {
    let mut child = Command::new("kubectl")
        .args([
            "logs",
            "--follow",
            "--namespace",
            "kiln-builds",
            "--container",
            "build",
            &pod,
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("kubectl runs");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).split(b'\n');
    let mut count = 0;
    while let Some(line) = lines.next_segment().await.expect("its output") {
        // The Dockerfile's own text has no number there.
        count += u32::from(
            line.windows(13)
                .any(|part| part.starts_with(b" kiln line ") && part[11].is_ascii_digit()),
        );
    }
    (count, child.wait_with_output().await.expect("its end").stderr)
}

#[tokio::test(flavor = "multi_thread")]
async fn two_million_lines_arrive_once_and_in_order() {
    let print = format!(
        "for (i = 1; i <= {LINES}; i++) {{ s = \"kiln line \" i \" \"; print s substr(pad, 1, {} - length(s)) }}",
        WIDTH - 1
    );
    let dockerfile =
        format!("FROM busybox\nRUN awk 'BEGIN {{ pad = sprintf(\"%100s\", \"\"); gsub(/ /, \"x\", pad); {print} }}'\n");
    run(
        4,
        |config| set(config, "limits.max_timeout_seconds", 86400),
        async |kiln: &Installation| {
            let replica = kiln.start().await;
            let mut request = inline(&dockerfile);
            request["timeout_seconds"] = json!(LIMIT.as_secs());
            let begun = Instant::now();
            let id = replica.api.create(&request).await;
            let name = format!("kiln-{id}-1");
            let node = eventually("the build prints", DEADLINE, || async {
                let pod = kiln.pods.find(&name).await?;
                let statuses = pod.status?.container_statuses?;
                statuses.first()?.state.as_ref()?.running.as_ref()?;
                pod.spec?.node_name
            })
            .await;
            let follower = tokio::spawn(follow(name));

            let mut transcript = Transcript::new(&id);
            let reading = transcript.read_to_end_within(&replica.api, LIMIT);
            let end = reading.await;
            assert_eq!(end["state"], "succeeded", "{end}");
            let took = begun.elapsed();
            expect_carried(&replica.api.get(&id).await, "push", true);
            assert!(transcript.of_kind("gap").is_empty());

            let log = transcript.text();
            let (mut numbers, mut received) = (Vec::new(), Sha256::new());
            for line in log.lines().filter_map(printed) {
                // Whatever else has these words in it.
                let Some(number) = line.split(' ').nth(2).and_then(|number| number.parse().ok()) else {
                    continue;
                };
                assert_eq!(format!("{line}\n"), numbered(number), "changed on its way");
                numbers.push(number);
                received.update(line);
                received.update("\n");
            }
            expect_numbers(&numbers, LINES);
            let mut sent = Sha256::new();
            for number in 1..=LINES {
                sent.update(numbered(number));
            }
            assert!(received.finalize() == sent.finalize(), "the checksums differ");

            let (shown, said) = follower.await.expect("kubectl ends");
            let lost = 100.0 * f64::from(LINES - shown) / f64::from(LINES);
            eprintln!(
                "{LINES} lines of {WIDTH} bytes in {took:.1?}: all in the journal, once and in order; `kubectl logs -f` \
                 of the same container, on nodes that keep {} each: {shown} lines, {lost:.1} % lost{}",
                log_max_size(&node).await,
                String::from_utf8_lossy(&said)
            );
        },
    )
    .await;
}
