//! Takes builds from the queue, and from workers that died, as long as there is room.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{Context, worker::Session};
use crate::{
    domain::clock::Clock as _,
    runner::{Readiness, Runner},
    store::{self, queue::ClaimLimits},
};

/// How often the queue is looked at without a hint (builds become available by time too, and hints get lost), and how
/// often it is looked for builds that nobody owns.
const POLL: Duration = Duration::from_secs(1);
/// How many builds are taken over from other workers at once.
const TAKE_OVER: u32 = 256;

/// Claims until told to stop.
pub(super) async fn run<R: Runner>(context: &Arc<Context<R>>, session: &Session, stop: &CancellationToken) {
    let mut readiness = context.runner.readiness();
    let freed: &Notify = session.freed();
    let mut next_upkeep = Instant::now();
    while !stop.is_cancelled() {
        // A worker that can do nothing for a build leaves it to others.
        let ready = *readiness.borrow_and_update() == Readiness::Ready;
        // By time and not by news: a burst of requests is not to pay for it.
        if ready && Instant::now() >= next_upkeep {
            report(take_over(context, session).await);
            next_upkeep = Instant::now() + POLL;
        }
        if ready && report(claim(context, session).await) == Some(More::Perhaps) {
            continue;
        }
        let poll = POLL.mul_f64(rand::random_range(0.8..1.2));
        tokio::select! {
            () = context.signals.wait_queued() => {}
            () = freed.notified() => {}
            Ok(()) = readiness.changed() => {}
            () = tokio::time::sleep(poll) => {}
            () = stop.cancelled() => {}
        }
    }
}

/// Whether the queue may hold more that could be taken at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum More {
    Perhaps,
    No,
}

fn report<T>(outcome: Result<T, store::Error>) -> Option<T> {
    outcome
        .inspect_err(|error| {
            tracing::warn!(error = %error, cause = ?std::error::Error::source(error), "the queue can't be read");
        })
        .ok()
}

/// Frees the builds of workers that died, and takes over what nobody owns.
async fn take_over<R: Runner>(context: &Arc<Context<R>>, session: &Session) -> Result<(), store::Error> {
    store::leases::expire(&context.pool).await?;
    for orphan in store::queue::take_over(&context.pool, session.replica(), TAKE_OVER).await? {
        context.metrics.taken_over.inc();
        tracing::info!(build.id = %orphan.lease.attempt.build, attempt = orphan.lease.attempt.number, "took over a build");
        session.drive(context, orphan, true);
    }
    Ok(())
}

/// Takes one batch from the queue.
async fn claim<R: Runner>(context: &Arc<Context<R>>, session: &Session) -> Result<More, store::Error> {
    let config = &context.config;
    let limits = ClaimLimits {
        batch: config.claim_batch,
        live: config.max_live_builds,
        project: context.project_limits,
    };
    let now = context.clock.now();
    let claimed = store::queue::claim(&context.pool, session.replica(), limits, R::NAME_PREFIX, now).await?;
    // Of a full batch some may have been passed over because they were being cancelled.
    let full = claimed.len() > config.claim_batch as usize / 2;
    for build in claimed {
        context.metrics.claimed.inc();
        if let Some(since) = build.available_since {
            context.metrics.stage("queue", now - since);
        }
        context.signals.status(build.lease.attempt.build, build.head);
        session.drive(context, build, false);
    }
    Ok(if full { More::Perhaps } else { More::No })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Config, config::seconds};

    #[test]
    fn a_dead_workers_builds_are_taken_over_within_twenty_seconds() {
        // It may die right after a renewal. Whoever looks next has slept for as long as the jitter allows, and may look
        // once more without looking for orphans.
        let looks = POLL.mul_f64(1.2) * 2;
        assert!(seconds(Config::default().lease_seconds) + looks < Duration::from_secs(20));
    }
}
