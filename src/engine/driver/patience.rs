//! How long a driver waits for what, and what it does then. Pure.

use chrono::{DateTime, TimeDelta, Utc};

use crate::{
    domain::{
        build::{Pending, PendingKind},
        failure::{Failure, FailureCode},
        state::BuildState,
    },
    engine::Config,
    runner::{Observation, Outcome, PendingReason},
};

/// Why an attempt was told to stop, and since when.
pub(super) struct Stopping {
    /// What the attempt then fails with; its own failure when absent.
    pub(super) failure: Option<Failure>,
    pub(super) since: DateTime<Utc>,
}

/// What patience depends on.
pub(super) struct Situation<'a> {
    pub(super) state: &'a BuildState,
    /// Since when this worker has waited for the pod. A worker that takes over waits anew: the time before may have
    /// passed without anybody looking.
    pub(super) waiting_since: DateTime<Utc>,
    pub(super) timeout_seconds: u32,
    pub(super) stopping: Option<&'a Stopping>,
    /// Since when an image can't be pulled.
    pub(super) pulling_since: Option<DateTime<Utc>>,
    /// Whether there are nodes that the attempt must not run on.
    pub(super) choosy: bool,
    pub(super) observation: &'a Observation,
}

/// What to do when a deadline passes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Overdue {
    /// Tell the attempt to stop, and fail it with this once it has.
    Stop(Failure),
    /// Remove the attempt, which ends like this.
    Remove(Outcome),
    /// Launch the attempt again for any node.
    AnyNode,
}

pub(super) fn limit(seconds: u32) -> TimeDelta {
    TimeDelta::seconds(seconds.into())
}

/// The next moment at which patience ends, and what then.
pub(super) fn deadline(config: &Config, situation: &Situation<'_>) -> (DateTime<Utc>, Overdue) {
    if let Some(stopping) = situation.stopping {
        let failure = stopping.failure.clone().unwrap_or_else(|| {
            Failure::new(
                FailureCode::Internal,
                "The attempt did not stop in time and was removed.",
            )
        });
        let at = stopping.since + limit(config.stop_timeout_seconds);
        return (at, Overdue::Remove(Outcome::Failed(failure)));
    }
    if let (Some(since), Some(words)) = (situation.pulling_since, failing_pull(situation.observation)) {
        let message = format!("An image that the build's pod needs can't be pulled: {words}");
        let failure = Failure::new(FailureCode::ImagePullFailed, message);
        let patience = if is_impossible(situation.observation) {
            TimeDelta::zero()
        } else {
            limit(config.image_pull_timeout_seconds)
        };
        return (since + patience, Overdue::Remove(Outcome::Failed(failure)));
    }
    if let BuildState::Running { started_at, .. } = situation.state {
        let seconds = situation.timeout_seconds;
        let message = format!(
            "The build ran longer than its `timeout_seconds` of {seconds}. Raise it, or make the build faster."
        );
        let failure = Failure::new(FailureCode::Timeout, message);
        return (*started_at + limit(seconds), Overdue::Stop(failure));
    }
    if situation.choosy && is_unscheduled(situation.observation) {
        let at = situation.waiting_since + limit(config.other_node_timeout_seconds);
        return (at, Overdue::AnyNode);
    }
    let (seconds, code, message) = match situation.observation {
        Observation::Pending {
            reason: PendingReason::Unscheduled(words),
            ..
        } => (
            config.unscheduled_timeout_seconds,
            FailureCode::Unschedulable,
            format!(
                "No node took the build's pod within {} s. The scheduler says: {} Ask for less in `resources`, or have the operator provide nodes that match.",
                config.unscheduled_timeout_seconds,
                words.as_deref().unwrap_or("nothing.")
            ),
        ),
        other => {
            let words = match other {
                Observation::Pending {
                    reason: PendingReason::Starting(Some(words)),
                    ..
                } => format!("The node says: {words}"),
                _ => "The pod's events, which the operator can see, say why.".to_owned(),
            };
            let seconds = config.pending_timeout_seconds;
            (
                seconds,
                FailureCode::PendingTimeout,
                format!("The build's pod did not run within {seconds} s. {words}"),
            )
        }
    };
    let at = situation.waiting_since + limit(seconds);
    let failure = Failure::new(code, message);
    // A node that makes nothing of a pod and says nothing about it is broken.
    let outcome = match situation.observation {
        Observation::Pending {
            node: Some(_),
            reason: PendingReason::Starting(None),
            ..
        } => Outcome::FailedByNode(failure),
        _ => Outcome::Failed(failure),
    };
    (at, Overdue::Remove(outcome))
}

fn is_unscheduled(observation: &Observation) -> bool {
    matches!(
        observation,
        Observation::Pending {
            reason: PendingReason::Unscheduled(_),
            ..
        }
    )
}

