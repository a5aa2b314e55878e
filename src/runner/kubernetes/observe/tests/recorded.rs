//! Pods as a real cluster left them: `scripts/cluster/record-pods.sh` made them and wrote the files down.

use std::{collections::BTreeSet, fs, path::Path};

use super::*;

/// What a pod comes to.
#[derive(Debug)]
enum Expected {
    Waits(&'static str),
    Runs,
    Succeeds,
    /// By whose fault, with which code, shown by what, in which words.
    Fails(
        Blame,
        FailureCode,
        (&'static str, &'static str),
        &'static [&'static str],
    ),
}
use Blame::{Node, Other};
use Expected::{Fails, Runs, Succeeds, Waits};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Blame {
    Node,
    Other,
}

const BUILD: &str = "containers[build].state.terminated";
const SOURCE: &str = "containers[source].state.terminated";
const REASON: &str = "status.reason";
const DISRUPTION: &str = "status.conditions[DisruptionTarget].reason";

#[expect(clippy::too_many_lines, reason = "a table")]
fn table() -> Vec<(&'static str, Expected)> {
    use FailureCode::{Evicted, Internal, NodeLost, OutOfMemory, Timeout};
    vec![
        ("running", Runs),
        ("succeeded", Succeeds),
        // The sidecar's troubles are no step's.
        ("sidecar-killed", Runs),
        (
            "exit-1",
            Fails(
                Other,
                Internal,
                (BUILD, "Error, exit code 1"),
                &["exit code 1", "no report"],
            ),
        ),
        (
            "exit-by-sigterm",
            Fails(Other, Internal, (BUILD, "Error, exit code 143"), &["143"]),
        ),
        // Nothing within the container can do that to its first process.
        (
            "exit-by-sigkill",
            Fails(Node, Internal, (BUILD, "Error, exit code 137"), &["137"]),
        ),
        (
            "start-error",
            Fails(
                Other,
                Internal,
                (BUILD, "StartError, exit code 128"),
                &["StartError", "no such file"],
            ),
        ),
        (
            "source-failed",
            Fails(
                Other,
                Internal,
                (SOURCE, "Error, exit code 3"),
                &["source step", "no report"],
            ),
        ),
        (
            "out-of-memory",
            Fails(
                Other,
                OutOfMemory,
                (BUILD, "OOMKilled, exit code 137"),
                &["`resources.memory`"],
            ),
        ),
        (
            "out-of-memory-beside-a-sidecar",
            Fails(
                Other,
                OutOfMemory,
                (BUILD, "OOMKilled, exit code 137"),
                &["`resources.memory`"],
            ),
        ),
        (
            "source-out-of-memory",
            Fails(
                Other,
                OutOfMemory,
                (SOURCE, "OOMKilled, exit code 137"),
                &["source step"],
            ),
        ),
        (
            "deadline-exceeded",
            Fails(Other, Timeout, (REASON, "DeadlineExceeded"), &["`timeout_seconds`"]),
        ),
        (
            "evicted-for-its-disk",
            Fails(
                Other,
                Evicted,
                (REASON, "Evicted"),
                &["exceeds the total limit", "`resources.disk`"],
            ),
        ),
        (
            "evicted-for-its-volume",
            Fails(
                Other,
                Evicted,
                (REASON, "Evicted"),
                &["exceeds the limit", "`resources.disk`"],
            ),
        ),
        (
            "evicted-by-api",
            Fails(Other, Evicted, (DISRUPTION, "EvictionByEvictionAPI"), &["was evicted"]),
        ),
        (
            "refused-by-the-node",
            Fails(Other, Evicted, (REASON, "OutOfcpu"), &["refused", "enough resource"]),
        ),
        (
            "not-the-right-node",
            Fails(Other, Evicted, (REASON, "NodeAffinity"), &["refused", "affinity"]),
        ),
        (
            "deleted",
            Fails(
                Other,
                NodeLost,
                ("metadata.deletionTimestamp", "set"),
                &["something other than Kiln"],
            ),
        ),
        (
            "node-unreachable",
            Fails(
                Node,
                NodeLost,
                (DISRUPTION, "DeletionByTaintManager"),
                &["stopped answering"],
            ),
        ),
        (
            "node-deleted",
            Fails(Node, NodeLost, (DISRUPTION, "DeletionByPodGC"), &["out of service"]),
        ),
        // Its containers still run; what they report is waited for.
        ("preempted", Runs),
        ("unschedulable", Waits("unscheduled: Insufficient cpu")),
        ("volume-missing", Waits("starting")),
        (
            "container-config-error",
            Waits("starting: secret \"no-such-secret\" not found"),
        ),
        ("image-not-found", Waits("image: not found")),
        ("image-pull-back-off", Waits("image: Back-off pulling image")),
        ("image-unauthorized", Waits("image: 401")),
        ("image-registry-away", Waits("image: connection refused")),
        ("image-invalid-name", Waits("impossible image: InvalidImageName")),
        ("image-never-pulled", Waits("impossible image: ErrImageNeverPull")),
    ]
}

