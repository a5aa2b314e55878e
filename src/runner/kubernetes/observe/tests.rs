use serde_json::{Value, json};

mod recorded;

use super::*;
use crate::{domain::failure::FailureCode, runner::Outcome};

const CREATED: &str = "2026-11-23T14:00:00Z";

#[expect(clippy::needless_pass_by_value, reason = "reads better in the tables")]
fn pod(status: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "kiln-x-1", "creationTimestamp": CREATED},
        "spec": {"containers": [], "nodeName": "node1"},
        "status": status,
    }))
    .unwrap()
}

fn deleted(mut pod: Pod) -> Pod {
    pod.metadata.deletion_timestamp = serde_json::from_value(json!("2026-11-23T14:05:00Z")).unwrap();
    pod
}

fn unscheduled(conditions: &Value) -> Pod {
    let mut pod = pod(json!({"phase": "Pending", "conditions": conditions}));
    pod.spec.as_mut().unwrap().node_name = None;
    pod
}

fn container(name: &str, state: &Value) -> Value {
    json!({
        "name": name, "image": format!("{name}:1"), "imageID": "", "ready": false, "restartCount": 0,
        "state": state,
    })
}

fn waiting(name: &str, reason: &str, message: Option<&str>) -> Value {
    container(name, &json!({"waiting": {"reason": reason, "message": message}}))
}

fn running(name: &str) -> Value {
    container(name, &json!({"running": {"startedAt": "2026-11-23T14:00:02Z"}}))
}

fn ended(name: &str, code: i32, reason: &str, message: &str) -> Value {
    container(
        name,
        &json!({"terminated": {
            "exitCode": code, "reason": reason, "message": message, "containerID": "containerd://x",
            "startedAt": "2026-11-23T14:00:02Z", "finishedAt": "2026-11-23T14:00:04Z",
        }}),
    )
}

fn well(name: &str) -> Value {
    ended(name, 0, "Completed", &reported(&json!({"code": 0}), ""))
}

fn reported(exit: &Value, tail: &str) -> String {
    json!({"exit": exit, "lines": 7, "bytes": 70, "tail": tail}).to_string()
}

fn status(phase: &str, init: &[Value], main: &Value) -> Value {
    json!({"phase": phase, "initContainerStatuses": init, "containerStatuses": [main]})
}

fn with(mut status: Value, more: &Value) -> Value {
    for (key, value) in more.as_object().unwrap() {
        status[key] = value.clone();
    }
    status
}

