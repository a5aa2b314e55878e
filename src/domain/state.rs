//! The state machine of a build. `docs/state-machine.md` draws it.
//!
//! A variant holds the facts of that state and no others. Transitions are pure, consume the state and can be refused;
//! what they return is written by an UPDATE that names the state they started from.

use std::{fmt, str::FromStr};

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    failure::{Failure, FailureCode},
    spec::Digest,
};

/// The state's name, as in JSON and in the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StateName {
    /// Waits for room.
    Queued,
    /// An attempt has been claimed; its pod is being created or waits to run.
    Starting,
    /// The attempt's pod runs.
    Running,
    /// The attempt has been told to stop.
    Cancelling,
    /// The image was built, and pushed where that was asked for.
    Succeeded,
    /// The build failed for good.
    Failed,
    /// The build was cancelled.
    Cancelled,
}

impl StateName {
    /// Every state, in the order of a build's life.
    pub const ALL: [Self; 7] = [
        Self::Queued,
        Self::Starting,
        Self::Running,
        Self::Cancelling,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
    ];

    /// The name as it stands in JSON, in the database and in metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Cancelling => "cancelling",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether the build is over: nothing follows.
    pub const fn is_terminal(self) -> bool {
        match self {
            Self::Succeeded | Self::Failed | Self::Cancelled => true,
            Self::Queued | Self::Starting | Self::Running | Self::Cancelling => false,
        }
    }
}

impl fmt::Display for StateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for StateName {
    type Err = UnknownState;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or(UnknownState)
    }
}

/// The text names no state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a build state")]
pub struct UnknownState;

/// Where a build stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BuildState {
    /// Waits for room, or for the backoff after a failed attempt.
    Queued {
        /// Attempts made so far.
        attempts: u32,
        /// Not to be claimed before this.
        available_at: DateTime<Utc>,
    },
    /// Claimed; the pod has not been seen running.
    Starting {
        /// The attempt in hand.
        attempt: u32,
    },
    /// The pod runs.
    Running {
        /// The attempt in hand.
        attempt: u32,
        /// When the pod was seen running.
        started_at: DateTime<Utc>,
    },
    /// Told to stop.
    Cancelling {
        /// The attempt in hand.
        attempt: u32,
        /// When the pod was seen running, if it was.
        started_at: Option<DateTime<Utc>>,
    },
    /// Built.
    Succeeded {
        /// When the successful attempt's pod was seen running.
        started_at: DateTime<Utc>,
        /// When the build ended.
        finished_at: DateTime<Utc>,
        /// Digest of the image, where the builder made one.
        digest: Option<Digest>,
    },
    /// Failed for good.
    Failed {
        /// When the last attempt's pod was seen running, if it was.
        started_at: Option<DateTime<Utc>>,
        /// When the build ended.
        finished_at: DateTime<Utc>,
        /// Why.
        failure: Failure,
    },
    /// Cancelled.
    Cancelled {
        /// When the last attempt's pod was seen running, if it was.
        started_at: Option<DateTime<Utc>>,
        /// When the build ended.
        finished_at: DateTime<Utc>,
    },
}

/// The state doesn't allow the transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a build that is {from} can't {transition}")]
pub struct IllegalTransition {
    /// The state that was left as it is.
    pub from: StateName,
    /// What was asked of it.
    pub transition: &'static str,
}

/// What is tried again, how often, and after how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// An infrastructure failure of this attempt, or of a later one, is final.
    pub max_attempts: u32,
    /// Wait before the second attempt; doubles with each further one.
    pub backoff: TimeDelta,
    /// Whether an attempt that ran out of memory is followed by one that gets more.
    pub more_memory: bool,
}

impl BuildState {
    /// The state's name.
    pub const fn name(&self) -> StateName {
        match self {
            Self::Queued { .. } => StateName::Queued,
            Self::Starting { .. } => StateName::Starting,
            Self::Running { .. } => StateName::Running,
            Self::Cancelling { .. } => StateName::Cancelling,
            Self::Succeeded { .. } => StateName::Succeeded,
            Self::Failed { .. } => StateName::Failed,
            Self::Cancelled { .. } => StateName::Cancelled,
        }
    }

