//! Takes one attempt through its steps, or finds out how far another kiln got and goes on from there.
//!
//! All decisions go by the attempt's folder, so that they come out the same whoever takes them.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    path::Path,
    time::Duration,
};

use chrono::{DateTime, Utc};
use kiln_agent::wire::report::{Exit, Report};
use nix::sys::signal::Signal;
use tokio::{process::Command, sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    folder::Folder,
    process::{Agent, Belongings, find_by_report},
    shipper,
};
use crate::{
    domain::{
        event::StepName,
        failure::{Failure, FailureCode},
    },
    runner::{Observation, Outcome, StepEnd, StepObservation, builder},
};

/// Set for every process of an attempt's steps, to its id.
const MARK: &str = "KILN_ATTEMPT";
/// What a stopped agent gets on top of the grace of its processes.
const AGENT_GRACE: Duration = Duration::from_secs(10);

/// Carries out, or goes on with, what the folder's plan says.
pub(super) struct Supervisor<'a> {
    pub(super) agent: &'a Path,
    pub(super) folder: &'a Folder,
    /// How long the attempt's processes get between SIGTERM and SIGKILL.
    pub(super) grace: Duration,
    /// Cancelled when the attempt is to stop.
    pub(super) stop: &'a CancellationToken,
    pub(super) observed: &'a watch::Sender<Observation>,
}

