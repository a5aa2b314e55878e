//! A runner whose attempts do what the test says, and that remembers what was asked of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard},
};

use bytes::Bytes;
use chrono::Utc;
use kiln::{
    domain::{
        build::{Assignment, LogVia},
        event::StepName,
        failure::{Failure, FailureCode},
        id::AttemptId,
        node::AvoidedNodes,
    },
    runner::{
        LaunchError, Launched, LogEnd, LogPosition, LogReader, Observation, Outcome, PendingReason, Readiness, Runner,
        RunnerError, Shipping, StepEnd, StepObservation,
    },
};
use kiln_agent::wire::{
    frame::{Frame, Stream},
    report::{Exit, Report},
};
use tokio::sync::{mpsc, watch};

/// What attempts do.
#[derive(Clone, Debug)]
pub(super) enum Script {
    /// Print so many lines and end well.
    Succeed(u64),
    /// Print so many lines and go on until told to stop, or ended by the test.
    Hang(u64),
    /// Wait for a node for ever.
    Pending,
    /// End badly with this.
    Fail(FailureCode),
    /// End badly with this, for which the node is to blame.
    FailByNode(FailureCode),
    /// Wait for a node as long as the only one is out of the question, then succeed.
    Choosy,
    /// As the element of this attempt's number; the last for all further ones.
    Each(Vec<Script>),
}

struct Attempt {
    observation: watch::Sender<Observation>,
    lines: u64,
}

struct Inner {
    script: Script,
    attempts: BTreeMap<AttemptId, Attempt>,
    launches: BTreeMap<AttemptId, u32>,
    avoided: Vec<AvoidedNodes>,
    /// How many further launches nobody hears the outcome of.
    unclear: u32,
    shipping: Shipping,
    /// What was seen last of attempts that somebody else deleted. Whoever follows one hears no more, but isn't cut off.
    gone: Vec<watch::Sender<Observation>>,
    /// Lines that the cluster's own log of a build step lacks.
    rotated: RangeInclusive<u64>,
    /// No attempt that is there now has a log that can be read.
    unreadable: BTreeSet<AttemptId>,
    /// How often a log was read.
    reads: u32,
    /// Whether whoever reads a log gets anything yet.
    readable: watch::Sender<bool>,
}

/// Shared by every worker of a test, as a cluster is.
#[derive(Clone)]
pub(super) struct SimRunner {
    inner: Arc<Mutex<Inner>>,
    readiness: Arc<watch::Sender<Readiness>>,
}

fn step(step: StepName, end: Option<(bool, u64)>) -> StepObservation {
    StepObservation {
        step,
        started_at: Utc::now(),
        end: end.map(|(succeeded, lines)| StepEnd {
            succeeded,
            at: Utc::now(),
            report: Some(Report {
                exit: Exit::Code(i32::from(!succeeded)),
                lines,
                bytes: lines,
                commit: None,
                digest: Some(format!("sha256:{}", "a".repeat(64))),
                problem: None,
                failed: None,
                tail: String::new(),
            }),
        }),
    }
}

fn finished(lines: u64, outcome: Outcome) -> Observation {
    Observation::Finished {
        node: Some("node".to_owned()),
        steps: vec![
            step(StepName::Source, Some((true, 0))),
            step(StepName::Build, Some((outcome == Outcome::Succeeded, lines))),
        ],
        outcome,
    }
}

