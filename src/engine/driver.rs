//! Carries one attempt from its claim to its end. The steps can be repeated: a driver that dies anywhere is followed
//! by another, at this worker or at any, which begins again with the launch and finds what is there.

mod access;
mod credentials;
mod launch;
mod patience;
mod record;

use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use self::{
    launch::Launch,
    patience::{Overdue, Situation, Stopping},
};
use super::{
    Context,
    config::seconds,
    log_pump::{LogOutcome, LogPump},
    metrics::CodeLabels,
};
use crate::{
    domain::{
        build::Pending,
        clock::Clock as _,
        event::StepName,
        failure::{Failure, FailureCode},
        spec::{CommitId, Digest},
        state::BuildState,
    },
    journal::AppendError,
    runner::{Observation, Outcome, Runner, Shipping, StepObservation},
    store::{Lease, queue::Claimed, transitions::AttemptFacts},
};

/// How long the log of an attempt that was removed by force may still take to arrive.
const REMOVED_LOG_PATIENCE: Duration = Duration::from_secs(2);

/// Why a driver stopped before its attempt's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stopped {
    /// Another worker has the build, or it is over.
    LeaseLost,
    /// The worker is draining, or something unexpected happened: the build is to be given up to any worker.
    GiveUp,
}

/// What a driver is told from outside.
#[derive(Clone)]
pub(super) struct Controls {
    /// The build is to be cancelled.
    pub(super) cancel: CancellationToken,
    /// The driver is to stop at once; whoever owns the build next goes on.
    pub(super) stop: CancellationToken,
}

/// What is stored of what keeps the attempt from running.
enum Stored {
    /// Another worker had the attempt before.
    Unknown,
    Known(Option<Pending>),
}

/// One attempt in hand.
pub(super) struct Driver<'a, R: Runner> {
    context: &'a std::sync::Arc<Context<R>>,
    controls: Controls,
    lease: Lease,
    claimed: Claimed,
    adopted: bool,
    state: BuildState,
    facts: AttemptFacts,
    /// Set once the attempt was told to stop: what its end then means.
    stopping: Option<Stopping>,
    /// Since when the attempt is at the stage where it is, for metrics.
    stage_since: DateTime<Utc>,
    /// Since when this driver has the attempt in hand.
    waiting_since: DateTime<Utc>,
    /// Since when an image of the pod can't be pulled.
    pulling_since: Option<DateTime<Utc>>,
    /// What keeps the attempt from running, as it is stored.
    pending: Stored,
}

impl<'a, R: Runner> Driver<'a, R> {
    /// A driver for a claimed build; `adopted` when another worker had it before, so that a pod may exist.
    pub(super) fn new(
        context: &'a std::sync::Arc<Context<R>>,
        claimed: Claimed,
        adopted: bool,
        controls: Controls,
    ) -> Self {
        Self {
            context,
            controls,
            lease: claimed.lease,
            stage_since: match &claimed.state {
                BuildState::Running { started_at, .. } => *started_at,
                _ => claimed.attempt_created_at,
            },
            state: claimed.state.clone(),
            claimed,
            adopted,
            facts: AttemptFacts::default(),
            stopping: None,
            waiting_since: context.clock.now(),
            pulling_since: None,
            pending: if adopted { Stored::Unknown } else { Stored::Known(None) },
        }
    }

    /// Runs to the attempt's end.
    pub(super) async fn run(mut self) -> Result<(), Stopped> {
        if matches!(self.state, BuildState::Cancelling { .. }) {
            self.controls.cancel.cancel();
        }
        let end = loop {
            // Subscribed before the launch, so that nothing of it is missed.
            let mut observed = self.context.runner.observe(self.lease.attempt);
            match self.launch().await? {
                Launch::Over => return Ok(()),
                Launch::Vanished => {
                    self.remove().await;
                    // Its log ends where it is, and says so.
                    let gone = watch::Sender::new(Observation::Gone { steps: Vec::new() });
                    let hurry = CancellationToken::new();
                    let mut pump = self.start_pump(gone.subscribe(), hurry.clone());
                    self.drain(&mut pump, &hurry, REMOVED_LOG_PATIENCE).await?;
                    break End::vanished();
                }
                Launch::Runs => {
                    let hurry = CancellationToken::new();
                    let mut pump = self.start_pump(observed.clone(), hurry.clone());
                    let Followed::Ended(end) = self.follow(&mut observed, &mut pump).await? else {
                        drop(pump);
                        match self.give_up_other_nodes(&mut observed).await? {
                            Some(end) => break end,
                            None => continue,
                        }
                    };
                    let patience = if end.forced {
                        // Nothing may run on once the build is declared over, or is tried again.
                        self.remove().await;
                        REMOVED_LOG_PATIENCE
                    } else {
                        self.log_patience()
                    };
                    self.drain(&mut pump, &hurry, patience).await?;
                    break end.with_log(std::mem::take(&mut pump.outcome));
                }
            }
        };
        self.conclude(end).await
    }