    const fn refuse(&self, transition: &'static str) -> IllegalTransition {
        IllegalTransition {
            from: self.name(),
            transition,
        }
    }

    /// A replica takes the build to start an attempt.
    pub fn claim(self) -> Result<Self, IllegalTransition> {
        match self {
            Self::Queued { attempts, .. } => Ok(Self::Starting { attempt: attempts + 1 }),
            other => Err(other.refuse("be claimed")),
        }
    }

    /// The claim is undone: it is certain that no pod was created.
    pub fn release(self, available_at: DateTime<Utc>) -> Result<Self, IllegalTransition> {
        match self {
            Self::Starting { attempt } => Ok(Self::Queued {
                attempts: attempt - 1,
                available_at,
            }),
            other => Err(other.refuse("be released")),
        }
    }

    /// The pod was seen running.
    pub fn run(self, now: DateTime<Utc>) -> Result<Self, IllegalTransition> {
        match self {
            Self::Starting { attempt } => Ok(Self::Running {
                attempt,
                started_at: now,
            }),
            other => Err(other.refuse("run")),
        }
    }

    /// Somebody wants the build to stop. One that has no pod is cancelled at once; asking twice changes nothing.
    pub fn cancel(self, now: DateTime<Utc>) -> Result<Self, IllegalTransition> {
        match self {
            Self::Queued { .. } => Ok(Self::Cancelled {
                started_at: None,
                finished_at: now,
            }),
            Self::Starting { attempt } => Ok(Self::Cancelling {
                attempt,
                started_at: None,
            }),
            Self::Running { attempt, started_at } => Ok(Self::Cancelling {
                attempt,
                started_at: Some(started_at),
            }),
            same @ Self::Cancelling { .. } => Ok(same),
            other => Err(other.refuse("be cancelled")),
        }
    }

    /// The attempt made its image. A build that was being cancelled but had already pushed has succeeded too: saying
    /// otherwise would hide an image that is there.
    pub fn succeed(self, digest: Option<Digest>, now: DateTime<Utc>) -> Result<Self, IllegalTransition> {
        match self {
            Self::Running { started_at, .. }
            | Self::Cancelling {
                started_at: Some(started_at),
                ..
            } => Ok(Self::Succeeded {
                started_at,
                finished_at: now,
                digest,
            }),
            other => Err(other.refuse("succeed")),
        }
    }

    /// The attempt failed. Infrastructure failures go back to the queue while the policy allows, and so does a lack of
    /// memory that can be helped; whatever happens to an attempt that was being cancelled, the build ends as cancelled.
    pub fn fail(self, failure: Failure, policy: RetryPolicy, now: DateTime<Utc>) -> Result<Self, IllegalTransition> {
        let (attempt, started_at) = match self {
            Self::Starting { attempt } => (attempt, None),
            Self::Running { attempt, started_at } => (attempt, Some(started_at)),
            cancelling @ Self::Cancelling { .. } => return cancelling.stop(now),
            other => return Err(other.refuse("fail")),
        };
        if failure.code.is_infrastructure() && attempt < policy.max_attempts {
            return Ok(Self::Queued {
                attempts: attempt,
                available_at: now + policy.backoff * 2_i32.pow(attempt.saturating_sub(1).min(6)),
            });
        }
        // Nothing has to recover first.
        if failure.code == FailureCode::OutOfMemory && policy.more_memory {
            return Ok(Self::Queued {
                attempts: attempt,
                available_at: now,
            });
        }
        Ok(Self::Failed {
            started_at,
            finished_at: now,
            failure,
        })
    }