fn disruption(reason: &str) -> Value {
    json!({"conditions": [
        {"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "Taint manager: deleting due to NoExecute taint"},
    ]})
}

fn expect_failure(pod: &Pod, code: FailureCode, words: &[&str]) {
    match observe(pod) {
        Observation::Finished {
            outcome: Outcome::Failed(failure) | Outcome::FailedByNode(failure),
            ..
        } => {
            assert_eq!(failure.code, code, "{failure:?}");
            for word in words {
                assert!(failure.message.contains(word), "{word} is not in: {}", failure.message);
            }
        }
        other => panic!("expected {code}, not {other:?}\nof {pod:?}"),
    }
}

#[test]
fn before_it_runs_it_says_what_it_waits_for() {
    let scheduler = "0/2 nodes are available: 2 Insufficient cpu.";
    let agent = || ended("agent", 0, "Completed", "");
    let initializing = waiting("build", "PodInitializing", None);
    let cases = [
        (unscheduled(&json!([])), PendingReason::Unscheduled(None)),
        (
            unscheduled(&json!([{
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": scheduler,
            }])),
            PendingReason::Unscheduled(Some(scheduler.to_owned())),
        ),
        (pod(json!({"phase": "Pending"})), PendingReason::Starting(None)),
        (
            pod(status(
                "Pending",
                &[
                    waiting("agent", "PodInitializing", None),
                    waiting("source", "PodInitializing", None),
                ],
                &initializing,
            )),
            PendingReason::Starting(None),
        ),
        (
            pod(status(
                "Pending",
                &[
                    agent(),
                    waiting(
                        "source",
                        "ImagePullBackOff",
                        Some("Back-off pulling image \"source:1\""),
                    ),
                ],
                &initializing,
            )),
            PendingReason::ImagePull(
                "`source:1`: ImagePullBackOff: Back-off pulling image \"source:1\". For the operator: the image is set by `kubernetes.agent_image` or `kubernetes.source_image`, its credentials by `kubernetes.image_pull_secrets`.".to_owned(),
            ),
        ),
        (
            pod(status(
                "Pending",
                &[
                    waiting("agent", "InvalidImageName", None),
                    waiting("source", "PodInitializing", None),
                ],
                &initializing,
            )),
            PendingReason::ImageImpossible("`agent:1`: InvalidImageName. For the operator: the image is set by `kubernetes.agent_image`, its credentials by `kubernetes.image_pull_secrets`.".to_owned()),
        ),
        (
            pod(status(
                "Pending",
                &[
                    agent(),
                    waiting("source", "CreateContainerConfigError", Some("secret \"x\" not found")),
                ],
                &initializing,
            )),
            PendingReason::Starting(Some(
                "`source:1`: CreateContainerConfigError: secret \"x\" not found".to_owned(),
            )),
        ),
    ];
    for (pod, expected) in cases {
        match observe(&pod) {
            Observation::Pending { reason, since, .. } => {
                assert_eq!(reason, expected);
                assert_eq!(since.to_rfc3339(), "2026-11-23T14:00:00+00:00");
            }
            other => panic!("expected {expected:?}, not {other:?}"),
        }
    }
}

#[test]
fn steps_begin_and_end_one_after_the_other() {
    let agent = ended("agent", 0, "Completed", "");
    let pods = [
        status(
            "Pending",
            &[agent.clone(), running("source")],
            &waiting("build", "PodInitializing", None),
        ),
        status(
            "Pending",
            &[agent.clone(), well("source")],
            &waiting("build", "ErrImagePull", Some("not found")),
        ),
        status("Running", &[agent.clone(), well("source")], &running("build")),
        status("Succeeded", &[agent, well("source")], &well("build")),
    ]
    .map(|status| observe(&pod(status)));
    let [source, between, build, done] = &pods;
    assert!(matches!(source, Observation::Running { steps, waiting: None, .. }
        if steps.len() == 1 && steps[0].end.is_none()));
    assert!(
        matches!(between, Observation::Running { steps, waiting: Some(PendingReason::ImagePull(_)), .. }
        if steps[0].end.as_ref().is_some_and(|end| end.succeeded && end.report.as_ref().unwrap().lines == 7))
    );
    assert!(matches!(build, Observation::Running { steps, .. }
        if steps.len() == 2 && steps[1].step == StepName::Build));
    assert!(
        matches!(done, Observation::Finished { outcome: Outcome::Succeeded, node: Some(node), .. }
        if node == "node1")
    );
    assert_eq!(done.steps()[1].started_at.to_rfc3339(), "2026-11-23T14:00:02+00:00");
    assert_eq!(
        done.steps()[1].end.as_ref().unwrap().at.to_rfc3339(),
        "2026-11-23T14:00:04+00:00"
    );
}

#[test]
fn a_container_of_the_templates_does_not_hold_up_the_end() {
    let mut status = status("Running", &[well("source")], &well("build"));
    status["containerStatuses"]
        .as_array_mut()
        .unwrap()
        .push(running("monitor"));
    assert!(matches!(
        observe(&pod(status)),
        Observation::Finished {
            outcome: Outcome::Succeeded,
            ..
        }
    ));
}

#[test]
fn a_step_that_fails_is_explained() {
    let build = |code, reason: &str, message: &str| {
        pod(status(
            "Failed",
            &[well("source")],
            &ended("build", code, reason, message),
        ))
    };
    let push = reported(
        &json!({"code": 1}),
        "error: failed to solve: failed to push h:5001/a:1: unexpected status: 401 Unauthorized\n",
    );
    expect_failure(&build(1, "Error", &push), FailureCode::PushFailed, &["`h:5001/a:1`"]);
    // Whoever was killed for memory, the builder or the agent, the reason is the container's.
    let failed = reported(&json!({"code": 1}), "error: failed to solve: x\n");
    for (code, message) in [(137, ""), (1, failed.as_str())] {
        expect_failure(
            &build(code, "OOMKilled", message),
            FailureCode::OutOfMemory,
            &["resources.memory"],
        );
    }
    // What BuildKit says when the kernel has killed a command of the Dockerfile.
    let killed = reported(
        &json!({"code": 1}),
        "error: failed to solve: process \"/bin/sh -c make\" did not complete successfully: exit code: 137\n",
    );
    expect_failure(
        &build(1, "OOMKilled", &killed),
        FailureCode::OutOfMemory,
        &["`make`", "resources.memory"],
    );
    expect_failure(&build(137, "Error", ""), FailureCode::Internal, &["137", "no report"]);
    expect_failure(&build(0, "Completed", ""), FailureCode::Internal, &["left no report"]);
    expect_failure(
        &build(
            128,
            "StartError",
            "failed to create containerd task: exec: no such file",
        ),
        FailureCode::Internal,
        &["StartError", "no such file"],
    );
    expect_failure(
        &build(
            137,
            "ContainerStatusUnknown",
            "The container could not be located when the pod was terminated",
        ),
        FailureCode::NodeLost,
        &["could not be located"],
    );
    let problem = json!({
        "exit": {"code": 1}, "lines": 1, "bytes": 1,
        "problem": {"kind": "source", "message": "no such branch"},
    });
    expect_failure(
        &pod(status(
            "Failed",
            &[ended("source", 1, "Error", &problem.to_string())],
            &waiting("build", "PodInitializing", None),
        )),
        FailureCode::SourceFailed,
        &["no such branch"],
    );
    expect_failure(
        &pod(status(
            "Pending",
            &[
                ended("agent", 1, "Error", ""),
                waiting("source", "PodInitializing", None),
            ],
            &waiting("build", "PodInitializing", None),
        )),
        FailureCode::Internal,
        &["agent could not be installed"],
    );
}

#[test]
fn a_success_stays_one_whatever_follows() {
    let killed = ended("build", 0, "OOMKilled", &reported(&json!({"code": 0}), ""));
    for status in [
        status("Succeeded", &[well("source")], &killed),
        with(
            status("Failed", &[well("source")], &well("build")),
            &json!({"reason": "Evicted"}),
        ),
        with(
            status("Running", &[well("source")], &well("build")),
            &disruption("DeletionByTaintManager"),
        ),
    ] {
        assert!(matches!(
            observe(&pod(status)),
            Observation::Finished {
                outcome: Outcome::Succeeded,
                ..
            }
        ));
    }
}

#[test]
fn what_was_done_to_the_pod_is_nobodys_build_failure() {
    let stopped = || ended("build", 143, "Error", &reported(&json!("stopped"), ""));
    let failed = |reason: &str, message: &str| {
        pod(with(
            status("Failed", &[well("source")], &stopped()),
            &json!({"reason": reason, "message": message}),
        ))
    };
    let cases: Vec<(Pod, FailureCode, &[&str])> = vec![
        (
            failed(
                "Evicted",
                "The node was low on resource: memory. Threshold quantity: 100Mi, available: 62Mi.",
            ),
            FailureCode::Evicted,
            &["low on resource"],
        ),
        (
            failed(
                "Evicted",
                "Usage of EmptyDir volume \"storage\" exceeds the limit \"20Gi\". ",
            ),
            FailureCode::Evicted,
            &["resources.disk"],
        ),
        (
            failed("Preempting", "Preempted in order to admit critical pod"),
            FailureCode::Evicted,
            &["critical pod"],
        ),
        (
            failed(
                "DeadlineExceeded",
                "Pod was active on the node longer than the specified deadline",
            ),
            FailureCode::Timeout,
            &["timeout_seconds"],
        ),
        (
            failed(
                "Terminated",
                "Pod was terminated in response to imminent node shutdown.",
            ),
            FailureCode::NodeLost,
            &["shut down"],
        ),
        (
            failed("NodeLost", "Node node1 which was running pod is unresponsive"),
            FailureCode::NodeLost,
            &["node1"],
        ),
        (
            pod(
                json!({"phase": "Failed", "reason": "OutOfcpu", "message": "Pod was rejected: Node didn't have enough resource: cpu"}),
            ),
            FailureCode::Evicted,
            &["refused", "enough resource"],
        ),
        (
            pod(with(
                status("Failed", &[well("source")], &stopped()),
                &disruption("PreemptionByScheduler"),
            )),
            FailureCode::Evicted,
            &["more important"],
        ),
        (
            deleted(pod(with(
                status("Running", &[well("source")], &stopped()),
                &disruption("EvictionByEvictionAPI"),
            ))),
            FailureCode::Evicted,
            &["evicted"],
        ),
        (
            deleted(pod(with(
                status("Running", &[well("source")], &running("build")),
                &disruption("DeletionByTaintManager"),
            ))),
            FailureCode::NodeLost,
            &["NoExecute"],
        ),
    ];
    for (pod, code, words) in cases {
        expect_failure(&pod, code, words);
    }
    expect_failure(
        &pod(json!({"phase": "Failed"})),
        FailureCode::Internal,
        &["without saying"],
    );
}

fn sidecar(state: &Value) -> Value {
    container("ship", state)
}

fn ships() -> Value {
    sidecar(&json!({"running": {"startedAt": "2026-11-23T14:00:01Z"}}))
}

fn finished(pod: &Pod) -> bool {
    matches!(observe(pod), Observation::Finished { .. })
}

#[test]
fn the_sidecar_is_no_step() {
    let initializing = waiting("build", "PodInitializing", None);
    let next = || waiting("source", "PodInitializing", None);
    let begun = observe(&pod(status("Pending", &[ships(), next()], &initializing)));
    assert!(matches!(
        begun,
        Observation::Pending {
            reason: PendingReason::Starting(None),
            ..
        }
    ));

    let unpullable = waiting("ship", "ErrImagePull", Some("not found"));
    match observe(&pod(status("Pending", &[unpullable, next()], &initializing))) {
        Observation::Pending {
            reason: PendingReason::ImagePull(words),
            ..
        } => {
            assert!(words.contains("`kubernetes.agent_image`"), "{words}");
        }
        other => panic!("{other:?}"),
    }
    let crashing = || sidecar(&json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}}));
    match observe(&pod(status("Pending", &[crashing(), next()], &initializing))) {
        Observation::Pending {
            reason: PendingReason::Starting(Some(words)),
            ..
        } => {
            assert!(words.contains("CrashLoopBackOff: back-off 10s"), "{words}");
        }
        other => panic!("{other:?}"),
    }
    let mut crashed = crashing();
    crashed["lastState"] = json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}});
    let running = observe(&pod(status("Running", &[crashed, well("source")], &running("build"))));
    assert!(matches!(running, Observation::Running { waiting: None, steps, .. } if steps.len() == 2));
}