    fn start_pump(&self, observed: watch::Receiver<Observation>, hurry: CancellationToken) -> Pump {
        let context = std::sync::Arc::clone(self.context);
        let lease = self.lease;
        let project = self.claimed.assignment.project.clone();
        let log = self.context.logs.attempt(lease, project, self.claimed.standing.clone());
        let copy = async move {
            LogPump {
                context: &context,
                lease,
                log,
                observed,
                hurry,
            }
            .run()
            .await
        };
        Pump {
            task: Some(tokio::spawn(copy.in_current_span())),
            outcome: LogOutcome::default(),
        }
    }

    /// Watches the attempt until it has ended or is given up on.
    async fn follow(
        &mut self,
        observed: &mut watch::Receiver<Observation>,
        pump: &mut Pump,
    ) -> Result<Followed, Stopped> {
        loop {
            let observation = observed.borrow_and_update().clone();
            self.note(&observation);
            self.record_pending(&observation).await;
            match &observation {
                Observation::Unseen | Observation::Pending { .. } => {}
                Observation::Running { .. } => self.enter_running(&observation).await?,
                Observation::Finished { outcome, steps, .. } => {
                    self.enter_running(&observation).await?;
                    return Ok(Followed::Ended(End {
                        outcome: outcome.clone(),
                        digest: digest(steps),
                        forced: false,
                        unexplained: steps.last().is_some_and(is_unexplained),
                    }));
                }
                Observation::Gone { .. } => {
                    return Ok(Followed::Ended(End::vanished()));
                }
            }
            let (deadline, overdue) = self.deadline(&observation);
            let wait = (deadline - self.now()).to_std().unwrap_or_default();
            tokio::select! {
                changed = observed.changed() => if changed.is_err() {
                    return Err(Stopped::GiveUp);
                },
                () = self.controls.stop.cancelled() => return Err(Stopped::GiveUp),
                () = self.controls.cancel.cancelled(), if self.stopping.is_none() => self.cancel().await?,
                ended = pump.ended(), if !pump.is_done() => {
                    ended?;
                    // Every step is in the journal; only the attempt's end is still to be observed.
                    self.settle(observed).await?;
                }
                () = tokio::time::sleep(wait) => match overdue {
                    Overdue::Stop(failure) => self.stop(Some(failure)).await?,
                    Overdue::Remove(outcome) => {
                        return Ok(Followed::Ended(End { outcome, digest: None, forced: true, unexplained: false }));
                    }
                    Overdue::AnyNode => return Ok(Followed::NoOtherNode),
                },
            }
        }
    }

    /// Waits for the end of an attempt whose steps have all ended.
    async fn settle(&mut self, observed: &mut watch::Receiver<Observation>) -> Result<(), Stopped> {
        let limit = seconds(self.context.config.stop_timeout_seconds);
        let settled = {
            let over = observed
                .wait_for(|observation| matches!(observation, Observation::Finished { .. } | Observation::Gone { .. }));
            let within = tokio::time::timeout(limit, over);
            matches!(self.controls.stop.run_until_cancelled(within).await, Some(Ok(Ok(_))))
        };
        if !settled {
            return Err(Stopped::GiveUp);
        }
        observed.mark_changed();
        Ok(())
    }

    /// Remembers what is worth storing with the next change of state.
    fn note(&mut self, observation: &Observation) {
        if let Observation::Pending { node, .. }
        | Observation::Running { node, .. }
        | Observation::Finished { node, .. } = observation
            && node.is_some()
        {
            self.facts.node.clone_from(node);
        }
        self.pulling_since = patience::failing_pull(observation).and(self.pulling_since.or_else(|| Some(self.now())));
        if let Some(commit) = commit(observation.steps()) {
            self.facts.commit = Some(commit);
        }
    }