/// What keeps the attempt from running, where the cluster has said so.
pub(super) fn pending(observation: &Observation) -> Option<Pending> {
    let (Observation::Pending { reason, .. }
    | Observation::Running {
        waiting: Some(reason), ..
    }) = observation
    else {
        return None;
    };
    let (kind, words) = match reason {
        PendingReason::Unscheduled(words) => (PendingKind::Unscheduled, words.as_deref()?),
        PendingReason::ImagePull(words) | PendingReason::ImageImpossible(words) => {
            (PendingKind::ImagePull, words.as_str())
        }
        PendingReason::Starting(words) => (PendingKind::Starting, words.as_deref()?),
    };
    // Cut and cleaned like every text for people.
    let message = Failure::new(FailureCode::Internal, words).message;
    Some(Pending { kind, message })
}

/// The kubelet's words, when an image can't be pulled.
pub(super) fn failing_pull(observation: &Observation) -> Option<&str> {
    match observation {
        Observation::Pending {
            reason: PendingReason::ImagePull(words) | PendingReason::ImageImpossible(words),
            ..
        }
        | Observation::Running {
            waiting: Some(PendingReason::ImagePull(words) | PendingReason::ImageImpossible(words)),
            ..
        } => Some(words),
        _ => None,
    }
}

/// Whether waiting for the image is of no use.
fn is_impossible(observation: &Observation) -> bool {
    matches!(
        observation,
        Observation::Pending {
            reason: PendingReason::ImageImpossible(_),
            ..
        } | Observation::Running {
            waiting: Some(PendingReason::ImageImpossible(_)),
            ..
        }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(reason: PendingReason) -> Observation {
        Observation::Pending {
            node: None,
            since: DateTime::UNIX_EPOCH,
            reason,
        }
    }

    #[test]
    fn each_wait_has_its_own_limit_and_code() {
        let config = Config::default();
        let starting = BuildState::Starting { attempt: 1 };
        let running = BuildState::Running {
            attempt: 1,
            started_at: DateTime::UNIX_EPOCH + TimeDelta::seconds(100),
        };
        let cases = [
            (
                &starting,
                pending(PendingReason::Unscheduled(None)),
                300,
                FailureCode::Unschedulable,
            ),
            (
                &starting,
                pending(PendingReason::ImagePull(String::new())),
                90,
                FailureCode::ImagePullFailed,
            ),
            (
                &starting,
                pending(PendingReason::ImageImpossible(String::new())),
                30,
                FailureCode::ImagePullFailed,
            ),
            (
                &starting,
                pending(PendingReason::Starting(None)),
                600,
                FailureCode::PendingTimeout,
            ),
            (&starting, Observation::Unseen, 600, FailureCode::PendingTimeout),
            (&running, Observation::Unseen, 107, FailureCode::Timeout),
        ];
        for (state, observation, seconds, code) in cases {
            let situation = Situation {
                state,
                waiting_since: DateTime::UNIX_EPOCH,
                timeout_seconds: 7,
                stopping: None,
                pulling_since: failing_pull(&observation).map(|_| DateTime::UNIX_EPOCH + TimeDelta::seconds(30)),
                choosy: false,
                observation: &observation,
            };
            let (at, overdue) = deadline(&config, &situation);
            assert_eq!(at.timestamp(), seconds, "{observation:?}");
            match overdue {
                Overdue::Stop(failure) => assert_eq!((failure.code, code), (code, FailureCode::Timeout)),
                Overdue::Remove(Outcome::Failed(failure)) => assert_eq!(failure.code, code),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn what_was_told_to_stop_is_removed_with_the_reason_it_was_stopped_for() {
        let timeout = Failure::new(FailureCode::Timeout, "slow");
        let stopping = Stopping {
            failure: Some(timeout.clone()),
            since: DateTime::UNIX_EPOCH,
        };
        let situation = Situation {
            state: &BuildState::Starting { attempt: 1 },
            waiting_since: DateTime::UNIX_EPOCH,
            timeout_seconds: 7,
            stopping: Some(&stopping),
            pulling_since: None,
            choosy: true,
            observation: &Observation::Unseen,
        };
        let (at, overdue) = deadline(&Config::default(), &situation);
        assert_eq!(
            (at.timestamp(), overdue),
            (20, Overdue::Remove(Outcome::Failed(timeout)))
        );
    }

    #[test]
    fn other_nodes_are_waited_for_and_a_silent_one_is_broken() {
        let outcome = |observation: &Observation, choosy| {
            let situation = Situation {
                state: &BuildState::Starting { attempt: 2 },
                waiting_since: DateTime::UNIX_EPOCH,
                timeout_seconds: 7,
                stopping: None,
                pulling_since: None,
                choosy,
                observation,
            };
            let (at, overdue) = deadline(&Config::default(), &situation);
            (at.timestamp(), overdue)
        };
        let unscheduled = pending(PendingReason::Unscheduled(None));
        assert_eq!(outcome(&unscheduled, true), (30, Overdue::AnyNode));
        let on_a_node = |words: Option<&str>| Observation::Pending {
            node: Some("a".to_owned()),
            since: DateTime::UNIX_EPOCH,
            reason: PendingReason::Starting(words.map(str::to_owned)),
        };
        for (words, broken) in [(None, true), (Some("secret not found"), false)] {
            let (at, overdue) = outcome(&on_a_node(words), true);
            assert_eq!(at, 600);
            assert_eq!(matches!(overdue, Overdue::Remove(Outcome::FailedByNode(_))), broken);
        }
    }
}
