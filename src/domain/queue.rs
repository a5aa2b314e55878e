//! The order of the queue, as a pure function of what waits. The store carries the same order out by an index; tests hold
//! the two against each other, and prove the bounds on this one.
//!
//! Within a project builds go by their **rank**: when they were accepted, less what their priority is worth. A rank never
//! changes, and still everybody grows older: a build is passed only by builds of a higher priority that were accepted less
//! than (difference of the priorities × ageing) after it. Between projects, the next place goes to the one that has the
//! fewest live builds for its weight.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{project::ProjectName, spec::Invalid};

/// The order of the queue, and what a project may have that has no limits of its own: `[queue]` in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QueueConfig {
    /// How many seconds of waiting one step of priority is worth.
    pub priority_ageing_seconds: u32,
    /// Limits of projects that have none of their own.
    pub project_limits: ProjectLimits,
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self {
            priority_ageing_seconds: 60,
            project_limits: ProjectLimits::default(),
        }
    }
}

impl QueueConfig {
    /// Checks that the numbers can be used.
    pub fn check(&self) -> Result<(), Invalid> {
        let ProjectLimits {
            concurrency,
            starts_per_minute,
            queued,
        } = self.project_limits;
        let max = [concurrency, starts_per_minute, queued].into_iter().flatten().max();
        if self.priority_ageing_seconds > MAX_AGEING_SECONDS {
            Err(Invalid::new(format!(
                "`priority_ageing_seconds` is more than {MAX_AGEING_SECONDS}"
            )))
        } else if max > Some(ProjectLimits::MAX) {
            Err(Invalid::new(format!(
                "`project_limits`: at most {}",
                ProjectLimits::MAX
            )))
        } else if starts_per_minute == Some(0) {
            Err(Invalid::new("`project_limits.starts_per_minute` must be at least 1"))
        } else {
            Ok(())
        }
    }
}

/// A day: with the greatest difference of priorities, a rank is still a date.
const MAX_AGEING_SECONDS: u32 = 24 * 3600;

/// What a project may have; `None` where nothing limits it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ProjectLimits {
    /// Builds that are live (starting, running, cancelling) at the same time.
    pub concurrency: Option<u32>,
    /// Attempts that begin within any minute.
    pub starts_per_minute: Option<u32>,
    /// Builds that wait; more are refused.
    pub queued: Option<u32>,
}

impl ProjectLimits {
    /// No limits.
    pub const NONE: Self = Self {
        concurrency: None,
        starts_per_minute: None,
        queued: None,
    };
    /// The largest limit that can be set.
    pub const MAX: u32 = 1_000_000;
}

/// A project's share while several wait, in proportion to the weights of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct Weight(u16);

impl Weight {
    /// The largest weight.
    pub const MAX: u16 = 1000;

    /// A weight from 1 to [`Self::MAX`].
    pub fn new(weight: u16) -> Result<Self, Invalid> {
        if (1..=Self::MAX).contains(&weight) {
            Ok(Self(weight))
        } else {
            Err(Invalid::new("expected a weight from 1 to 1000"))
        }
    }

    /// The number.
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self(100)
    }
}

/// Where a build stands within its project: the smaller, the sooner.
pub fn rank(accepted_at: DateTime<Utc>, priority: i16, ageing: TimeDelta) -> DateTime<Utc> {
    accepted_at - ageing * i32::from(priority)
}

/// A build that waits and may be taken. The order among equal ranks is that of `B`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting<B> {
    /// Who owns it.
    pub project: ProjectName,
    /// Where it stands there.
    pub rank: DateTime<Utc>,
    /// Which it is.
    pub build: B,
}

/// What a project has, and what it may still get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Its weight.
    pub weight: Weight,
    /// Its live builds.
    pub live: u32,
    /// How many more its own limits let start now.
    pub room: Option<u32>,
}

/// Which builds start now, and in which order, where there is room for so many. A project that isn't named has nothing
/// live and no limits.
pub fn starts<B: Ord + Clone>(
    waiting: &[Waiting<B>],
    shares: &BTreeMap<ProjectName, Share>,
    room: usize,
) -> Vec<Waiting<B>> {
    let mut queues: BTreeMap<&ProjectName, (Share, Vec<&Waiting<B>>)> = BTreeMap::new();
    for build in waiting {
        let share = shares.get(&build.project).copied().unwrap_or_default();
        let (_, queue) = queues.entry(&build.project).or_insert((share, Vec::new()));
        queue.push(build);
    }
    for (_, queue) in queues.values_mut() {
        // The next one is the last.
        queue.sort_by(|one, other| (other.rank, &other.build).cmp(&(one.rank, &one.build)));
    }
    let mut started = Vec::new();
    while started.len() < room {
        let next = queues
            .values_mut()
            .filter(|(share, _)| share.room != Some(0))
            .filter_map(|(share, queue)| {
                let head = *queue.last()?;
                Some((share, queue, head))
            })
            .min_by(|(one, _, first), (other, _, second)| {
                // live / weight, without a division.
                let turn = |of: &Share, against: &Share| u64::from(of.live) * u64::from(against.weight.get());
                turn(one, other)
                    .cmp(&turn(other, one))
                    .then_with(|| (first.rank, &first.build).cmp(&(second.rank, &second.build)))
            });
        let Some((share, queue, head)) = next else { break };
        queue.pop();
        share.live += 1;
        share.room = share.room.map(|room| room - 1);
        started.push(head.clone());
    }
    started
}

#[cfg(test)]
mod tests;