#[test]
fn an_attempt_is_over_when_its_steps_are() {
    let failed = reported(&json!({"code": 1}), "error: failed to solve: x\n");
    let initializing = waiting("build", "PodInitializing", None);
    assert!(finished(&pod(status(
        "Running",
        &[ships(), well("source")],
        &well("build")
    ))));
    let build = ended("build", 1, "Error", &failed);
    assert!(finished(&pod(status("Running", &[ships(), well("source")], &build))));
    let build = ended("build", 137, "OOMKilled", "");
    assert!(finished(&pod(status("Running", &[ships(), well("source")], &build))));
    let source = ended("source", 1, "Error", &failed);
    assert!(finished(&pod(status("Pending", &[ships(), source], &initializing))));
}

#[test]
fn the_log_is_sent_until_the_attempt_is_over() {
    let initializing = waiting("build", "PodInitializing", None);
    let next = waiting("source", "PodInitializing", None);
    let gone = ended("ship", 137, "Error", "");
    let starting = waiting("ship", "PodInitializing", None);
    let cases = [
        (status("Pending", &[starting, next], &initializing), Shipping::Running),
        (
            status("Running", &[ships(), well("source")], &running("build")),
            Shipping::Running,
        ),
        // Between its death and its restart.
        (
            status("Running", &[gone.clone(), well("source")], &running("build")),
            Shipping::Running,
        ),
        (
            status("Running", &[ships(), well("source")], &well("build")),
            Shipping::Running,
        ),
        (
            status("Running", &[gone.clone(), well("source")], &well("build")),
            Shipping::Over,
        ),
        (
            with(status("Failed", &[gone], &initializing), &json!({"reason": "Evicted"})),
            Shipping::Over,
        ),
        (json!({"phase": "Failed", "reason": "OutOfcpu"}), Shipping::Over),
    ];
    for (status, expected) in cases {
        let mut pod = pod(status);
        assert_eq!(shipping(&pod, &observe(&pod)), Shipping::Absent, "it has no sidecar");
        let containers = serde_json::from_value(json!([{"name": "ship"}])).unwrap();
        pod.spec.as_mut().unwrap().init_containers = containers;
        assert_eq!(shipping(&pod, &observe(&pod)), expected, "{pod:?}");
    }
}