    /// The attempt that was told to stop has stopped.
    pub fn stop(self, now: DateTime<Utc>) -> Result<Self, IllegalTransition> {
        match self {
            Self::Cancelling { started_at, .. } => Ok(Self::Cancelled {
                started_at,
                finished_at: now,
            }),
            other => Err(other.refuse("stop")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const POLICY: RetryPolicy = RetryPolicy {
        max_attempts: 3,
        backoff: TimeDelta::seconds(5),
        more_memory: false,
    };

    #[derive(Clone, Copy, Debug)]
    enum Op {
        Claim,
        Release,
        Run,
        Cancel,
        Succeed,
        FailUser,
        FailInfrastructure,
        Stop,
    }

    fn apply(state: BuildState, op: Op, now: DateTime<Utc>) -> Result<BuildState, IllegalTransition> {
        match op {
            Op::Claim => state.claim(),
            Op::Release => state.release(now),
            Op::Run => state.run(now),
            Op::Cancel => state.cancel(now),
            Op::Succeed => state.succeed(None, now),
            Op::FailUser => state.fail(Failure::new(FailureCode::BuildFailed, "x"), POLICY, now),
            Op::FailInfrastructure => state.fail(Failure::new(FailureCode::NodeLost, "x"), POLICY, now),
            Op::Stop => state.stop(now),
        }
    }

    fn attempts(state: &BuildState) -> Option<u32> {
        match state {
            BuildState::Queued { attempts, .. } => Some(*attempts),
            BuildState::Starting { attempt }
            | BuildState::Running { attempt, .. }
            | BuildState::Cancelling { attempt, .. } => Some(*attempt),
            _ => None,
        }
    }

    proptest! {
        #[test]
        fn whatever_happens_a_build_stays_legal(ops in proptest::collection::vec(
            prop_oneof![
                Just(Op::Claim), Just(Op::Release), Just(Op::Run), Just(Op::Cancel),
                Just(Op::Succeed), Just(Op::FailUser), Just(Op::FailInfrastructure), Just(Op::Stop),
            ],
            0..64,
        )) {
            let now = DateTime::<Utc>::UNIX_EPOCH;
            let mut state = BuildState::Queued { attempts: 0, available_at: now };
            for op in ops {
                let before = state.clone();
                match apply(state, op, now) {
                    Ok(after) => {
                        prop_assert!(!before.name().is_terminal(), "{before:?} went on to {after:?}");
                        if let Some(attempts) = attempts(&after) {
                            prop_assert!(attempts <= POLICY.max_attempts);
                        }
                        if before.name() == StateName::Cancelling {
                            prop_assert!(matches!(
                                after.name(),
                                StateName::Cancelling | StateName::Cancelled | StateName::Succeeded
                            ));
                        }
                        state = after;
                    }
                    Err(error) => {
                        prop_assert_eq!(error.from, before.name());
                        state = before;
                    }
                }
            }
        }
    }

    #[test]
    fn infrastructure_failures_back_off_and_end() {
        let now = DateTime::<Utc>::UNIX_EPOCH;
        let lost = || Failure::new(FailureCode::NodeLost, "gone");
        let mut state = BuildState::Queued {
            attempts: 0,
            available_at: now,
        };
        for wait in [5, 10] {
            state = state.claim().and_then(|s| s.fail(lost(), POLICY, now)).expect("legal");
            let BuildState::Queued { available_at, .. } = state else {
                panic!("not queued again: {state:?}");
            };
            assert_eq!(available_at - now, TimeDelta::seconds(wait));
        }
        let state = state.claim().and_then(|s| s.fail(lost(), POLICY, now)).expect("legal");
        assert_eq!(state.name(), StateName::Failed);
    }

    #[test]
    fn a_lack_of_memory_is_tried_again_at_once_where_there_is_more() {
        let now = DateTime::<Utc>::UNIX_EPOCH;
        let fail = |more_memory| {
            let policy = RetryPolicy { more_memory, ..POLICY };
            let failure = Failure::new(FailureCode::OutOfMemory, "too much");
            BuildState::Starting { attempt: 7 }
                .fail(failure, policy, now)
                .expect("legal")
        };
        let again = BuildState::Queued {
            attempts: 7,
            available_at: now,
        };
        assert_eq!(fail(true), again, "however many attempts there were");
        assert_eq!(fail(false).name(), StateName::Failed);
    }

    #[test]
    fn a_pushed_image_wins_over_a_late_cancel() {
        let now = DateTime::<Utc>::UNIX_EPOCH;
        let state = BuildState::Starting { attempt: 1 }
            .run(now)
            .and_then(|s| s.cancel(now))
            .and_then(|s| s.succeed(None, now))
            .expect("legal");
        assert_eq!(state.name(), StateName::Succeeded);
    }
}
