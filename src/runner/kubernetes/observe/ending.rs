//! How an attempt ended, by what its pod says: the failure's code, the place in the pod that shows it, and whether the
//! node is to blame, so that others are better sent elsewhere. Pure.
//!
//! The reasons are those that Kubernetes 1.31 to 1.34 set; `recorded/` holds pods as real clusters left them.

use k8s_openapi::api::core::v1::{ContainerStateTerminated, Pod, PodStatus};
use kiln_agent::wire::report::{Exit, Report};

use super::{container, is_running, statuses, terminated};
use crate::{
    domain::{
        event::StepName,
        failure::{Evidence, Failure, FailureCode},
    },
    runner::{
        Outcome, StepEnd, StepObservation,
        builder::{classify, out_of_memory},
        kubernetes::pod,
    },
};

/// Who is to blame for a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blame {
    /// The node, which may fail others, too.
    Node,
    /// Somebody else.
    Other,
}

/// What the pod shows of its end.
struct Finding {
    blame: Blame,
    failure: Failure,
}

impl Finding {
    fn new(blame: Blame, code: FailureCode, message: impl Into<String>, evidence: Evidence) -> Self {
        Self {
            blame,
            failure: Failure::new(code, message).shown_by(evidence),
        }
    }

    fn into_outcome(self) -> Outcome {
        match self.blame {
            Blame::Node => Outcome::FailedByNode(self.failure),
            Blame::Other => Outcome::Failed(self.failure),
        }
    }
}

/// How the attempt ended, if it did.
pub(super) fn outcome(pod: &Pod, status: &PodStatus, steps: &[StepObservation]) -> Option<Outcome> {
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
    let finding = by_reason(pod, status)
        .or_else(|| by_disruption(status))
        .or_else(|| by_containers(pod, status, steps));
    if let Some(finding) = finding {
        return Some(finding.into_outcome());
    }
    is_over(status).then(|| {
        Outcome::Failed(
            Failure::new(
                FailureCode::Internal,
                format!(
                    "The build's pod ended without saying how it went.{}",
                    words(status.message.as_deref())
                ),
            )
            .shown_by(Evidence::new(
                "status.phase",
                status.phase.as_deref().unwrap_or_default(),
            )),
        )
    })
}

/// What the kubelet or the node life cycle controller say of the pod as a whole.
fn by_reason(pod: &Pod, status: &PodStatus) -> Option<Finding> {
    let message = words(status.message.as_deref());
    let reason = status.reason.as_deref()?;
    let (blame, code, text) = match reason {
        "DeadlineExceeded" if pod::is_stopped(pod) => (
            Blame::Other,
            FailureCode::Internal,
            "The build's pod was told to stop.".to_owned(),
        ),
        "DeadlineExceeded" => (
            Blame::Other,
            FailureCode::Timeout,
            "The build's pod was ended because it ran far longer than its `timeout_seconds`. Raise it, or make the build faster.".to_owned(),
        ),
        // Of its own disk, or of one of its volumes.
        "Evicted" if message.contains("exceed") => (
            Blame::Other,
            FailureCode::Evicted,
            format!("The node evicted the build's pod.{message} Ask for more in `resources.disk`."),
        ),
        "Evicted" => (
            Blame::Node,
            FailureCode::Evicted,
            format!("The node evicted the build's pod.{message}"),
        ),
        "Preempting" => (
            Blame::Other,
            FailureCode::Evicted,
            format!("The build's pod had to make room for a more important one.{message}"),
        ),
        "NodeLost" => (
            Blame::Node,
            FailureCode::NodeLost,
            format!("The build's node stopped answering.{message}"),
        ),
        "Terminated" | "Shutdown" | "NodeShutdown" => (
            Blame::Node,
            FailureCode::NodeLost,
            format!("The build's node was shut down.{message}"),
        ),
        // The node found on arrival that it has no room, or isn't the right one: the scheduler's knowledge was old.
        _ if reason.starts_with("OutOf")
            || matches!(
                reason,
                "UnexpectedAdmissionError" | "NodeAffinity" | "NodePorts" | "HostNetworkNotSupported"
            ) =>
        {
            let broken = reason == "UnexpectedAdmissionError";
            (
                if broken { Blame::Node } else { Blame::Other },
                FailureCode::Evicted,
                format!("The node refused the build's pod.{message}"),
            )
        }
        _ => return None,
    };
    Some(Finding::new(blame, code, text, Evidence::new("status.reason", reason)))
}

/// What is being done to the pod from outside of its node.
fn by_disruption(status: &PodStatus) -> Option<Finding> {
    let disruption = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "DisruptionTarget" && condition.status == "True")?;
    let message = words(disruption.message.as_deref());
    let reason = disruption.reason.as_deref().unwrap_or_default();
    let (blame, code, text) = match reason {
        // The node doesn't answer: nobody will say more.
        "DeletionByTaintManager" | "DeletionByPodGC" => (
            Blame::Node,
            FailureCode::NodeLost,
            format!("The build's node stopped answering or was taken out of service.{message}"),
        ),
        // The kubelet still ends the containers, and their reports are worth waiting for.
        _ if !is_over(status) && !all_ended(status) => return None,
        "PreemptionByScheduler" => (
            Blame::Other,
            FailureCode::Evicted,
            format!("The build's pod had to make room for a more important one.{message}"),
        ),
        // By the eviction API: somebody drains the node.
        _ => (
            Blame::Other,
            FailureCode::Evicted,
            format!("The build's pod was evicted.{message}"),
        ),
    };
    let evidence = Evidence::new("status.conditions[DisruptionTarget].reason", reason);
    Some(Finding::new(blame, code, text, evidence))
}

