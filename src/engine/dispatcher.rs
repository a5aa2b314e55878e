//! Takes builds from the queue, and from workers that died, as long as there is room.

use std::{sync::Arc, time::Duration};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{Context, worker::Session};
use crate::{
    runner::{Readiness, Runner},
    store::{self, queue::ClaimLimits},
};

/// How often the queue is looked at without a hint: builds become available by time too, and hints get lost.
const POLL: Duration = Duration::from_secs(1);
/// How many builds are taken over from other workers at once.
const TAKE_OVER: u32 = 256;

/// Claims until told to stop.
pub(super) async fn run<R: Runner>(context: &Arc<Context<R>>, session: &Session, stop: &CancellationToken) {
    let mut readiness = context.runner.readiness();
    let freed: &Notify = session.freed();
    loop {
        let more = match run_once(context, session).await {
            Ok(more) => more,
            Err(error) => {
                tracing::warn!(error = %error, cause = ?std::error::Error::source(&error), "the queue can't be read");
                false
            }
        };
        if stop.is_cancelled() {
            return;
        }
        if more {
            continue;
        }
        let poll = POLL.mul_f64(rand::random_range(0.8..1.2));
        tokio::select! {
            () = context.signals.wait_queued() => {}
            () = freed.notified() => {}
            Ok(()) = readiness.changed() => {}
            () = tokio::time::sleep(poll) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// One look at the queue. True when there may be more to take at once.
pub(super) async fn run_once<R: Runner>(context: &Arc<Context<R>>, session: &Session) -> Result<bool, store::Error> {
    let config = &context.config;
    store::leases::expire(&context.pool).await?;
    let orphans = store::queue::take_over(&context.pool, session.replica(), TAKE_OVER).await?;
    for orphan in orphans {
        context.metrics.taken_over.inc();
        tracing::info!(build.id = %orphan.lease.attempt.build, attempt = orphan.lease.attempt.number, "took over a build");
        session.drive(context, orphan, true);
    }
    if *context.runner.readiness().borrow() != Readiness::Ready {
        return Ok(false);
    }
    let limits = ClaimLimits {
        batch: config.claim_batch,
        live: config.max_live_builds,
    };
    let claimed = store::queue::claim(
        &context.pool,
        session.replica(),
        limits,
        R::NAME_PREFIX,
        context.clock.now(),
    )
    .await?;
    let more = u32::try_from(claimed.len()) == Ok(config.claim_batch);
    for build in claimed {
        context.metrics.claimed.inc();
        context.signals.head(build.lease.attempt.build, build.head);
        session.drive(context, build, false);
    }
    Ok(more)
}
