//! From a pod to what is observed of its attempt. Pure.
//!
//! What the pod says of itself comes before what its containers say, and that before what the builder printed: a
//! build that fails because its node went away must not look like its owner's mistake. Only exit status 0 with a
//! report beats them all, for then the work is done.
//!
//! The sidecar that pushes the log is no step: the attempt is over when its steps are. Only while nobody has said why a
//! step was ended, the sidecar's end is waited for, because a kubelet says what it did to a pod once nothing of it runs.

use chrono::{DateTime, Utc};
use k8s_openapi::{
    api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Pod, PodStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kiln_agent::wire::report::{Exit, Report};

use super::pod;
use crate::{
    domain::{
        event::StepName,
        failure::{Failure, FailureCode},
    },
    runner::{
        Observation, Outcome, PendingReason, Shipping, StepEnd, StepObservation,
        builder::{classify, out_of_memory},
    },
};

/// What a pod's status says about its attempt.
pub(super) fn observe(pod: &Pod) -> Observation {
    let empty = PodStatus::default();
    let status = pod.status.as_ref().unwrap_or(&empty);
    let created = pod.metadata.creation_timestamp.as_ref().map(time).unwrap_or_default();
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    let steps = steps(status, created);

    if let Some(outcome) = outcome(pod, status, &steps) {
        return Observation::Finished { node, steps, outcome };
    }
    let waiting = waiting(status, node.is_some());
    if steps.is_empty() {
        return Observation::Pending {
            node,
            since: created,
            reason: waiting.unwrap_or(PendingReason::Starting(None)),
        };
    }
    Observation::Running { node, steps, waiting }
}

fn steps(status: &PodStatus, created: DateTime<Utc>) -> Vec<StepObservation> {
    StepName::ALL
        .into_iter()
        .filter_map(|step| {
            let state = container(status, step.as_str())?.state.as_ref()?;
            if let Some(running) = &state.running {
                return Some(StepObservation {
                    step,
                    started_at: running.started_at.as_ref().map_or(created, time),
                    end: None,
                });
            }
            let terminated = state.terminated.as_ref()?;
            Some(StepObservation {
                step,
                started_at: moment(terminated.started_at.as_ref(), created),
                end: Some(StepEnd {
                    succeeded: terminated.exit_code == 0,
                    at: moment(terminated.finished_at.as_ref(), created),
                    report: report(terminated),
                }),
            })
        })
        .collect()
}

/// How the attempt ended, if it did.
fn outcome(pod: &Pod, status: &PodStatus, steps: &[StepObservation]) -> Option<Outcome> {
    let build = steps.iter().find(|seen| seen.step == StepName::Build);
    if let Some(StepEnd {
        succeeded: true,
        report: Some(Report {
            exit: Exit::Code(0), ..
        }),
        ..
    }) = build.and_then(|seen| seen.end.as_ref())
    {
        return Some(Outcome::Succeeded);
    }
    let failure = pod_failure(pod, status).or_else(|| container_failure(pod, status, steps));
    if let Some(failure) = failure {
        return Some(Outcome::Failed(failure));
    }
    let over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    over.then(|| {
        Outcome::Failed(Failure::new(
            FailureCode::Internal,
            format!(
                "The build's pod ended without saying how it went.{}",
                words(status.message.as_deref())
            ),
        ))
    })
}

/// What was done to the pod as a whole.
fn pod_failure(pod: &Pod, status: &PodStatus) -> Option<Failure> {
    let message = words(status.message.as_deref());
    let reason = status.reason.as_deref().unwrap_or_default();
    let failed = |code, text: String| Some(Failure::new(code, text));
    // Reasons that the kubelet and the node life cycle controller set.
    match reason {
        "DeadlineExceeded" if pod::is_stopped(pod) => {
            return failed(FailureCode::Internal, "The build's pod was told to stop.".to_owned());
        }
        "DeadlineExceeded" => {
            return failed(
                FailureCode::Timeout,
                "The build's pod was ended because it ran far longer than its `timeout_seconds`. Raise it, or make the build faster.".to_owned(),
            );
        }
        "Evicted" => {
            let hint = if message.contains("exceed") {
                " Ask for more in `resources.disk`."
            } else {
                ""
            };
            return failed(
                FailureCode::Evicted,
                format!("The node evicted the build's pod.{message}{hint}"),
            );
        }
        "Preempting" => {
            return failed(
                FailureCode::Evicted,
                format!("The build's pod had to make room for a more important one.{message}"),
            );
        }
        "NodeLost" => {
            return failed(
                FailureCode::NodeLost,
                format!("The build's node stopped answering.{message}"),
            );
        }
        "Terminated" | "Shutdown" | "NodeShutdown" => {
            return failed(
                FailureCode::NodeLost,
                format!("The build's node was shut down.{message}"),
            );
        }
        // The node found on arrival that it has no room, or isn't the right one.
        _ if reason.starts_with("OutOf")
            || matches!(
                reason,
                "UnexpectedAdmissionError" | "NodeAffinity" | "NodePorts" | "HostNetworkNotSupported"
            ) =>
        {
            return failed(
                FailureCode::Evicted,
                format!("The node refused the build's pod.{message}"),
            );
        }
        _ => {}
    }
    let disruption = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "DisruptionTarget" && condition.status == "True")?;
    let message = words(disruption.message.as_deref());
    let over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) || all_ended(status);
    match disruption.reason.as_deref().unwrap_or_default() {
        // The node doesn't answer: nobody will say more.
        "DeletionByTaintManager" | "DeletionByPodGC" => failed(
            FailureCode::NodeLost,
            format!("The build's node stopped answering or was taken out of service.{message}"),
        ),
        // The kubelet still ends the containers, and their reports are worth waiting for.
        _ if !over => None,
        "PreemptionByScheduler" => failed(
            FailureCode::Evicted,
            format!("The build's pod had to make room for a more important one.{message}"),
        ),
        _ => failed(FailureCode::Evicted, format!("The build's pod was evicted.{message}")),
    }
}

