use kiln_agent::wire::plan::Progress;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::progress::tests::{Seen, seen, seen_over_time};

/// Real output of v0.34.2, shortened: a build of three stages that pushes, the same once more, and one that fails.
const OK: &str = include_str!("samples/ok.jsonl");
const CACHED: &str = include_str!("samples/cached.jsonl");
const BAD: &str = include_str!("samples/bad.jsonl");

fn read(text: &str) -> Seen {
    seen(Progress::BuildkitJson, &[text.as_bytes()])
}

/// The one record of the end of what has this name.
fn end<'a>(seen: &'a Seen, name: &str) -> &'a StepRecord {
    let ends: Vec<_> = seen
        .records
        .iter()
        .filter(|record| record.name.contains(name) && record.phase != StepPhase::Started)
        .collect();
    assert_eq!(ends.len(), 1, "{name}: {:?}", seen.steps());
    ends[0]
}

#[test]
fn a_build_becomes_lines_and_steps() {
    let seen = read(OK);
    let run = end(&seen, "RUN seq 3");
    assert_eq!(
        (run.phase, run.cached, run.duration_ms),
        (StepPhase::Succeeded, false, Some(726))
    );
    let number = run.vertex;
    let of_it: Vec<&str> = seen
        .all
        .iter()
        .map(String::as_str)
        .filter(|line| line.starts_with(&format!("#{number} ")) || line.starts_with(&format!("> {number} ")))
        .collect();
    let expected = [
        "started [other 2/2] RUN seq 3; sleep 0.5; seq 3",
        "[other 2/2] RUN seq 3; sleep 0.5; seq 3",
        " 1",
        " 2",
        " 3",
        " 1",
        " 2",
        " 3",
        "DONE 0.7s",
        "succeeded [other 2/2] RUN seq 3; sleep 0.5; seq 3",
    ];
    assert_eq!(of_it.len(), expected.len(), "{of_it:#?}");
    for (line, expected) in of_it.iter().zip(expected) {
        assert!(line.ends_with(expected), "{line} {expected}");
    }
    // A line that came in two pieces, on another stream than its neighbour.
    assert!(
        seen.text.contains(" partialmore\n") && seen.text.contains(" err\n"),
        "{}",
        seen.text
    );
    assert!(
        seen.text
            .contains("WARN: FromAsCasing: 'as' and 'FROM' keywords' casing do not match (line 1)\n")
    );
    assert!(seen.text.contains("transferring dockerfile: 256B done\n"));
    // Members of a group show as one, which comes back.
    assert_eq!(
        end(&seen, "COPY --link").name,
        "[stage-2 1/3] COPY --link Dockerfile /d"
    );
    // BuildKit came back five times.
    assert_eq!(end(&seen, "1/2] FROM").phase, StepPhase::Succeeded);
    assert_eq!(seen.failed, None);
    let starts = seen
        .records
        .iter()
        .filter(|record| record.phase == StepPhase::Started)
        .count();
    assert_eq!(seen.records.len(), 2 * starts, "{:?}", seen.steps());
}

#[test]
fn what_was_there_already_is_told() {
    let seen = read(CACHED);
    for name in [
        "RUN echo one",
        "RUN seq 3",
        "COPY --from=other",
        "RUN echo hi",
        "COPY --link",
    ] {
        let end = end(&seen, name);
        assert!(end.cached && end.duration_ms.unwrap() < 5, "{end:?}");
        assert!(seen.all.contains(&format!("#{} CACHED", end.vertex)));
    }
    assert!(!end(&seen, "exporting to image").cached);
}

#[test]
fn what_failed_is_told_with_its_words() {
    let seen = read(BAD);
    let words = "process \"/bin/sh -c echo before && exit 3\" did not complete successfully: exit code: 3";
    let end = end(&seen, "RUN echo before");
    assert_eq!((end.phase, end.error.as_deref()), (StepPhase::Failed, Some(words)));
    let failed = seen.failed.unwrap();
    assert_eq!(
        (failed.name.as_str(), failed.error.as_str()),
        ("[2/2] RUN echo before && exit 3", words)
    );
    // What buildctl says itself comes as it is.
    assert!(seen.text.contains("\nBad:2\n--------------------\n"));
    assert!(seen.text.ends_with(&format!("error: failed to solve: {words}\n")));
}

#[test]
fn a_vertex_that_never_ends_has_failed() {
    let line = json!({"vertexes": [{"digest": "a", "name": "[1/1] RUN x\ny", "started": "2026-11-23T18:00:00Z"}]});
    let found = read(&format!("{line}\n"));
    assert_eq!(found.all[..3], ["> 1 started [1/1] RUN x\ny", "#1 [1/1] RUN x", "#1 y"]);
    assert_eq!(found.records[1].phase, StepPhase::Failed);
}