impl Supervisor<'_> {
    /// Ends with the attempt; what became of it is observed.
    pub(super) async fn run(&self) {
        let mut steps = Vec::new();
        let outcome = match self.take_through(&mut steps).await {
            Ok(outcome) => outcome,
            Err(_) if !self.folder.exists() => {
                self.observed.send_replace(Observation::Gone { steps });
                return;
            }
            Err(error) => {
                tracing::error!(attempt.id = %self.folder.attempt(), error = %error, "a build can't be carried out on this host");
                internal(
                    "The build could not be carried out on the host that it was given; its operator finds the reason in the service's log.",
                )
            }
        };
        self.observed.send_replace(Observation::Finished {
            node: None,
            steps,
            outcome,
        });
    }

    async fn take_through(&self, steps: &mut Vec<StepObservation>) -> io::Result<Outcome> {
        for step in StepName::ALL {
            let Some((mut agent, started_at)) = self.begin(step)? else {
                return Ok(internal("The build was told to stop before it was done."));
            };
            steps.push(StepObservation {
                step,
                started_at,
                end: None,
            });
            self.observed.send_replace(Observation::Running {
                node: None,
                steps: steps.clone(),
                waiting: None,
            });
            self.wait(&mut agent).await;
            if !self.next_has_begun(step) {
                // A killed agent leaves its children behind.
                Belongings {
                    marks: vec![mark(self.folder)],
                    folder: self.folder.path().to_owned(),
                }
                .end()
                .await?;
            }
            if !self.folder.exists() {
                return Err(io::ErrorKind::NotFound.into());
            }
            let end = self.folder.step_end(step);
            self.note_complaints(step);
            let failure = (!end.succeeded).then(|| self.failure(step, &end));
            if let Some(step) = steps.last_mut() {
                step.end = Some(end);
            }
            if let Some(failure) = failure {
                return Ok(Outcome::Failed(failure));
            }
            self.observed.send_replace(Observation::Running {
                node: None,
                steps: steps.clone(),
                waiting: None,
            });
        }
        Ok(Outcome::Succeeded)
    }

    /// The step's agent and when it began; starts one unless there was one. `None`: it isn't to begin any more.
    fn begin(&self, step: StepName) -> io::Result<Option<(Agent, DateTime<Utc>)>> {
        let process = self.folder.recorded_process(step);
        if let Some(process) = process.or_else(|| find_by_report(&self.folder.report(step))) {
            self.folder.record_process(step, &process)?;
            return Ok(Some((Agent::adopt(process), self.folder.record_start(step)?)));
        }
        if self.stop.is_cancelled() || self.folder.stop_requested() {
            return Ok(None);
        }
        let started_at = self.folder.record_start(step)?;
        let agent = Agent::spawn(&mut self.command(step)?)?;
        self.folder.record_process(step, agent.id())?;
        Ok(Some((agent, started_at)))
    }

    /// Whether another kiln has got further than this step.
    fn next_has_begun(&self, step: StepName) -> bool {
        let mut later = StepName::ALL.into_iter().filter(|later| *later > step);
        later.any(|later| {
            self.folder.recorded_process(later).is_some() || find_by_report(&self.folder.report(later)).is_some()
        })
    }

    fn command(&self, step: StepName) -> io::Result<Command> {
        let verb = match step {
            StepName::Source => "source",
            StepName::Build => "run",
        };
        let (plan, report, log) = (self.folder.plan(), self.folder.report(step), self.folder.log(step));
        let mut command = Command::new(self.agent);
        command
            .arg(verb)
            .args([OsStr::new("--plan"), plan.as_ref()])
            .args([OsStr::new("--report"), report.as_ref()])
            .args([OsStr::new("--log"), log.as_ref()])
            .env_clear()
            .envs(inherited())
            .envs(self.folder.homes())
            .env(MARK, self.folder.attempt().to_string())
            .current_dir(self.folder.path())
            .stderr(File::create(self.folder.complaints(step))?);
        if self.folder.log_url().is_some() {
            command.arg("--spool").arg(self.folder.spool());
        }
        Ok(command)
    }

    /// Waits for the agent's end, which this hastens when the attempt is to stop.
    async fn wait(&self, agent: &mut Agent) {
        tokio::select! {
            () = agent.ended() => return,
            () = self.stop.cancelled() => {}
        }
        agent.id().signal(Signal::SIGTERM);
        if timeout(self.grace + AGENT_GRACE, agent.ended()).await.is_err() {
            agent.id().signal(Signal::SIGKILL);
            agent.ended().await;
        }
    }

    fn failure(&self, step: StepName, end: &StepEnd) -> Failure {
        match &end.report {
            Some(Report {
                exit: Exit::Stopped, ..
            }) if !self.folder.stop_requested() => Failure::new(
                FailureCode::Internal,
                "The service was stopped while it ran this build on its own host.",
            ),
            Some(report) => builder::relative_to(&self.folder.source(), &builder::classify(step, report)),
            None => Failure::new(
                FailureCode::Internal,
                format!(
                    "The {} step was killed together with what watched over it.",
                    step.as_str()
                ),
            ),
        }
    }

    fn note_complaints(&self, step: StepName) {
        let complaints = std::fs::read(self.folder.complaints(step)).unwrap_or_default();
        if !complaints.is_empty() {
            let text = String::from_utf8_lossy(&complaints);
            tracing::warn!(attempt.id = %self.folder.attempt(), step = step.as_str(), "the agent says: {}", text.trim());
        }
    }
}

fn internal(message: &str) -> Outcome {
    Outcome::Failed(Failure::new(FailureCode::Internal, message))
}

/// All processes of an attempt.
pub(super) fn belongings(folder: &Folder) -> Belongings {
    Belongings {
        marks: vec![mark(folder), shipper::mark(folder)],
        folder: folder.path().to_owned(),
    }
}

fn mark(folder: &Folder) -> String {
    format!("{MARK}={}", folder.attempt())
}

/// What an attempt's processes keep of kiln's own environment.
pub(super) fn inherited() -> impl Iterator<Item = (OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_inherited))
}

/// What a build on the host may see of kiln's environment: how to find programs and how to reach the network.
fn is_inherited(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    matches!(name, "PATH" | "SSL_CERT_FILE" | "SSL_CERT_DIR")
        || matches!(upper.as_str(), "HTTP_PROXY" | "HTTPS_PROXY" | "NO_PROXY" | "ALL_PROXY")
}