fn is_over(status: &PodStatus) -> bool {
    matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
}

/// Whether no container runs any more, of those that have begun. The sidecar ends after all others.
fn all_ended(status: &PodStatus) -> bool {
    !statuses(status).any(|container| container.name != pod::SHIP && is_running(container))
}

/// Whether the pod may still say more of why its steps were ended.
fn says_more(pod: &Pod, status: &PodStatus) -> bool {
    !is_over(status) && !pod::is_stopped(pod) && container(status, pod::SHIP).is_some_and(is_running)
}

/// What the containers' ends say.
fn by_containers(pod: &Pod, status: &PodStatus, steps: &[StepObservation]) -> Option<Finding> {
    let agent = container(status, "agent");
    if let Some(end) = agent.and_then(terminated).filter(|end| end.exit_code != 0) {
        let text = format!(
            "The agent could not be installed (exit code {}).{}",
            end.exit_code,
            words(end.message.as_deref())
        );
        let evidence = exit_evidence("agent", end);
        return Some(Finding::new(Blame::Other, FailureCode::Internal, text, evidence));
    }
    StepName::ALL.into_iter().find_map(|step| {
        let status_of_step = container(status, step.as_str())?;
        let end = terminated(status_of_step)?;
        let report = steps
            .iter()
            .find(|seen| seen.step == step)
            .and_then(|seen| seen.end.as_ref()?.report.as_ref());
        by_step(pod, status, step, end, report)
    })
}

fn by_step(
    pod: &Pod,
    status: &PodStatus,
    step: StepName,
    end: &ContainerStateTerminated,
    report: Option<&Report>,
) -> Option<Finding> {
    let name = step.as_str();
    let exit = || exit_evidence(name, end);
    let reason = end.reason.as_deref().unwrap_or_default();
    match (end.exit_code, report) {
        (0, Some(_)) => return None,
        (0, None) => {
            let text = format!("The {name} step ended well but left no report.");
            return Some(Finding::new(Blame::Other, FailureCode::Internal, text, exit()));
        }
        _ => {}
    }
    if reason == "OOMKilled" {
        // Whoever survived may know which command it was.
        let failure = report
            .map(|report| classify(step, report))
            .filter(|failure| failure.code == FailureCode::OutOfMemory)
            .unwrap_or_else(|| out_of_memory(&format!("The {name} step was killed by the node")));
        return Some(Finding {
            blame: Blame::Other,
            failure: failure.shown_by(exit()),
        });
    }
    // Kiln deletes no pod whose containers have something to say.
    let deleted = pod.metadata.deletion_timestamp.is_some();
    let unexplained = report.is_none_or(|report| report.exit == Exit::Stopped);
    if unexplained && !deleted && says_more(pod, status) {
        return None;
    }
    match report {
        Some(report) if report.exit != Exit::Stopped || !deleted => {
            return Some(Finding {
                blame: Blame::Other,
                failure: classify(step, report).shown_by(Evidence::new(
                    format!("containers[{name}].state.terminated.message"),
                    report_evidence(report),
                )),
            });
        }
        Some(_) | None if deleted => {
            return Some(Finding::new(
                Blame::Other,
                FailureCode::NodeLost,
                "The build's pod was deleted by something other than Kiln while it ran.",
                Evidence::new("metadata.deletionTimestamp", "set"),
            ));
        }
        Some(_) | None => {}
    }
    // The kubelet doesn't know what became of the container: the node restarted, or lost its runtime.
    if reason == "ContainerStatusUnknown" {
        let text = format!(
            "The node lost track of the {name} step.{}",
            words(end.message.as_deref())
        );
        return Some(Finding::new(Blame::Node, FailureCode::NodeLost, text, exit()));
    }
    let text = format!(
        "The {name} step's container ended with exit code {} ({}) and left no report.{}",
        end.exit_code,
        if reason.is_empty() { "no reason given" } else { reason },
        words(end.message.as_deref())
    );
    // Nothing in the container can kill its first process; something on the node did.
    let killed = end.exit_code == 128 + SIGKILL || end.signal == Some(SIGKILL);
    let blame = if killed { Blame::Node } else { Blame::Other };
    Some(Finding::new(blame, FailureCode::Internal, text, exit()))
}

/// The signal that can't be handled.
const SIGKILL: i32 = 9;

/// What a container's end shows.
fn exit_evidence(name: &str, end: &ContainerStateTerminated) -> Evidence {
    let says = match end.reason.as_deref() {
        Some(reason) if !reason.is_empty() => format!("{reason}, exit code {}", end.exit_code),
        _ => format!("exit code {}", end.exit_code),
    };
    Evidence::new(format!("containers[{name}].state.terminated"), says)
}

fn report_evidence(report: &Report) -> String {
    match report.exit {
        Exit::Code(code) => format!("the step's report: exit code {code}"),
        Exit::Signal(signal) => format!("the step's report: signal {signal}"),
        Exit::Stopped => "the step's report: told to stop".to_owned(),
    }
}

/// What Kubernetes has to say, as the end of a message.
fn words(message: Option<&str>) -> String {
    match message.map(str::trim) {
        None | Some("") => String::new(),
        Some(message) => format!(" Kubernetes says: {message}"),
    }
}
