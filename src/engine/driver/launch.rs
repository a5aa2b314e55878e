//! Bringing an attempt into the world: again and again until it is known to exist, or known not to.

use std::time::Duration;

use tokio::sync::watch;

use super::{Driver, End, Stopped, patience};
use crate::{
    domain::{
        failure::{Failure, FailureCode},
        state::BuildState,
    },
    engine::config::seconds,
    runner::{LaunchError, Observation, Runner},
};

/// What a launch led to.
pub(super) enum Launch {
    /// The pod is there.
    Runs,
    /// The pod was there once and is no longer; another stands in its place.
    Vanished,
    /// The attempt is over, or its build is back in the queue.
    Over,
}

impl<R: Runner> Driver<'_, R> {
    /// Creates the pod, or finds it.
    pub(super) async fn launch(&mut self) -> Result<Launch, Stopped> {
        let given = match self.obtain_credentials().await? {
            Ok(()) => self.obtain_access().await?,
            failed => failed,
        };
        if let Err(failure) = given {
            if self.adopted {
                self.remove().await;
            }
            self.fail(failure).await?;
            return Ok(Launch::Over);
        }
        let begun = tokio::time::Instant::now();
        let mut backoff = Duration::from_millis(200);
        loop {
            let launch = self.context.runner.launch(&self.claimed.assignment);
            let outcome = self
                .controls
                .stop
                .run_until_cancelled(launch)
                .await
                .ok_or(Stopped::GiveUp)?;
            let error = match outcome {
                Ok(launched) if launched.adopted => {
                    self.context.metrics.adopted.inc();
                    return Ok(Launch::Runs);
                }
                // It ran before and is there no longer: what was created now is not that attempt.
                Ok(_) if self.has_run() => return Ok(Launch::Vanished),
                Ok(_) => {
                    self.context
                        .metrics
                        .launch_seconds
                        .observe(begun.elapsed().as_secs_f64());
                    return Ok(Launch::Runs);
                }
                Err(LaunchError::Rejected(failure)) => {
                    self.fail(failure).await?;
                    return Ok(Launch::Over);
                }
                // Where a pod may exist, the claim can't be undone.
                Err(LaunchError::NotReady(reason)) if !self.adopted => {
                    tracing::warn!(build.id = %self.lease.attempt.build, reason, "pods can't be created; the build stays queued");
                    self.release().await?;
                    return Ok(Launch::Over);
                }
                Err(error) => error,
            };
            // From here on, a pod may exist whatever later tries answer.
            self.adopted = true;
            tracing::warn!(
                build.id = %self.lease.attempt.build, attempt = self.lease.attempt.number,
                error = %error, cause = ?std::error::Error::source(&error),
                "launching the attempt failed; trying again"
            );
            if self.now() - self.waiting_since > patience::limit(self.context.config.pending_timeout_seconds) {
                self.remove().await;
                self.fail(Failure::new(
                    FailureCode::Internal,
                    "The cluster did not take the build's pod in time. Nothing is wrong with the request; the service's log has the cause.",
                ))
                .await?;
                return Ok(Launch::Over);
            }
            self.pause(backoff).await?;
            backoff = (backoff * 2).min(Duration::from_secs(5));
        }
    }

    /// Takes back a pod that waits in vain for a node on which the build hasn't failed yet, so that it can be launched
    /// once more for any node. Gives the attempt's end if it ran after all.
    pub(super) async fn give_up_other_nodes(
        &mut self,
        observed: &mut watch::Receiver<Observation>,
    ) -> Result<Option<End>, Stopped> {
        tracing::info!(build.id = %self.lease.attempt.build, "no other node takes the attempt; any node may");
        self.remove().await;
        let limit = seconds(self.context.config.stop_timeout_seconds);
        let gone = observed.wait_for(|observation| matches!(observation, Observation::Gone { .. }));
        let gone = tokio::time::timeout(limit, gone);
        if self.controls.stop.run_until_cancelled(gone).await.is_none() {
            return Err(Stopped::GiveUp);
        }
        if !observed.borrow().steps().is_empty() {
            return Ok(Some(End::vanished()));
        }
        let avoid = &mut self.claimed.assignment.avoid;
        *avoid = std::mem::take(avoid).relaxed();
        self.waiting_since = self.now();
        Ok(None)
    }

    /// Whether an earlier driver has seen the attempt's pod run.
    pub(super) fn has_run(&self) -> bool {
        match self.state {
            BuildState::Running { .. }
            | BuildState::Cancelling {
                started_at: Some(_), ..
            } => true,
            _ => !self.claimed.standing.cursor.0.is_empty(),
        }
    }
}