fn read(name: &str) -> Pod {
    let file = folder().join(format!("{name}.json"));
    serde_json::from_str(&fs::read_to_string(&file).unwrap_or_else(|error| panic!("{name}: {error}"))).unwrap()
}

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/runner/kubernetes/observe/recorded")
}

fn check_wait(name: &str, expected: &str, observation: &Observation) {
    let (Observation::Pending { reason, .. }
    | Observation::Running {
        waiting: Some(reason), ..
    }) = observation
    else {
        panic!("{name}: {observation:?}");
    };
    let (kind, said) = match reason {
        PendingReason::Unscheduled(words) => ("unscheduled", words.as_deref()),
        PendingReason::ImagePull(words) => ("image", Some(words.as_str())),
        PendingReason::ImageImpossible(words) => ("impossible image", Some(words.as_str())),
        PendingReason::Starting(words) => ("starting", words.as_deref()),
    };
    let (expected_kind, words) = expected.split_once(": ").unwrap_or((expected, ""));
    assert_eq!(kind, expected_kind, "{name}: {said:?}");
    assert!(
        said.unwrap_or_default().contains(words),
        "{name}: `{words}` is not in {said:?}"
    );
}

#[test]
fn real_pods_come_to_what_they_should() {
    for (name, expected) in table() {
        let observation = observe(&read(name));
        match (&expected, &observation) {
            (Waits(expected), observation) => check_wait(name, expected, observation),
            (Runs, Observation::Running { waiting: None, .. })
            | (
                Succeeds,
                Observation::Finished {
                    outcome: Outcome::Succeeded,
                    ..
                },
            ) => {}
            (
                Fails(blame, code, (at, says), words),
                Observation::Finished {
                    outcome: outcome @ (Outcome::Failed(failure) | Outcome::FailedByNode(failure)),
                    ..
                },
            ) => {
                let found = if matches!(outcome, Outcome::Failed(_)) {
                    Other
                } else {
                    Node
                };
                assert_eq!((found, failure.code), (*blame, *code), "{name}: {failure:?}");
                let evidence = failure
                    .evidence
                    .as_ref()
                    .unwrap_or_else(|| panic!("{name}: no evidence"));
                assert_eq!((evidence.at.as_str(), evidence.says.as_str()), (*at, *says), "{name}");
                for word in *words {
                    assert!(
                        failure.message.contains(word),
                        "{name}: {word} is not in: {}",
                        failure.message
                    );
                }
            }
            _ => panic!("{name}: expected {expected:?}, not {observation:?}"),
        }
    }
}

#[test]
fn every_recording_is_read() {
    let files: BTreeSet<_> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let read: BTreeSet<_> = table().iter().map(|(name, _)| format!("{name}.json")).collect();
    assert_eq!(files, read);
}
