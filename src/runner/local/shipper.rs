//! Keeps `kiln-agent ship` going beside an attempt's steps, as the kubelet does with a pod's sidecar: it is started again
//! when it ends before its time, and told to end once the attempt is over. It outlives this process, and the next one
//! finds it again.

use std::{fs::OpenOptions, io, path::Path, time::Duration};

use nix::sys::signal::Signal;
use tokio::{process::Command, sync::watch, task::spawn_blocking, time::sleep};

use super::{
    folder::Folder,
    process::{Agent, ProcessId, find},
    supervisor::inherited,
};
use crate::runner::Observation;

/// Set for the shipper of an attempt, to the attempt's id. The steps' processes, which end with each step, have another.
const MARK: &str = "KILN_ATTEMPT_LOG";
/// The longest between two tries to reach the service, which may just have been started again.
const RETRY: Duration = Duration::from_secs(1);
/// How long it stays where neither a step runs nor a service answers. It is started again by the next service.
const ALONE: Duration = Duration::from_mins(1);
/// Before one that has ended is started again: at first, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// What the shipper of an attempt carries in its environment.
pub(super) fn mark(folder: &Folder) -> String {
    format!("{MARK}={}", folder.attempt())
}

/// Sees to it that the attempt's log is sent.
pub(super) struct Shipper<'a> {
    pub(super) agent: &'a Path,
    pub(super) folder: &'a Folder,
    /// Where to.
    pub(super) url: watch::Receiver<String>,
    pub(super) observed: watch::Receiver<Observation>,
}

impl Shipper<'_> {
    /// Ends when everything was sent, or can't be.
    pub(super) async fn run(mut self) {
        let attempt = self.folder.attempt();
        let (mut told, mut pause) = (false, PAUSES.0);
        while !told {
            let url = self.url.borrow_and_update().clone();
            let begun = self.find_or_start(&url).await;
            let moved = match begun {
                Ok(mut agent) => self.attend(&mut agent, &mut told).await,
                Err(error) => {
                    tracing::warn!(attempt.id = %attempt, error = %error, "the sending of a build's log can't be started");
                    told = self.is_over();
                    false
                }
            };
            if !moved && !told {
                sleep(pause).await;
                pause = (pause * 2).min(PAUSES.1);
            }
        }
        let complaints = std::fs::read(self.folder.shipper_complaints()).unwrap_or_default();
        if !complaints.is_empty() {
            let text = String::from_utf8_lossy(&complaints);
            tracing::info!(attempt.id = %attempt, "while the build's log was sent: {}", text.trim());
        }
    }

    /// Waits for the end of the process, which is told when the attempt is over. Says whether it was ended because the
    /// log goes somewhere else now.
    async fn attend(&mut self, agent: &mut Agent, told: &mut bool) -> bool {
        loop {
            tokio::select! {
                biased;
                () = until_over(&mut self.observed), if !*told => {
                    *told = true;
                    if let Err(error) = self.folder.note_over() {
                        tracing::debug!(error = %error, "the shipper can't be told that its attempt is over");
                        agent.id().signal(Signal::SIGTERM);
                    }
                }
                () = until_changed(&mut self.url) => {
                    agent.id().signal(Signal::SIGKILL);
                    agent.ended().await;
                    *told = false;
                    return true;
                }
                () = agent.ended() => return false,
            }
        }
    }

    fn is_over(&self) -> bool {
        is_over(&self.observed.borrow())
    }

    /// The attempt's shipper. One that sends the log elsewhere is ended.
    async fn find_or_start(&self, url: &str) -> io::Result<Agent> {
        loop {
            let (token, wanted) = (self.folder.log_token(), url.to_owned());
            let found = spawn_blocking(move || {
                let token = ("--token", token.as_os_str());
                let right = find(&[token, ("--url", wanted.as_ref())]);
                right.map(Found::Right).or_else(|| find(&[token]).map(Found::Wrong))
            });
            match found.await.map_err(io::Error::other)? {
                Some(Found::Right(id)) => return Ok(Agent::adopt(id)),
                Some(Found::Wrong(id)) => {
                    id.signal(Signal::SIGKILL);
                    Agent::adopt(id).ended().await;
                }
                None => return Agent::spawn(&mut self.command(url)?),
            }
        }
    }

    fn command(&self, url: &str) -> io::Result<Command> {
        let complaints = OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.folder.shipper_complaints())?;
        let mut command = Command::new(self.agent);
        command
            .args(["ship", "--steps", "source,build", "--url", url])
            .arg("--spool")
            .arg(self.folder.spool())
            .arg("--token")
            .arg(self.folder.log_token())
            .args(["--retry", &RETRY.as_millis().to_string()])
            .args(["--alone", &ALONE.as_millis().to_string()])
            .env_clear()
            .envs(inherited())
            .env(MARK, self.folder.attempt().to_string())
            .current_dir(self.folder.path())
            .stderr(complaints);
        Ok(command)
    }
}

/// A shipper that runs.
enum Found {
    Right(ProcessId),
    /// It sends the log to where the service was before.
    Wrong(ProcessId),
}

const fn is_over(observation: &Observation) -> bool {
    matches!(observation, Observation::Finished { .. } | Observation::Gone { .. })
}

async fn until_over(observed: &mut watch::Receiver<Observation>) {
    if observed.wait_for(is_over).await.is_err() {
        // The runner shuts down.
        std::future::pending::<()>().await;
    }
}

async fn until_changed(url: &mut watch::Receiver<String>) {
    if url.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