/// Whether no container runs any more, of those that have begun. The sidecar ends after all others.
fn all_ended(status: &PodStatus) -> bool {
    !statuses(status).any(|container| container.name != pod::SHIP && is_running(container))
}

/// Whether any container of the pod runs.
pub(super) fn any_runs(pod: &Pod) -> bool {
    pod.status
        .as_ref()
        .is_some_and(|status| statuses(status).any(is_running))
}

/// What a pod's status says about the sending of its log. The sidecar is started again whatever ends it, until the
/// attempt is over.
pub(super) fn shipping(pod: &Pod, observation: &Observation) -> Shipping {
    let containers = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    if !containers.into_iter().any(|container| container.name == pod::SHIP) {
        return Shipping::Absent;
    }
    let empty = PodStatus::default();
    let status = pod.status.as_ref().unwrap_or(&empty);
    let ship = container(status, pod::SHIP).and_then(|ship| ship.state.as_ref());
    let ended = ship.is_none_or(|state| state.terminated.is_some());
    let over = matches!(observation, Observation::Finished { .. } | Observation::Gone { .. });
    let over = over || matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    if ended && over {
        Shipping::Over
    } else {
        Shipping::Running
    }
}

fn is_running(container: &ContainerStatus) -> bool {
    container.state.as_ref().is_some_and(|state| state.running.is_some())
}

/// Whether the pod may still say more of why its steps were ended.
fn says_more(pod: &Pod, status: &PodStatus) -> bool {
    let over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    !over && !pod::is_stopped(pod) && container(status, pod::SHIP).is_some_and(is_running)
}

/// What the containers' ends say.
fn container_failure(pod: &Pod, status: &PodStatus, steps: &[StepObservation]) -> Option<Failure> {
    if let Some(end) = container(status, "agent")
        .and_then(terminated)
        .filter(|end| end.exit_code != 0)
    {
        return Some(Failure::new(
            FailureCode::Internal,
            format!(
                "The agent could not be installed (exit code {}).{}",
                end.exit_code,
                words(end.message.as_deref())
            ),
        ));
    }
    StepName::ALL.into_iter().find_map(|step| {
        let end = container(status, step.as_str()).and_then(terminated)?;
        let report = steps
            .iter()
            .find(|seen| seen.step == step)
            .and_then(|seen| seen.end.as_ref()?.report.as_ref());
        step_failure(pod, status, step, end, report)
    })
}

fn step_failure(
    pod: &Pod,
    status: &PodStatus,
    step: StepName,
    end: &ContainerStateTerminated,
    report: Option<&Report>,
) -> Option<Failure> {
    let name = step.as_str();
    let reason = end.reason.as_deref().unwrap_or_default();
    match (end.exit_code, report) {
        (0, Some(_)) => return None,
        (0, None) => {
            return Some(Failure::new(
                FailureCode::Internal,
                format!("The {name} step ended well but left no report."),
            ));
        }
        _ => {}
    }
    if reason == "OOMKilled" {
        // Whoever survived may know which command it was.
        let named = report.map(|report| classify(step, report));
        return named
            .filter(|failure| failure.code == FailureCode::OutOfMemory)
            .or_else(|| Some(out_of_memory(&format!("The {name} step was killed by the node"))));
    }
    // Kiln deletes no pod whose containers have something to say.
    let deleted = pod.metadata.deletion_timestamp.is_some();
    let unexplained = report.is_none_or(|report| report.exit == Exit::Stopped);
    if unexplained && !deleted && says_more(pod, status) {
        return None;
    }
    match report {
        Some(report) if report.exit != Exit::Stopped || !deleted => return Some(classify(step, report)),
        Some(_) | None if deleted => {
            return Some(Failure::new(
                FailureCode::NodeLost,
                "The build's pod was deleted by something other than Kiln while it ran.",
            ));
        }
        Some(_) | None => {}
    }
    // The kubelet doesn't know what became of the container: the node restarted, or lost its runtime.
    if reason == "ContainerStatusUnknown" {
        return Some(Failure::new(
            FailureCode::NodeLost,
            format!(
                "The node lost track of the {name} step.{}",
                words(end.message.as_deref())
            ),
        ));
    }
    Some(Failure::new(
        FailureCode::Internal,
        format!(
            "The {name} step's container ended with exit code {} ({}) and left no report.{}",
            end.exit_code,
            if reason.is_empty() { "no reason given" } else { reason },
            words(end.message.as_deref())
        ),
    ))
}

