//! Several replicas, and replicas that die: each build has one pod, and no line is lost or doubled.

use std::{collections::BTreeSet, path::Path};

use futures::future::join_all;
use nix::sys::signal::Signal;
use reqwest::StatusCode;
use serde_json::{Value, json};

use super::support::{
    Api, Event, Image, Installation, Replica, Stop, Transcript, inline, kiln_lines, printing, run, set, text,
};

const LINES: u32 = 600;
/// How many lines are waited for before something happens.
const SOME: usize = 100;

/// The build succeeded by its one pod, and everything that it printed was received.
async fn expect_whole(kiln: &Installation, api: &Api, id: &str, transcript: &mut Transcript) {
    let end = transcript.read_to_end(api).await;
    assert_eq!(end["state"], "succeeded", "{end}");
    let build = api.get(id).await;
    assert_eq!(build["attempts"].as_array().map(Vec::len), Some(1), "{build:#}");
    assert_eq!(kiln.pods.of(id), 1, "{:?}", kiln.pods.all());
    assert_eq!(transcript.of_kind("gap"), [] as [&Value; 0]);
    let expected: Vec<u32> = (1..=LINES).collect();
    assert_eq!(kiln_lines(&transcript.text()), expected);
    assert_eq!(api.logs(id).await, transcript.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_replica_finds_its_build_again() {
    run(
        1,
        |_| {},
        async |kiln: &Installation| {
            let first = kiln.start().await;
            let id = first.api.create(&inline(&printing(LINES, "0.02"))).await;
            let mut transcript = Transcript::new(&id);
            let mut connection = transcript.connect(&first.api).await;
            transcript.read_lines(&mut connection, SOME).await;
            first.kill().await;
            assert_eq!(transcript.read(&mut connection, |_| false).await, Stop::Broken);
            let before = kiln_lines(&transcript.text()).len();

            let second = kiln.start().await;
            expect_whole(kiln, &second.api, &id, &mut transcript).await;
            assert!(before < LINES as usize, "it was over before the kill");
            assert!(second.api.counter("kiln_attempts_adopted_total").await >= 1.0);
        },
    )
    .await;
}

/// Something that happens in every build, as an event tells it.
fn is(event: &Event, kind: &str, fields: &[(&str, &str)]) -> bool {
    event.kind == kind && fields.iter().all(|(name, value)| event.data[name] == *value)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_stage_is_survived() {
    let stages: [(&str, &[(&str, &str)]); 6] = [
        ("status", &[("state", "queued")]),
        ("status", &[("state", "starting")]),
        ("status", &[("state", "running")]),
        ("step", &[("step", "source"), ("phase", "succeeded")]),
        ("step", &[("step", "build"), ("phase", "started")]),
        ("step", &[("step", "build"), ("phase", "succeeded")]),
    ];
    run(
        1,
        |_| {},
        async |kiln: &Installation| {
            let mut replica = kiln.start().await;
            for (number, (kind, fields)) in stages.into_iter().enumerate() {
                let mut request = inline(&printing(LINES, "0"));
                request["push"] = json!(true);
                request["images"] = json!([kiln.image(&format!("stage-{number}"))]);
                let id = replica.api.create(&request).await;
                let mut transcript = Transcript::new(&id);
                let mut connection = transcript.connect(&replica.api).await;
                let stop = transcript.read(&mut connection, |event| is(event, kind, fields)).await;
                assert_eq!(stop, Stop::Wanted, "no {kind} {fields:?}");
                replica.kill().await;
                replica = kiln.start().await;
                expect_whole(kiln, &replica.api, &id, &mut transcript).await;
                let digest = replica.api.get(&id).await["digest"].clone();
                assert_eq!(Image::pull(&kiln.image(&format!("stage-{number}"))).digest, digest);
            }
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_without_a_cluster_takes_nothing_over() {
    run(
        1,
        |_| {},
        async |kiln: &Installation| {
            let a = kiln.start().await;
            let id = a.api.create(&inline(&printing(LINES, "0.02"))).await;
            let lost = kiln.start_on(Path::new("/no-such-kubeconfig")).await;
            let mut transcript = Transcript::new(&id);
            let mut connection = transcript.connect(&lost.api).await;
            transcript.read_lines(&mut connection, SOME).await;
            a.kill().await;
            let b = kiln.start().await;
            expect_whole(kiln, &b.api, &id, &mut transcript).await;
            assert!(lost.api.counter("kiln_builds_taken_over_total").await < 1.0);
        },
    )
    .await;
}

/// A reader of replica A goes on at replica B when A is ended.
async fn resume_on_the_other(end: impl AsyncFn(&Replica) -> Stop) {
    run(
        1,
        |_| {},
        async |kiln: &Installation| {
            let a = kiln.start().await;
            let id = a.api.create(&inline(&printing(LINES, "0.02"))).await;
            // Only now, so that the build is A's.
            a.api.reaches(&id, "starting").await;
            let b = kiln.start().await;
            let mut transcript = Transcript::new(&id);
            let mut connection = transcript.connect(&a.api).await;
            transcript.read_lines(&mut connection, SOME).await;
            let expected = end(&a).await;
            assert_eq!(transcript.read(&mut connection, |_| false).await, expected);
            assert!(
                kiln_lines(&transcript.text()).len() < LINES as usize,
                "it was over before A ended"
            );
            expect_whole(kiln, &b.api, &id, &mut transcript).await;
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_at_another_replica_after_a_kill() {
    resume_on_the_other(async |replica| {
        replica.kill().await;
        Stop::Broken
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_at_another_replica_after_a_shutdown() {
    resume_on_the_other(async |replica| {
        let status = replica.terminate().await;
        assert!(status.success(), "{status}");
        Stop::Closed
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_share_thirty_builds() {
    const BUILDS: usize = 30;
    // All of them fit on the two nodes at once.
    let small = |config: &mut toml::Table| {
        set(config, "limits.default_resources.cpu", "100m");
        set(config, "limits.default_resources.memory", "256Mi");
        set(config, "limits.default_resources.disk", "512Mi");
        set(config, "kubernetes.overhead.memory", "64Mi");
    };
    run(u32::MAX, small, async |kiln: &Installation| {
        let (a, b) = (kiln.start().await, kiln.start().await);
        let created = (0..BUILDS).map(|number| {
            let api = if number % 2 == 0 { &a.api } else { &b.api };
            async move {
                let dockerfile = format!("FROM busybox\nRUN echo \"kiln line {number}\"\n");
                (number, api.create(&inline(&dockerfile)).await)
            }
        });
        let created = join_all(created).await;
        let ids: BTreeSet<_> = created.iter().map(|(_, id)| id.clone()).collect();
        assert_eq!(ids.len(), BUILDS);
        let finished = created.iter().map(|(number, id)| {
            // Asked at the replica that did not take the request.
            let api = if number % 2 == 0 { &b.api } else { &a.api };
            async move {
                let build = api.finished(id).await;
                let log = api.logs(id).await;
                assert_eq!(build["state"], "succeeded", "{build:#}\n{log}");
                assert_eq!(build["attempts"].as_array().map(Vec::len), Some(1), "{build:#}");
                assert_eq!(kiln_lines(&log), [u32::try_from(*number).expect("small")]);
            }
        });
        join_all(finished).await;
        for id in &ids {
            assert_eq!(kiln.pods.of(id), 1, "{id}");
        }
        assert_eq!(kiln.pods.all().len(), BUILDS);
        let claimed = "kiln_builds_claimed_total";
        let (by_a, by_b) = (a.api.counter(claimed).await, b.api.counter(claimed).await);
        assert!(by_a > 0.0 && by_b > 0.0, "A took {by_a} builds and B {by_b}");
        #[expect(clippy::cast_precision_loss, reason = "a small number")]
        let all = BUILDS as f64;
        assert!((by_a + by_b - all).abs() < 0.5, "A took {by_a} builds and B {by_b}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_idempotency_key_at_two_replicas_makes_one_build() {
    run(
        1,
        |_| {},
        async |kiln: &Installation| {
            let (a, b) = (kiln.start().await, kiln.start().await);
            let request = inline("FROM busybox\nRUN true\n");
            let calls = (0..20).map(|number| {
                let api = if number % 2 == 0 { &a.api } else { &b.api };
                api.try_create(&request, "push-4711")
            });
            let answers = join_all(calls).await;
            let created: Vec<_> = answers
                .iter()
                .filter(|(status, _)| *status == StatusCode::CREATED)
                .collect();
            assert_eq!(created.len(), 1, "{answers:?}");
            let id = text(&created[0].1, "/id");
            for (status, answer) in &answers {
                match *status {
                    StatusCode::CREATED | StatusCode::OK => assert_eq!(text(answer, "/id"), id),
                    // Allowed while the first call isn't answered.
                    StatusCode::CONFLICT => assert_eq!(answer["code"], "idempotency_key_in_flight"),
                    other => panic!("{other}: {answer:#}"),
                }
            }
            assert_eq!(a.api.finished(id).await["state"], "succeeded");
            let (status, again) = b.api.try_create(&request, "push-4711").await;
            assert_eq!((status, text(&again, "/id")), (StatusCode::OK, id));
            let (status, other) = b.api.try_create(&json!({"source": {}}), "push-4711").await;
            assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{other}");
            let (status, other) = b.api.try_create(&inline("FROM scratch\n"), "push-4711").await;
            assert_eq!(
                (status, &other["code"]),
                (StatusCode::UNPROCESSABLE_ENTITY, &json!("idempotency_key_reused"))
            );
            assert_eq!(a.api.list("limit=10").await.len(), 1);
            assert_eq!(kiln.pods.all().len(), 1);
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn builds_survive_replicas_that_die_again_and_again() {
    run(
        4,
        |_| {},
        async |kiln: &Installation| {
            let mut replicas = [kiln.start().await, kiln.start().await];
            let request = inline(&printing(LINES, "0.05"));
            let mut ids = Vec::new();
            for number in 0..4 {
                ids.push(replicas[number % 2].api.create(&request).await);
            }
            let mut transcript = Transcript::new(&ids[0]);
            for turn in 0..5 {
                let (victim, other) = (turn % 2, (turn + 1) % 2);
                let mut connection = transcript.connect(&replicas[victim].api).await;
                transcript.read_lines(&mut connection, SOME * (turn + 1)).await;
                replicas[victim].kill().await;
                // What had arrived before the kill counts, too.
                assert_eq!(transcript.read(&mut connection, |_| false).await, Stop::Broken);
                let mut connection = transcript.connect(&replicas[other].api).await;
                transcript.read_lines(&mut connection, SOME * (turn + 1) + 10).await;
                replicas[victim] = kiln.start().await;
            }
            expect_whole(kiln, &replicas[0].api, &ids[0], &mut transcript).await;
            for id in &ids[1..] {
                expect_whole(kiln, &replicas[1].api, id, &mut Transcript::new(id)).await;
            }
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_paused_writes_nothing_for_a_build_that_it_has_lost() {
    run(
        1,
        |_| {},
        async |kiln: &Installation| {
            let a = kiln.start().await;
            let id = a.api.create(&inline(&printing(LINES, "0.02"))).await;
            a.api.reaches(&id, "running").await;
            let b = kiln.start().await;
            let mut transcript = Transcript::new(&id);
            let mut connection = transcript.connect(&b.api).await;
            transcript.read_lines(&mut connection, SOME).await;
            a.signal(Signal::SIGSTOP);
            // These lines come only once B has taken the build over.
            let read = kiln_lines(&transcript.text()).len();
            transcript.read_lines(&mut connection, read + SOME).await;
            assert!(b.api.counter("kiln_builds_taken_over_total").await >= 1.0);
            a.signal(Signal::SIGCONT);
            expect_whole(kiln, &b.api, &id, &mut transcript).await;
            assert!(a.api.ready().await.0);
        },
    )
    .await;
}