    async fn enter_running(&mut self, observation: &Observation) -> Result<(), Stopped> {
        if matches!(self.state, BuildState::Starting { .. }) && !observation.steps().is_empty() {
            let now = self.now();
            self.apply(|state| match state {
                // Cancelled in the meantime: what follows goes by that.
                cancelling @ BuildState::Cancelling { .. } => Ok(cancelling),
                state => state.run(now),
            })
            .await?;
        }
        Ok(())
    }

    /// The next moment at which patience ends, and what then.
    fn deadline(&self, observation: &Observation) -> (DateTime<Utc>, Overdue) {
        patience::deadline(
            &self.context.config,
            &Situation {
                state: &self.state,
                waiting_since: self.waiting_since,
                timeout_seconds: self.claimed.assignment.spec.timeout_seconds,
                stopping: self.stopping.as_ref(),
                pulling_since: self.pulling_since,
                choosy: !self.claimed.assignment.avoid.never.is_empty(),
                observation,
            },
        )
    }

    /// The caller wants the build to end.
    async fn cancel(&mut self) -> Result<(), Stopped> {
        if !matches!(self.state, BuildState::Cancelling { .. }) {
            self.reload().await?;
        }
        self.stop(None).await
    }

    /// Tells the attempt to stop; its end is then observed like any other.
    async fn stop(&mut self, failure: Option<Failure>) -> Result<(), Stopped> {
        self.stopping = Some(Stopping {
            failure,
            since: self.now(),
        });
        if let Err(error) = self.context.runner.stop(self.lease.attempt).await {
            // The deadline for stopping removes it by force.
            tracing::warn!(build.id = %self.lease.attempt.build, error = ?error, "the attempt could not be told to stop");
        }
        Ok(())
    }

    /// How long the rest of the log may take once the attempt has ended.
    fn log_patience(&self) -> Duration {
        let config = &self.context.config;
        let drain = seconds(config.log_drain_timeout_seconds);
        match self.context.runner.shipping(self.lease.attempt) {
            Shipping::Absent | Shipping::Over => drain,
            // What can't be pushed in that time is read.
            Shipping::Running => drain + seconds(config.log_seal_timeout_seconds),
        }
    }

    /// Waits until the log is in the journal, within limits.
    async fn drain(&self, pump: &mut Pump, hurry: &CancellationToken, patience: Duration) -> Result<(), Stopped> {
        if pump.is_done() {
            return Ok(());
        }
        // Whoever wants the build to end doesn't want to wait for a log that can't be delivered.
        let cancelled = async {
            self.controls.cancel.cancelled().await;
            tokio::time::sleep(seconds(self.context.config.log_drain_timeout_seconds)).await;
        };
        let hurry_up = async {
            tokio::select! {
                () = tokio::time::sleep(patience) => {}
                () = cancelled => {}
            }
            hurry.cancel();
            std::future::pending::<()>().await;
        };
        let begun = self.now();
        tokio::select! {
            ended = pump.ended() => {
                self.context.metrics.stage("log_drain", self.now() - begun);
                ended
            }
            () = hurry_up => Err(Stopped::GiveUp),
            () = self.controls.stop.cancelled() => Err(Stopped::GiveUp),
        }
    }

    /// Decides what the attempt's end means and stores it.
    async fn conclude(mut self, end: End) -> Result<(), Stopped> {
        let outcome = match end.outcome {
            Outcome::Succeeded => self.check_success(end.digest).await,
            Outcome::Failed(failure) => Err(failure),
            Outcome::FailedByNode(failure) => {
                self.facts.node_failed = Some(self.context.config.avoid());
                let code = failure.code.as_str();
                self.context
                    .metrics
                    .node_failures
                    .get_or_create(&CodeLabels { code })
                    .inc();
                Err(failure)
            }
        };
        match outcome {
            Ok(digest) => {
                let now = self.now();
                self.apply(|state| match state {
                    state @ BuildState::Cancelling { started_at: None, .. } => state.stop(now),
                    state => state.succeed(digest.clone(), now),
                })
                .await?;
            }
            Err(failure) => {
                let told_to_stop = self.stopping.take().and_then(|stopping| stopping.failure);
                if told_to_stop.is_some() {
                    self.facts.node_failed = None;
                }
                self.fail(told_to_stop.unwrap_or(failure)).await?;
            }
        }
        self.remove().await;
        Ok(())
    }