/// What the next container waits for, if it can't begin.
fn waiting(status: &PodStatus, scheduled: bool) -> Option<PendingReason> {
    if !scheduled {
        let condition = status
            .conditions
            .iter()
            .flatten()
            .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
        return Some(PendingReason::Unscheduled(
            condition.and_then(|condition| condition.message.clone()),
        ));
    }
    statuses(status).find_map(|container| {
        let waiting = container.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.as_deref()?;
        // What the sidecar goes through once it has run holds nothing up.
        let holds_up = container.name != pod::SHIP || container.last_state.is_none() || !any_step_began(status);
        let words = || match waiting.message.as_deref().map(str::trim_end) {
            Some(message) => format!("`{}`: {reason}: {message}", container.image),
            None => format!("`{}`: {reason}", container.image),
        };
        match reason {
            _ if !holds_up => None,
            "ErrImagePull"
            | "ImagePullBackOff"
            | "InvalidImageName"
            | "ErrImageNeverPull"
            | "ImageInspectError"
            | "RegistryUnavailable"
            | "SignatureValidationFailed" => Some(PendingReason::ImagePull(format!(
                "{} For the operator: the image is set by {}, its credentials by `kubernetes.image_pull_secrets`.",
                sentence(words()),
                image_setting(&container.name)
            ))),
            // Nothing else of the pod is ever restarted.
            "CrashLoopBackOff"
            | "CreateContainerConfigError"
            | "CreateContainerError"
            | "RunContainerError"
            | "PreStartHookError" => Some(PendingReason::Starting(Some(words()))),
            _ => None,
        }
    })
}

fn any_step_began(status: &PodStatus) -> bool {
    !steps(status, DateTime::UNIX_EPOCH).is_empty()
}

/// What sets the image of a container.
fn image_setting(container: &str) -> &'static str {
    match container {
        "agent" | pod::SHIP => "`kubernetes.agent_image`",
        "source" => "`kubernetes.agent_image` or `kubernetes.source_image`",
        "build" => "`kubernetes.buildkit_image` or `kubernetes.buildah_image`",
        _ => "`kubernetes.pod_template`",
    }
}

/// With a full stop at its end.
fn sentence(mut text: String) -> String {
    if !text.ends_with('.') {
        text.push('.');
    }
    text
}

fn statuses(status: &PodStatus) -> impl Iterator<Item = &ContainerStatus> {
    let init = status.init_container_statuses.iter().flatten();
    init.chain(status.container_statuses.iter().flatten())
}

fn container<'a>(status: &'a PodStatus, name: &str) -> Option<&'a ContainerStatus> {
    statuses(status).find(|container| container.name == name)
}

fn terminated(container: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    let ContainerState { terminated, .. } = container.state.as_ref()?;
    terminated.as_ref()
}

/// The agent's report. A container that was killed leaves none, or one that was cut.
fn report(end: &ContainerStateTerminated) -> Option<Report> {
    serde_json::from_str(end.message.as_deref()?).ok()
}

/// A container's time; one that never ran has the epoch.
fn moment(at: Option<&Time>, otherwise: DateTime<Utc>) -> DateTime<Utc> {
    at.map(time)
        .filter(|at| *at > DateTime::UNIX_EPOCH)
        .unwrap_or(otherwise)
}

fn time(time: &Time) -> DateTime<Utc> {
    let Time(at) = time;
    DateTime::from_timestamp_millis(at.as_millisecond()).unwrap_or_default()
}

/// What Kubernetes has to say, as the end of a message.
fn words(message: Option<&str>) -> String {
    match message.map(str::trim) {
        None | Some("") => String::new(),
        Some(message) => format!(" Kubernetes says: {message}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

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
                outcome: Outcome::Failed(failure),
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
                PendingReason::ImagePull("`agent:1`: InvalidImageName. For the operator: the image is set by `kubernetes.agent_image`, its credentials by `kubernetes.image_pull_secrets`.".to_owned()),
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
}