impl SimRunner {
    pub(super) fn new(script: Script) -> Self {
        Self {
            inner: Arc::new(Mutex::new(Inner {
                script,
                attempts: BTreeMap::new(),
                launches: BTreeMap::new(),
                avoided: Vec::new(),
                unclear: 0,
                shipping: Shipping::Absent,
                gone: Vec::new(),
                rotated: 0..=0,
                unreadable: BTreeSet::new(),
                reads: 0,
                readable: watch::Sender::new(true),
            })),
            readiness: Arc::new(watch::Sender::new(Readiness::Ready)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no test panics while it holds the lock")
    }

    pub(super) fn set_ready(&self, readiness: Readiness) {
        self.readiness.send_replace(readiness);
    }

    /// So many launches from now on come to nothing, and nobody knows.
    pub(super) fn break_launches(&self, count: u32) {
        self.lock().unclear = count;
    }

    /// Launches that are still to come to nothing.
    pub(super) fn broken_launches(&self) -> u32 {
        self.lock().unclear
    }

    /// Attempts that exist now.
    pub(super) fn attempts(&self) -> Vec<AttemptId> {
        self.lock().attempts.keys().copied().collect()
    }

    /// How often each attempt was made, adoptions not counted.
    pub(super) fn launches(&self) -> BTreeMap<AttemptId, u32> {
        self.lock().launches.clone()
    }

    /// Which nodes each launch was to stay away from.
    pub(super) fn avoided(&self) -> Vec<AvoidedNodes> {
        self.lock().avoided.clone()
    }

    /// What attempts do with their logs.
    pub(super) fn set_shipping(&self, shipping: Shipping) {
        self.lock().shipping = shipping;
    }

    /// The cluster loses these lines of every build step's log.
    pub(super) fn rotate(&self, lines: RangeInclusive<u64>) {
        self.lock().rotated = lines;
    }

    /// The logs of the attempts that are there can't be read any more.
    pub(super) fn lose_logs(&self) {
        let mut inner = self.lock();
        inner.unreadable = inner.attempts.keys().copied().collect();
    }

    /// Whether those who read logs from the cluster get anything, or wait.
    pub(super) fn let_read(&self, readable: bool) {
        self.lock().readable.send_replace(readable);
    }

    /// How often a log was read from the cluster.
    pub(super) fn reads(&self) -> u32 {
        self.lock().reads
    }

    /// Ends every attempt that runs, without a word on how it went.
    pub(super) fn break_all(&self) {
        for attempt in self.lock().attempts.values() {
            let failure = Failure::new(FailureCode::Internal, "The build step left no report.");
            let mut observation = finished(attempt.lines, Outcome::Failed(failure));
            if let Observation::Finished { steps, .. } = &mut observation
                && let Some(end) = steps.last_mut().and_then(|step| step.end.as_mut())
            {
                end.report = None;
            }
            attempt.observation.send_replace(observation);
        }
    }

    /// Ends every attempt that runs.
    pub(super) fn finish_all(&self) {
        for attempt in self.lock().attempts.values() {
            attempt
                .observation
                .send_replace(finished(attempt.lines, Outcome::Succeeded));
        }
    }

    /// Somebody else deletes every pod.
    pub(super) fn vanish_all(&self) {
        let mut inner = self.lock();
        for (_, attempt) in std::mem::take(&mut inner.attempts) {
            let steps = attempt.observation.borrow().steps().to_vec();
            attempt.observation.send_replace(Observation::Gone { steps });
            inner.gone.push(attempt.observation);
        }
    }
}

fn begin(script: &Script, assignment: &Assignment) -> (Observation, u64) {
    let running = |lines| {
        let steps = vec![step(StepName::Source, Some((true, 0))), step(StepName::Build, None)];
        (
            Observation::Running {
                node: Some("node".to_owned()),
                steps,
                waiting: None,
            },
            lines,
        )
    };
    match script {
        Script::Succeed(lines) => (finished(*lines, Outcome::Succeeded), *lines),
        Script::Hang(lines) => running(*lines),
        Script::Pending => (
            Observation::Pending {
                node: None,
                since: Utc::now(),
                reason: PendingReason::Unscheduled(Some("0/2 nodes are available".to_owned())),
            },
            0,
        ),
        Script::Fail(code) => (finished(3, Outcome::Failed(Failure::new(*code, "as scripted"))), 3),
        Script::FailByNode(code) => (
            finished(3, Outcome::FailedByNode(Failure::new(*code, "as scripted"))),
            3,
        ),
        Script::Choosy if assignment.avoid.never.is_empty() => (finished(1, Outcome::Succeeded), 1),
        Script::Choosy => begin(&Script::Pending, assignment),
        Script::Each(scripts) => {
            let attempt = assignment.attempt;
            let index = (attempt.number as usize - 1).min(scripts.len() - 1);
            begin(&scripts[index], assignment)
        }
    }
}

impl Runner for SimRunner {
    const NAME_PREFIX: &'static str = "sim-";
    const LOG_VIA: LogVia = LogVia::Kubernetes;

    async fn launch(&self, assignment: &Assignment) -> Result<Launched, LaunchError> {
        let attempt = assignment.attempt;
        let mut inner = self.lock();
        if let Some(left) = inner.unclear.checked_sub(1) {
            inner.unclear = left;
            return Err(RunnerError::new("creating the pod", "no answer").into());
        }
        let name = format!("{}{attempt}", Self::NAME_PREFIX);
        let (observation, lines) = begin(&inner.script, assignment);
        // Whoever only asked about it has made nothing.
        let exists = inner
            .attempts
            .get(&attempt)
            .is_some_and(|entry| *entry.observation.borrow() != Observation::Unseen);
        if exists {
            return Ok(Launched { name, adopted: true });
        }
        *inner.launches.entry(attempt).or_default() += 1;
        inner.avoided.push(assignment.avoid.clone());
        let entry = inner.attempts.entry(attempt).or_insert_with(|| Attempt {
            observation: watch::Sender::new(Observation::Unseen),
            lines,
        });
        entry.lines = lines;
        entry.observation.send_replace(observation);
        Ok(Launched { name, adopted: false })
    }

    fn observe(&self, attempt: AttemptId) -> watch::Receiver<Observation> {
        self.lock()
            .attempts
            .entry(attempt)
            .or_insert_with(|| Attempt {
                observation: watch::Sender::new(Observation::Unseen),
                lines: 0,
            })
            .observation
            .subscribe()
    }

    fn read_log(&self, attempt: AttemptId, step: StepName, after: LogPosition) -> LogReader {
        let (sender, chunks) = mpsc::channel(4);
        let (mut readable, found) = {
            let mut inner = self.lock();
            inner.reads += 1;
            let entry = inner
                .attempts
                .get(&attempt)
                .filter(|_| !inner.unreadable.contains(&attempt));
            let found = entry.map(|entry| (entry.observation.subscribe(), entry.lines, inner.rotated.clone()));
            (inner.readable.subscribe(), found)
        };
        let end = tokio::spawn(async move {
            let _ = readable.wait_for(|readable| *readable).await;
            let Some((mut observed, lines, rotated)) = found else {
                return LogEnd::Lost("the pod is gone".to_owned());
            };
            if step == StepName::Build {
                // Begins too early on purpose: readers go by the numbers.
                for number in after.line.saturating_sub(2).max(1)..=lines {
                    if rotated.contains(&number) {
                        continue;
                    }
                    let mut line = Vec::new();
                    Frame {
                        number,
                        at_ms: 1_760_000_000_000 + number,
                        stream: Stream::Stdout,
                        partial: false,
                        text: format!("line {number}").as_bytes(),
                    }
                    .encode(&mut line);
                    if sender.send(Bytes::from(line)).await.is_err() {
                        return LogEnd::Complete;
                    }
                }
            }
            let over = observed
                .wait_for(|seen| match seen {
                    Observation::Gone { .. } => true,
                    seen => seen.steps().iter().any(|seen| seen.step == step && seen.end.is_some()),
                })
                .await;
            match over.as_deref() {
                Ok(Observation::Gone { .. }) | Err(_) => LogEnd::Lost("the pod is gone".to_owned()),
                Ok(_) => LogEnd::Complete,
            }
        });
        LogReader { chunks, end }
    }

    fn shipping(&self, _: AttemptId) -> Shipping {
        self.lock().shipping
    }

    async fn stop(&self, attempt: AttemptId) -> Result<(), RunnerError> {
        if let Some(attempt) = self.lock().attempts.get(&attempt) {
            let stopped = Failure::new(FailureCode::Internal, "stopped");
            attempt.observation.send_if_modified(|observation| {
                let runs = matches!(observation, Observation::Running { .. });
                if runs {
                    *observation = finished(attempt.lines, Outcome::Failed(stopped));
                }
                runs
            });
        }
        Ok(())
    }

    async fn remove(&self, attempt: AttemptId) -> Result<(), RunnerError> {
        self.lock().attempts.remove(&attempt);
        Ok(())
    }

    async fn list(&self) -> Result<Vec<AttemptId>, RunnerError> {
        Ok(self.attempts())
    }

    fn readiness(&self) -> watch::Receiver<Readiness> {
        self.readiness.subscribe()
    }
}
