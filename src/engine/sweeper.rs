//! Removes what is left of attempts that are over: their worker died between the end and the clearing up. And deletes
//! uploads that nobody has built from for their time, and what nodes did long ago.

use tokio_util::sync::CancellationToken;

use super::{Context, config::seconds};
use crate::{
    runner::{Readiness, Runner},
    store,
};

/// Sweeps now and then until told to stop.
pub(super) async fn run<R: Runner>(context: &Context<R>, stop: &CancellationToken) {
    let interval = seconds(context.config.sweep_interval_seconds);
    loop {
        let pause = interval.mul_f64(rand::random_range(0.8..1.2));
        if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
        let _ = stop.run_until_cancelled(sweep_uploads(context)).await;
        let _ = stop.run_until_cancelled(forget_nodes(context)).await;
        if *context.runner.readiness().borrow() == Readiness::Ready {
            let _ = stop.run_until_cancelled(sweep(context)).await;
        }
    }
}

/// Deletes uploads whose time is over, a batch a time, so that none holds the others up.
async fn sweep_uploads<R: Runner>(context: &Context<R>) {
    loop {
        match store::uploads::sweep(&context.pool).await {
            Ok(0) => return,
            Ok(count) => {
                context.metrics.uploads_expired.inc_by(count);
                tracing::info!(count, "deleted uploads whose time was over");
            }
            Err(error) => {
                tracing::warn!(error = %error, "uploads whose time is over can't be deleted");
                return;
            }
        }
    }
}

/// Forgets what nodes did long ago.
async fn forget_nodes<R: Runner>(context: &Context<R>) {
    if let Err(error) = store::nodes::sweep(&context.pool, context.config.avoid()).await {
        tracing::warn!(error = %error, "old failures of nodes can't be deleted");
    }
}

async fn sweep<R: Runner>(context: &Context<R>) {
    let attempts = match context.runner.list().await {
        Ok(attempts) => attempts,
        Err(error) => {
            context.metrics.sweep_failures.inc();
            tracing::warn!(error = ?error, "what is left of attempts can't be listed");
            return;
        }
    };
    if attempts.is_empty() {
        return;
    }
    let dead = match store::leases::not_live(&context.pool, &attempts).await {
        Ok(dead) => dead,
        Err(error) => {
            context.metrics.sweep_failures.inc();
            tracing::warn!(error = %error, "the sweep can't ask which attempts are over");
            return;
        }
    };
    for attempt in dead {
        match context.runner.remove(attempt).await {
            Ok(()) => {
                context.metrics.swept.inc();
                tracing::info!(build.id = %attempt.build, attempt = attempt.number, "removed what was left of an attempt");
            }
            Err(error) => {
                context.metrics.sweep_failures.inc();
                tracing::warn!(build.id = %attempt.build, error = ?error, "remains could not be removed");
            }
        }
    }
}
