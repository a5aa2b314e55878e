//! Storing what the driver decided: every change of state is written until it is stored, or can't be any more.

use std::time::Duration;

use super::{Driver, Stopped, Stored, patience};
use crate::{
    domain::{
        failure::{Failure, FailureCode},
        spec::Resources,
        state::{BuildState, IllegalTransition},
    },
    engine::metrics::EndLabels,
    runner::{Observation, Runner},
    store::{self, transitions},
};

impl<R: Runner> Driver<'_, R> {
    /// The attempt failed: the build fails with it, or goes back to the queue.
    pub(super) async fn fail(&mut self, failure: Failure) -> Result<(), Stopped> {
        let now = self.now();
        let config = &self.context.config;
        let given = self.claimed.assignment.spec.resources;
        let policy = config.retry(self.claimed.asked_memory, given.memory);
        let mut failure = failure;
        if failure.code == FailureCode::OutOfMemory && policy.more_memory {
            let memory = config.more_memory(given.memory);
            failure = Failure::new(
                failure.code,
                format!("{} The next attempt gets {memory}.", failure.message),
            );
            self.facts.next_resources = Some(Resources { memory, ..given });
        }
        self.facts.failure = Some(failure.clone());
        self.apply(|state| state.fail(failure.clone(), policy, now)).await
    }

    /// Stores a transition with what is known of the attempt. Goes on until it is stored or can't be any more.
    pub(super) async fn apply(
        &mut self,
        transition: impl Fn(BuildState) -> Result<BuildState, IllegalTransition>,
    ) -> Result<(), Stopped> {
        let mut backoff = Duration::from_millis(50);
        loop {
            let from = self.state.name();
            let to = transition(self.state.clone()).map_err(|illegal| {
                tracing::error!(build.id = %self.lease.attempt.build, error = %illegal, "the attempt's end does not fit its build");
                Stopped::GiveUp
            })?;
            if to.name() == from {
                return Ok(());
            }
            let context = self.context;
            match transitions::apply(&context.pool, &self.lease, from, &to, &self.facts, self.now()).await {
                Ok(head) => {
                    self.entered(to, head);
                    return Ok(());
                }
                Err(store::Error::Conflict) => self.reload().await?,
                Err(store::Error::Unavailable(error)) => {
                    tracing::warn!(build.id = %self.lease.attempt.build, error = %error, "a change of state waits for the database");
                    self.pause(backoff).await?;
                    backoff = (backoff * 2).min(Duration::from_secs(2));
                }
                Err(error) => {
                    tracing::error!(build.id = %self.lease.attempt.build, error = ?error, "a change of state was refused by the database");
                    return Err(Stopped::GiveUp);
                }
            }
        }
    }

    /// Stores what keeps the attempt from running, when that has changed. Attempts that just run store nothing.
    pub(super) async fn record_pending(&mut self, observation: &Observation) {
        let words = patience::pending(observation);
        if matches!(&self.pending, Stored::Known(stored) if *stored == words) {
            return;
        }
        match store::waiting::set_pending(&self.context.pool, &self.lease, words.as_ref()).await {
            Ok(()) => self.pending = Stored::Known(words),
            // Only words for people; the next observation brings them anew.
            Err(error) => tracing::debug!(error = %error, "what the attempt waits for could not be stored"),
        }
    }

    fn entered(&mut self, to: BuildState, head: i64) {
        let build = self.lease.attempt.build;
        let code = match &to {
            BuildState::Failed { .. } | BuildState::Queued { .. } => self.facts.failure.as_ref(),
            _ => None,
        }
        .map(|failure| failure.code.as_str());
        let labels = EndLabels {
            state: to.name().as_str(),
            code: code.unwrap_or("none"),
        };
        tracing::info!(
            build.id = %build, attempt = self.lease.attempt.number, state = labels.state, failure.code = code,
            "the build is {}", to.name()
        );
        if to.name().is_terminal() {
            self.context.metrics.builds_finished.get_or_create(&labels).inc();
        }
        if to.name().is_terminal() || matches!(to, BuildState::Queued { .. }) {
            self.context.metrics.attempts_finished.get_or_create(&labels).inc();
        }
        let stage = match (&self.state, &to) {
            (BuildState::Starting { .. }, BuildState::Running { .. }) => Some("start"),
            (BuildState::Running { .. }, _) if !matches!(to, BuildState::Cancelling { .. }) => Some("run"),
            _ => None,
        };
        if let Some(stage) = stage {
            let now = self.now();
            let since = std::mem::replace(&mut self.stage_since, now);
            self.context.metrics.stage(stage, now - since);
        }
        self.context.signals.status(build, head);
        self.state = to;
    }

    /// Reads the build's state again, after somebody else changed it.
    pub(super) async fn reload(&mut self) -> Result<(), Stopped> {
        let mut backoff = Duration::from_millis(50);
        loop {
            match store::leases::held(&self.context.pool, &self.lease).await {
                Ok(Some(state)) => {
                    self.state = state;
                    return Ok(());
                }
                Ok(None) => return Err(Stopped::LeaseLost),
                Err(error) => {
                    tracing::warn!(build.id = %self.lease.attempt.build, error = ?error, "the build's state can't be read");
                }
            }
            self.pause(backoff).await?;
            backoff = (backoff * 2).min(Duration::from_secs(2));
        }
    }

    /// Puts the build back into the queue: no pod was created.
    pub(super) async fn release(&mut self) -> Result<(), Stopped> {
        let now = self.now();
        loop {
            match transitions::release(&self.context.pool, &self.lease, now, now).await {
                Ok(head) => {
                    self.context.signals.status(self.lease.attempt.build, head);
                    return Ok(());
                }
                Err(store::Error::Conflict) => {
                    self.reload().await?;
                    if matches!(self.state, BuildState::Cancelling { .. }) {
                        return self.apply(|state| state.stop(now)).await;
                    }
                }
                Err(store::Error::Unavailable(_)) => {}
                Err(error) => {
                    tracing::error!(build.id = %self.lease.attempt.build, error = ?error, "the build could not be put back into the queue");
                    return Err(Stopped::GiveUp);
                }
            }
            self.pause(Duration::from_millis(200)).await?;
        }
    }
}