#[test]
fn what_ended_a_step_without_a_word_is_told_once_nothing_runs() {
    let stopped = reported(&json!("stopped"), "");
    for (code, message) in [(143, stopped.as_str()), (137, "")] {
        let killed = ended("build", code, "Error", message);
        let running = status("Running", &[ships(), well("source")], &killed);
        assert!(!finished(&pod(running.clone())));
        let mut told = pod(running.clone());
        told.metadata.annotations = Some([(pod::STOPPED.to_owned(), "true".to_owned())].into());
        assert!(finished(&told), "it was stopped by Kiln");
        expect_failure(
            &deleted(pod(running)),
            FailureCode::NodeLost,
            &["something other than Kiln"],
        );

        let ship = ended("ship", 0, "Completed", "");
        let over = status("Failed", &[ship, well("source")], &killed);
        let over = with(
            over,
            &json!({"reason": "Evicted", "message": "The node was low on resource: memory."}),
        );
        expect_failure(&pod(over), FailureCode::Evicted, &["low on resource"]);
    }
}

#[test]
fn a_pod_that_is_being_ended_runs_until_its_containers_have() {
    let evicting = with(
        status("Running", &[well("source")], &running("build")),
        &disruption("EvictionByEvictionAPI"),
    );
    assert!(matches!(observe(&deleted(pod(evicting))), Observation::Running { .. }));
    let stopped = ended("build", 143, "Error", &reported(&json!("stopped"), ""));
    expect_failure(
        &deleted(pod(status("Running", &[well("source")], &stopped))),
        FailureCode::NodeLost,
        &["deleted by something other than Kiln"],
    );
}