#[test]
fn output_that_comes_after_the_end_stays_whole() {
    let base64 = |text: &str| base64::Engine::encode(&base64::prelude::BASE64_STANDARD, text);
    let log = |text: &str| {
        let log = json!({"vertex": "a", "stream": 1, "data": base64(text), "timestamp": "2026-11-23T18:00:00.5Z"});
        format!("{}\n", json!({"logs": [log]}))
    };
    let vertex = |completed: Option<&str>| {
        let vertex =
            json!({"digest": "a", "name": "[1/1] RUN x", "started": "2026-11-23T18:00:00Z", "completed": completed});
        format!("{}\n", json!({"vertexes": [vertex]}))
    };
    let messages = [
        (0, vertex(None)),
        (100, log("one\nhalf of ")),
        (200, vertex(Some("2026-11-23T18:00:01Z"))),
        // Longer than it takes to believe the end of a vertex that isn't in the middle of a line.
        (1900, log("two\nthree\nfo")),
        (3800, log("ur\n")),
        (4100, format!("{}\n", json!({"vertexes": []}))),
    ];
    let portions: Vec<_> = messages
        .iter()
        .map(|(after, message)| (Duration::from_millis(*after), message.as_bytes()))
        .collect();
    let found = seen_over_time(Progress::BuildkitJson, &portions);
    let lines = ["one", "half of two", "three", "four"].map(|line| format!("#1 0.500 {line}"));
    assert_eq!(found.all[2..6], lines);
    assert_eq!(found.all[6], "#1 DONE 1.0s");
}

#[test]
fn an_endless_line_passes() {
    let line = "{".to_owned() + &"x".repeat(MAX_LINE + 100_000);
    let portions: Vec<&[u8]> = line.as_bytes().chunks(1 << 20).collect();
    let found = seen(Progress::BuildkitJson, &portions);
    assert!(found.text.trim_end() == line);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    /// However the bytes arrive, the same comes out.
    #[test]
    fn portions_do_not_matter(sizes in prop::collection::vec(1_usize..3000, 1..6)) {
        let whole = read(BAD);
        let mut rest = BAD.as_bytes();
        let mut portions = Vec::new();
        for &size in sizes.iter().cycle() {
            let (portion, after) = rest.split_at(size.min(rest.len()));
            portions.push(portion);
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        let cut = seen(Progress::BuildkitJson, &portions);
        prop_assert_eq!(cut.all, whole.all);
    }

    /// No output of a command is lost or changed, whatever it is and however it is cut.
    #[test]
    fn all_output_comes_through(pieces in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..50), 1_i64..3, 0_u8..2), 0..20)) {
        let base64 = |data: &[u8]| base64::Engine::encode(&base64::prelude::BASE64_STANDARD, data);
        let mut input = String::new();
        let mut expected = [[Vec::new(), Vec::new()], [Vec::new(), Vec::new()]];
        for (data, stream, vertex) in &pieces {
            let log = json!({"logs": [{"vertex": vertex.to_string(), "stream": stream, "data": base64(data), "timestamp": "2026-11-23T18:00:00Z"}]});
            input += &log.to_string();
            input.push('\n');
            expected[usize::from(*vertex)][usize::from(*stream == 2)].extend_from_slice(data);
        }
        let found = read(&input);
        let mut lines: Vec<String> = found.all.iter().filter_map(|line| Some(line.split_once(" 0.000 ")?.1.to_owned())).collect();
        let mut wanted: Vec<String> = expected
            .iter()
            .flatten()
            .flat_map(|output| {
                let text = output.strip_suffix(b"\n").unwrap_or(output);
                let lines: Vec<_> = text.split(|&byte| byte == b'\n').collect();
                if output.is_empty() { Vec::new() } else { lines }
            })
            .map(|line| String::from_utf8_lossy(line).into_owned())
            .collect();
        lines.sort();
        wanted.sort();
        prop_assert_eq!(lines, wanted);
    }

    /// Nothing breaks it, and what isn't a message is passed on.
    #[test]
    fn strange_input_passes(text in "\\PC{0,80}", field in "vertexes|statuses|logs|warnings|other", value in "\\[\\]|null|\\[null\\]|5|\\[\\{\\}\\]") {
        let line = format!("{{\"{field}\":{value}}}");
        let found = read(&format!("{text}\n{line}\n"));
        if Message::parse(text.as_bytes()).is_none() {
            let passed = format!("{text}\n");
            prop_assert!(found.text.starts_with(&passed));
        }
        if Message::parse(line.as_bytes()).is_none() {
            let passed = format!("{line}\n");
            prop_assert!(found.text.ends_with(&passed));
        }
    }
}
