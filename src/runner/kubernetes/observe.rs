//! From a pod to what is observed of its attempt. Pure.
//!
//! What the pod says of itself comes before what its containers say, and that before what the builder printed: a
//! build that fails because its node went away must not look like its owner's mistake. Only exit status 0 with a
//! report beats them all, for then the work is done.
//!
//! The sidecar that pushes the log is no step: the attempt is over when its steps are. Only while nobody has said why a
//! step was ended, the sidecar's end is waited for, because a kubelet says what it did to a pod once nothing of it runs.

mod ending;
#[cfg(test)]
mod tests;

use chrono::{DateTime, Utc};
use k8s_openapi::{
    api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus, Pod, PodStatus},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kiln_agent::wire::report::Report;

use super::pod;
use crate::{
    domain::event::StepName,
    runner::{Observation, PendingReason, Shipping, StepEnd, StepObservation},
};

/// What a pod's status says about its attempt.
pub(super) fn observe(pod: &Pod) -> Observation {
    let empty = PodStatus::default();
    let status = pod.status.as_ref().unwrap_or(&empty);
    let created = pod.metadata.creation_timestamp.as_ref().map(time).unwrap_or_default();
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
    let steps = steps(status, created);

    if let Some(outcome) = ending::outcome(pod, status, &steps) {
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
            | "ImageInspectError"
            | "RegistryUnavailable"
            | "SignatureValidationFailed" => Some(PendingReason::ImagePull(image_words(container, words()))),
            // Nothing will change about the name, nor pull what is never to be pulled.
            "InvalidImageName" | "ErrImageNeverPull" => {
                Some(PendingReason::ImageImpossible(image_words(container, words())))
            }
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

fn image_words(container: &ContainerStatus, words: String) -> String {
    format!(
        "{} For the operator: the image is set by {}, its credentials by `kubernetes.image_pull_secrets`.",
        sentence(words),
        image_setting(&container.name)
    )
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
