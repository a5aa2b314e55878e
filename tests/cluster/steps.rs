//! The builders' own steps among a build's events.

use serde_json::{Value, json};

use super::support::{Installation, Transcript, inline, run};

const DOCKERFILE: &str = "\
FROM busybox
RUN echo \"kiln line 1\"; sleep 1; echo \"kiln line 2\" >&2
RUN echo \"kiln line 3\"
";

/// The events about steps of the builder whose name holds `words`, with their places.
fn about<'a>(transcript: &'a Transcript, words: &str) -> Vec<(usize, &'a Value)> {
    let steps = transcript.events.iter().enumerate().filter(|(_, event)| {
        event.kind == "step" && event.data["name"].as_str().is_some_and(|name| name.contains(words))
    });
    steps.map(|(place, event)| (place, &event.data)).collect()
}

/// The place of the first output that holds `words`.
fn printed(transcript: &Transcript, words: &str) -> usize {
    let holds = |data: &Value| data["text"].as_str().is_some_and(|text| text.contains(words));
    let place = transcript
        .events
        .iter()
        .position(|event| event.kind == "log" && holds(&event.data));
    place.unwrap_or_else(|| panic!("{words} is not in {}", transcript.text()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_builders_steps_are_events_among_its_output() {
    run(
        2,
        |_| {},
        async |kiln: &Installation| {
            let replica = kiln.start().await;
            for builder in ["buildkit", "buildah"] {
                let mut request = inline(DOCKERFILE);
                request["builder"] = json!(builder);
                let build = replica.api.build(&request).await;
                assert_eq!(build["state"], "succeeded", "{build:#}");
                let mut transcript = Transcript::new(build["id"].as_str().expect("an id"));
                transcript.read_to_end(&replica.api).await;
                assert_eq!(transcript.of_kind("gap"), [] as [&Value; 0]);

                let run = about(&transcript, "RUN echo \"kiln line 1\"");
                let [(began, start), (ended, end)] = run.as_slice() else {
                    panic!("{builder}: not one beginning and one end: {run:#?}");
                };
                assert_eq!(
                    (&start["phase"], &end["phase"]),
                    (&json!("started"), &json!("succeeded"))
                );
                assert_eq!((&start["step"], &start["attempt"]), (&json!("build"), &json!(1)));
                assert_eq!(start["vertex"], end["vertex"]);
                assert_eq!(end["cached"], false);
                let took = end["duration_ms"].as_u64().expect("a duration");
                assert!((1000..20_000).contains(&took), "{builder}: {took} ms");
                // Its output lies between the two; that of its successor doesn't.
                for words in [" kiln line 1\n", " kiln line 2\n"].map(str::trim_start) {
                    let at = printed(&transcript, words);
                    assert!((*began..*ended).contains(&at), "{builder}: {words} at {at}, {run:#?}");
                }
                let next = about(&transcript, "RUN echo \"kiln line 3\"");
                assert!(next[0].0 > *began && printed(&transcript, "kiln line 3\n") > next[0].0);

                // Every step that began has ended.
                let phases = |phase: &str| {
                    about(&transcript, "")
                        .iter()
                        .filter(|(_, data)| data["phase"] == phase)
                        .count()
                };
                assert_eq!(phases("started"), phases("succeeded"), "{:#?}", about(&transcript, ""));
            }
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_step_that_failed_says_why() {
    run(
        1,
        |_| {},
        async |kiln: &Installation| {
            let replica = kiln.start().await;
            let build = replica
                .api
                .build(&inline("FROM busybox\nRUN echo before; exit 9\nRUN echo never\n"))
                .await;
            assert_eq!(build["failure"]["code"], "build_failed");
            let message = build["failure"]["message"].as_str().expect("a message");
            assert!(
                message.contains("line 2") && message.contains("exit code 9"),
                "{message}"
            );
            let mut transcript = Transcript::new(build["id"].as_str().expect("an id"));
            transcript.read_to_end(&replica.api).await;
            let run = about(&transcript, "RUN echo before");
            let (_, end) = run.last().expect("an end");
            assert_eq!(end["phase"], "failed");
            let error = end["error"].as_str().expect("an error");
            assert!(
                error.ends_with("did not complete successfully: exit code: 9"),
                "{error}"
            );
            assert_eq!(about(&transcript, "RUN echo never"), []);
        },
    )
    .await;
}
