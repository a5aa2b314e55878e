//! Carrying out attempts somewhere, in the words of the domain. [`kubernetes`] is the only place that knows `kube`;
//! [`local`] runs the same plan as host processes.
//!
//! A runner observes and acts; it decides nothing. What an attempt's end means for its build is the engine's affair.

pub mod builder;
pub mod kubernetes;
pub mod local;
pub mod registry;
pub mod verify;

use std::future::Future;

use chrono::{DateTime, Utc};
use kiln_agent::wire::report::Report;
use tokio::sync::watch;

use crate::domain::{
    build::{Assignment, LogVia},
    event::StepName,
    failure::Failure,
    id::AttemptId,
};

/// Runs attempts. All methods may be called again after a crash at any point: creating what exists adopts it, and
/// deleting what is gone succeeds.
pub trait Runner: Send + Sync + 'static {
    /// What an attempt's pod or folder is called: this, followed by the attempt's id.
    const NAME_PREFIX: &'static str;
    /// What [`Runner::read_log`] reads, in words for callers.
    const LOG_VIA: LogVia;

    /// Starts the attempt, or adopts it when it exists already.
    fn launch(&self, assignment: &Assignment) -> impl Future<Output = Result<Launched, LaunchError>> + Send;

    /// Follows what becomes of the attempt. The first value is there at once; the channel closes only when the
    /// runner shuts down.
    fn observe(&self, attempt: AttemptId) -> watch::Receiver<Observation>;

    /// Reads a step's framed output (see [`kiln_agent::wire::frame`]) from line `after` + 1 on, until the step has
    /// ended and all that can be had has been read. May begin earlier and may repeat lines; the caller goes by the
    /// numbers. Backpressure: the runner reads no faster than the caller takes.
    fn read_log(&self, attempt: AttemptId, step: StepName, after: LogPosition) -> LogReader;

    /// Whether the attempt sends its log by itself (`kiln-agent ship`), so that [`Runner::read_log`] is only for where
    /// that fails. Changes without a new observation, too: ask again after a while.
    fn shipping(&self, attempt: AttemptId) -> Shipping {
        let _ = attempt;
        Shipping::Absent
    }

    /// Tells the attempt to stop: its processes get SIGTERM and, after a grace period of a few seconds, SIGKILL.
    /// Returns at once; the end shows in what is observed. Log and report stay readable until the end was observed.
    fn stop(&self, attempt: AttemptId) -> impl Future<Output = Result<(), RunnerError>> + Send;

    /// Removes every trace of the attempt, running or not.
    fn remove(&self, attempt: AttemptId) -> impl Future<Output = Result<(), RunnerError>> + Send;

    /// Every attempt that this installation has traces of.
    fn list(&self) -> impl Future<Output = Result<Vec<AttemptId>, RunnerError>> + Send;

    /// Whether attempts can be launched at all, in words for `/readyz`. Nothing is claimed from the queue while this
    /// says no.
    fn readiness(&self) -> watch::Receiver<Readiness>;
}

/// What is known of the sending of an attempt's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shipping {
    /// The attempt doesn't send its log.
    Absent,
    /// It does, or will, as far as is known.
    Running,
    /// It did; what sent it has ended for good.
    Over,
}

/// What a launch led to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launched {
    /// Name of the pod, or of the folder.
    pub name: String,
    /// Whether it was there before.
    pub adopted: bool,
}

/// Why an attempt could not be launched.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The attempt can't succeed as it is: it ends with this failure.
    #[error("the attempt was rejected: {}", .0.message)]
    Rejected(Failure),
    /// Certainly nothing was created, and nothing can be for now: the build goes back to the queue.
    #[error("attempts can't be launched now: {0}")]
    NotReady(String),
    /// Nobody knows whether anything was created: to be tried again with the same attempt.
    #[error(transparent)]
    Unknown(#[from] RunnerError),
}

/// A call to the cluster or to the host failed. The source is for the log, never for callers of the API.
#[derive(Debug, thiserror::Error)]
#[error("{action}")]
pub struct RunnerError {
    /// What was tried, such as `creating the pod`.
    pub action: &'static str,
    /// What came back.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

impl RunnerError {
    /// An error with its cause.
    pub fn new(action: &'static str, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self {
            action,
            source: source.into(),
        }
    }
}

/// Whether attempts can be launched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Yes.
    Ready,
    /// Not now, for this reason, which says what to do.
    NotReady(String),
}

/// What is known of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// Nothing has been seen of it yet.
    Unseen,
    /// It exists and waits to run.
    Pending {
        /// The node it was given, if any.
        node: Option<String>,
        /// When it was created.
        since: DateTime<Utc>,
        /// What it waits for.
        reason: PendingReason,
    },
    /// A step runs, or is about to.
    Running {
        /// The node.
        node: Option<String>,
        /// Steps that have begun, in order, with their reports where they have ended.
        steps: Vec<StepObservation>,
        /// What the next step waits for, when it can't begin.
        waiting: Option<PendingReason>,
    },
    /// It has ended.
    Finished {
        /// The node.
        node: Option<String>,
        /// Steps that had begun, in order.
        steps: Vec<StepObservation>,
        /// How it ended.
        outcome: Outcome,
    },
    /// It was seen before, and is there no longer.
    Gone {
        /// Steps that had begun when it was last seen.
        steps: Vec<StepObservation>,
    },
}

impl Observation {
    /// Steps that have begun.
    pub fn steps(&self) -> &[StepObservation] {
        match self {
            Self::Unseen | Self::Pending { .. } => &[],
            Self::Running { steps, .. } | Self::Finished { steps, .. } | Self::Gone { steps } => steps,
        }
    }
}

/// A step that has begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepObservation {
    /// Which.
    pub step: StepName,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// How it ended, if it did.
    pub end: Option<StepEnd>,
}

/// The end of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepEnd {
    /// Whether it ended well.
    pub succeeded: bool,
    /// When it ended.
    pub at: DateTime<Utc>,
    /// What its agent reported; absent when the agent was killed.
    pub report: Option<Report>,
}

/// What an attempt that doesn't run yet waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PendingReason {
    /// A node; with the scheduler's words, if it has said why there is none.
    Unscheduled(Option<String>),
    /// An image, with the kubelet's words.
    ImagePull(String),
    /// An image that can't ever be pulled, whatever is waited for; with the kubelet's words.
    ImageImpossible(String),
    /// Its containers are being made; with the kubelet's words when they can't be.
    Starting(Option<String>),
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every step ended well.
    Succeeded,
    /// Something failed.
    Failed(Failure),
    /// The node failed it, and may fail others.
    FailedByNode(Failure),
}

/// How far a step's log has been read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogPosition {
    /// Number of the last line held; 0 for none.
    pub line: u64,
    /// When that line was written, in milliseconds since the Unix epoch.
    pub at_ms: u64,
}

/// Raw log lines on their way to the journal.
pub struct LogReader {
    /// Chunks of whole lines, each line with its newline. Closed when the log is at its end.
    pub chunks: tokio::sync::mpsc::Receiver<bytes::Bytes>,
    /// How the reading ended; resolves after `chunks` closed.
    pub end: tokio::task::JoinHandle<LogEnd>,
}

/// How the reading of a log ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogEnd {
    /// The step has ended and everything that the runner can get was read.
    Complete,
    /// The log can't be read any more, for this reason.
    Lost(String),
}