    /// Success needs more than an exit status: a pushed image has a digest, and the registry has the image.
    async fn check_success(&self, digest: Option<Digest>) -> Result<Option<Digest>, Failure> {
        let assignment = &self.claimed.assignment;
        if !assignment.spec.push {
            return Ok(digest);
        }
        let Some(digest) = digest else {
            return Err(Failure::new(
                FailureCode::Internal,
                "The builder ended well but did not say which image it pushed.",
            ));
        };
        let (images, credentials) = (&assignment.spec.images, &assignment.credentials);
        let begun = self.now();
        let verified = self.context.verifier.verify(images, &digest, credentials).await;
        self.context.metrics.stage("verify", self.now() - begun);
        verified?;
        Ok(Some(digest))
    }

    /// Removes the attempt's traces. What remains is left to the sweeper.
    async fn remove(&self) {
        if let Err(error) = self.context.runner.remove(self.lease.attempt).await {
            tracing::warn!(build.id = %self.lease.attempt.build, error = ?error, "the attempt's remains could not be removed; the sweeper will");
        }
    }

    async fn pause(&self, duration: Duration) -> Result<(), Stopped> {
        match tokio::time::timeout(duration, self.controls.stop.cancelled()).await {
            Ok(()) => Err(Stopped::GiveUp),
            Err(_) => Ok(()),
        }
    }

    fn now(&self) -> DateTime<Utc> {
        self.context.clock.now()
    }
}

/// The task that carries the attempt's log into the journal. It ends with its driver.
struct Pump {
    task: Option<JoinHandle<Result<LogOutcome, AppendError>>>,
    /// What it found, once it has ended.
    outcome: LogOutcome,
}

impl Pump {
    const fn is_done(&self) -> bool {
        self.task.is_none()
    }

    /// Waits for the task's end; never returns a second time.
    async fn ended(&mut self) -> Result<(), Stopped> {
        let Some(task) = &mut self.task else {
            return std::future::pending().await;
        };
        let ended = task.await;
        self.task = None;
        match ended {
            Ok(Ok(outcome)) => {
                self.outcome = outcome;
                Ok(())
            }
            Ok(Err(AppendError::Fenced)) => Err(Stopped::LeaseLost),
            Ok(Err(AppendError::Failed | AppendError::Moved(_))) | Err(_) => Err(Stopped::GiveUp),
        }
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// What following an attempt led to.
enum Followed {
    Ended(End),
    /// No node takes it but those that it is to stay away from.
    NoOtherNode,
}

/// How an attempt ended.
struct End {
    outcome: Outcome,
    digest: Option<Digest>,
    /// Patience ended before the attempt did.
    forced: bool,
    /// The last step left no report.
    unexplained: bool,
}

impl End {
    fn vanished() -> Self {
        Self {
            outcome: Outcome::Failed(Failure::new(
                FailureCode::NodeLost,
                "The build's pod was deleted by something other than Kiln, or was lost with its node.",
            )),
            digest: None,
            forced: false,
            unexplained: false,
        }
    }

    /// The end in the light of the log: where neither a report nor the log's end says how the last step went, nobody
    /// knows, and that is the failure.
    fn with_log(self, log: LogOutcome) -> Self {
        let Some(lost) = log.lost.filter(|_| self.unexplained) else {
            return self;
        };
        let both = |failure: Failure| {
            if failure.code != FailureCode::Internal {
                return failure;
            }
            let message = format!("{} The end of its log is lost, too: {lost}.", failure.message);
            Failure::new(FailureCode::LogLost, message)
        };
        let outcome = match self.outcome {
            Outcome::Succeeded => Outcome::Succeeded,
            Outcome::Failed(failure) => Outcome::Failed(both(failure)),
            Outcome::FailedByNode(failure) => Outcome::FailedByNode(both(failure)),
        };
        Self { outcome, ..self }
    }
}

/// Whether a step ended without saying how it went.
fn is_unexplained(step: &StepObservation) -> bool {
    step.end.as_ref().is_some_and(|end| end.report.is_none())
}

fn report(steps: &[StepObservation], step: StepName) -> Option<&kiln_agent::wire::report::Report> {
    steps
        .iter()
        .find(|seen| seen.step == step)
        .and_then(|seen| seen.end.as_ref()?.report.as_ref())
}

fn commit(steps: &[StepObservation]) -> Option<CommitId> {
    report(steps, StepName::Source)?.commit.as_deref()?.parse().ok()
}

/// The digest that the builder claims; what isn't one counts as none.
fn digest(steps: &[StepObservation]) -> Option<Digest> {
    report(steps, StepName::Build)?.digest.as_deref()?.parse().ok()
}
