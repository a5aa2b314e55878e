//! Attempts as host processes: the same plan, agent, frames and reports as in a pod, with a folder in its place.
//!
//! The agents aren't tied to this process. When it is killed they go on, and the next one adopts what it finds.
//! Images are always made by buildah, whichever builder the build asks for: it needs no daemon and no root.

mod folder;
mod host;
mod log;
mod process;
mod removal;
mod shipper;
mod supervisor;

use std::{
    collections::HashMap,
    fs, io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    folder::{CreateError, Folder},
    shipper::Shipper,
    supervisor::Supervisor,
};
use super::{
    LaunchError, Launched, LogEnd, LogPosition, LogReader, Observation, Readiness, Runner, RunnerError, Shipping,
    builder::{self, Env, StorageDriver},
    registry::Registry,
};
use crate::domain::{
    build::{Assignment, LogVia},
    event::StepName,
    id::AttemptId,
    spec::Builder,
};

/// How often it is looked whether the host has everything.
const READINESS_INTERVAL: Duration = Duration::from_secs(5);
/// Chunks of a log on their way to the journal.
const CHUNKS_IN_FLIGHT: usize = 4;

/// Settings of the local runner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LocalConfig {
    /// Where the builds' folders go, in `builds`.
    pub data_dir: PathBuf,
    /// The program `kiln-agent`; beside the running program when absent.
    pub agent: Option<PathBuf>,
    /// Seconds that the processes of a build get between SIGTERM and SIGKILL when it is stopped.
    pub stop_grace_seconds: u32,
}

impl Default for LocalConfig {
    fn default() -> Self {
        Self {
            data_dir: "/var/lib/kiln".into(),
            agent: None,
            stop_grace_seconds: 5,
        }
    }
}

/// Runs attempts on this host. Clones are the same runner.
#[derive(Clone)]
pub struct LocalRunner {
    shared: Arc<Shared>,
}

struct Shared {
    builds: PathBuf,
    agent: PathBuf,
    grace_seconds: u32,
    registries: Vec<Registry>,
    attempts: Mutex<HashMap<AttemptId, Entry>>,
    readiness: watch::Sender<Readiness>,
    /// Attempts are to stop, and none is to begin.
    winding_down: CancellationToken,
    /// Ends the runner's own tasks; the attempts' processes go on.
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

/// What is kept of an attempt in memory.
struct Entry {
    observed: watch::Sender<Observation>,
    shipping: Shipping,
    supervision: Option<Supervision>,
}

struct Supervision {
    stop: CancellationToken,
    /// Ends the supervision, not the attempt.
    release: CancellationToken,
    /// Where the log is sent, if it is.
    log_url: Option<watch::Sender<String>>,
    task: JoinHandle<()>,
}

impl LocalRunner {
    /// A runner on `data_dir`. Goes on with the attempts that it finds there.
    pub fn start(config: &LocalConfig, registries: Vec<Registry>) -> Result<Self, RunnerError> {
        let builds = config.data_dir.join("builds");
        fs::create_dir_all(&builds).map_err(failed("creating the folder for builds"))?;
        let builds = builds.canonicalize().map_err(failed("opening the folder for builds"))?;
        if !builds.to_str().is_some_and(|path| {
            path.bytes()
                .all(|byte| byte.is_ascii_graphic() && !b",:\"'".contains(&byte))
        }) {
            let problem = "its path holds characters that buildah's arguments can't: choose a plain one";
            return Err(failed("opening the folder for builds")(io::Error::other(problem)));
        }
        let agent = match &config.agent {
            Some(agent) => agent.clone(),
            None => std::env::current_exe()
                .map_err(failed("finding the program's own folder"))?
                .with_file_name("kiln-agent"),
        };
        let shared = Arc::new(Shared {
            readiness: watch::Sender::new(host::readiness(&agent)),
            builds,
            agent,
            grace_seconds: config.stop_grace_seconds,
            registries,
            attempts: Mutex::default(),
            winding_down: CancellationToken::new(),
            shutdown: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        let runner = Self { shared };
        runner.sweep()?;
        for attempt in folder::attempts(&runner.shared.builds).map_err(failed("listing builds"))? {
            runner.shared.supervise(attempt);
        }
        runner.watch_readiness();
        Ok(runner)
    }

    /// Launches nothing more, stops what runs, and waits for the ends, which are observed as ever.
    pub async fn wind_down(&self) {
        self.shared.winding_down.cancel();
        self.shared
            .readiness
            .send_replace(Readiness::NotReady("the service is being stopped".to_owned()));
        let observed: Vec<_> = self.shared.with_attempts(|attempts| {
            let supervised = attempts
                .values()
                .filter_map(|entry| Some((entry, entry.supervision.as_ref()?)));
            supervised
                .map(|(entry, supervision)| {
                    supervision.stop.cancel();
                    entry.observed.subscribe()
                })
                .collect()
        });
        for mut observed in observed {
            let is_over = |seen: &Observation| matches!(seen, Observation::Finished { .. } | Observation::Gone { .. });
            // An error means that the attempt was removed.
            drop(observed.wait_for(is_over).await);
        }
    }

    /// Ends the runner's tasks. Attempts that run go on; the next runner on the same folder adopts them. Of those that
    /// were wound down no process stays: the next runner sends what is left of their logs.
    pub async fn shut_down(&self) {
        self.shared.shutdown.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
        self.shared.with_attempts(HashMap::clear);
        if self.shared.winding_down.is_cancelled() {
            for attempt in folder::attempts(&self.shared.builds).unwrap_or_default() {
                if let Err(error) = supervisor::belongings(&self.shared.folder(attempt)).end().await {
                    tracing::warn!(attempt.id = %attempt, error = %error, "processes of a build stay");
                }
            }
        }
    }

    /// Removes what a killed process left half made or half removed.
    fn sweep(&self) -> Result<(), RunnerError> {
        let unfinished = folder::unfinished(&self.shared.builds).map_err(failed("listing builds"))?;
        self.shared.tasks.spawn(async move {
            for folder in unfinished {
                if let Err(error) = removal::remove(&folder).await {
                    tracing::warn!(folder.path = %folder.display(), error = %error, "a removed build's folder stays");
                }
            }
        });
        Ok(())
    }

    fn watch_readiness(&self) {
        let shared = Arc::clone(&self.shared);
        self.shared.tasks.spawn(async move {
            let mut ticks = interval(READINESS_INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let end = async {
                tokio::select! {
                    () = shared.winding_down.cancelled() => {}
                    () = shared.shutdown.cancelled() => {}
                }
            };
            tokio::pin!(end);
            loop {
                tokio::select! {
                    biased;
                    () = &mut end => return,
                    _ = ticks.tick() => {}
                }
                let now = host::readiness(&shared.agent);
                shared.readiness.send_if_modified(|last| {
                    let changed = *last != now;
                    *last = now;
                    changed
                });
            }
        });
    }
}

impl Shared {
    fn folder(&self, attempt: AttemptId) -> Folder {
        Folder::new(&self.builds, attempt)
    }

    fn with_attempts<T>(&self, action: impl FnOnce(&mut HashMap<AttemptId, Entry>) -> T) -> T {
        // No code under the lock can leave the map half changed.
        action(&mut self.attempts.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sees to it that the attempt, whose folder exists, is taken through its steps.
    fn supervise(self: &Arc<Self>, attempt: AttemptId) {
        self.with_attempts(|attempts| {
            let entry = attempts.entry(attempt).or_insert_with(Entry::new);
            if entry.supervision.is_some() || self.shutdown.is_cancelled() {
                return;
            }
            let (stop, release) = (CancellationToken::new(), self.shutdown.child_token());
            if self.winding_down.is_cancelled() || self.folder(attempt).stop_requested() {
                stop.cancel();
            }
            let log_url = self.folder(attempt).log_url().map(watch::Sender::new);
            if log_url.is_some() {
                entry.shipping = Shipping::Running;
            }
            let task = {
                let (shared, stop, release, observed) =
                    (Arc::clone(self), stop.clone(), release.clone(), entry.observed.clone());
                let log_url = log_url.as_ref().map(watch::Sender::subscribe);
                self.tasks.spawn(async move {
                    let folder = shared.folder(attempt);
                    let shipping = async {
                        let Some(url) = log_url else { return };
                        let shipper = Shipper {
                            agent: &shared.agent,
                            folder: &folder,
                            url,
                            observed: observed.subscribe(),
                        };
                        shipper.run().await;
                        shared.with_attempts(|attempts| {
                            if let Some(entry) = attempts.get_mut(&attempt) {
                                entry.shipping = Shipping::Over;
                            }
                        });
                    };
                    let supervisor = Supervisor {
                        agent: &shared.agent,
                        folder: &folder,
                        grace: Duration::from_secs(shared.grace_seconds.into()),
                        stop: &stop,
                        observed: &observed,
                    };
                    let all = async { tokio::join!(supervisor.run(), shipping) };
                    release.run_until_cancelled(all).await;
                })
            };
            entry.supervision = Some(Supervision {
                stop,
                release,
                log_url,
                task,
            });
        });
    }

    /// Has the log sent to where the service is now.
    fn send_log_to(&self, attempt: AttemptId, url: &str) -> io::Result<()> {
        self.with_attempts(|attempts| {
            let supervision = attempts.get(&attempt).and_then(|entry| entry.supervision.as_ref());
            let Some(log_url) = supervision.and_then(|supervision| supervision.log_url.as_ref()) else {
                return Ok(());
            };
            if *log_url.borrow() != url {
                self.folder(attempt).record_log_url(url)?;
                log_url.send_replace(url.to_owned());
            }
            Ok(())
        })
    }

    async fn make(self: &Arc<Self>, assignment: &Assignment) -> Result<bool, CreateError> {
        let folder = self.folder(assignment.attempt);
        let mut assignment = assignment.clone();
        assignment.spec.builder = Builder::Buildah;
        let plan = builder::plan(
            &assignment,
            &Env {
                registries: &self.registries,
                source: &folder.source(),
                scratch: &folder.scratch(),
                storage: &folder.storage(),
                credentials: &assignment.credentials,
                source_credentials: &folder.credentials(StepName::Source),
                build_credentials: &folder.credentials(StepName::Build),
                storage_driver: StorageDriver::Vfs,
                grace_seconds: self.grace_seconds,
            },
        );
        let credentials = builder::credentials::files(&assignment.credentials);
        let log = assignment.credentials.log.take();
        tokio::task::spawn_blocking(move || folder.create(&plan, &credentials, log.as_ref()))
            .await
            .map_err(|error| CreateError::Unknown(io::Error::other(error)))?
    }
}

impl Entry {
    fn new() -> Self {
        Self {
            observed: watch::Sender::new(Observation::Unseen),
            shipping: Shipping::Absent,
            supervision: None,
        }
    }
}

impl Runner for LocalRunner {
    const NAME_PREFIX: &'static str = "";
    const LOG_VIA: LogVia = LogVia::Host;

    async fn launch(&self, assignment: &Assignment) -> Result<Launched, LaunchError> {
        let attempt = assignment.attempt;
        let exists = self.shared.folder(attempt).exists();
        if let (false, Readiness::NotReady(why)) = (exists, &*self.shared.readiness.borrow()) {
            return Err(LaunchError::NotReady(why.clone()));
        }
        let made = self.shared.make(assignment).await.map_err(|error| match error {
            CreateError::Nothing(error) => LaunchError::NotReady(format!(
                "no folder can be made in {}: {error}",
                self.shared.builds.display()
            )),
            CreateError::Unknown(error) => failed("creating the build's folder")(error).into(),
        })?;
        self.shared.supervise(attempt);
        if let (false, Some(log)) = (made, &assignment.credentials.log) {
            let sent = self.shared.send_log_to(attempt, &log.url);
            sent.map_err(failed("noting where the build's log goes"))?;
        }
        Ok(Launched {
            name: attempt.to_string(),
            adopted: !made,
        })
    }

    fn observe(&self, attempt: AttemptId) -> watch::Receiver<Observation> {
        self.shared
            .with_attempts(|attempts| attempts.entry(attempt).or_insert_with(Entry::new).observed.subscribe())
    }

    fn read_log(&self, attempt: AttemptId, step: StepName, after: LogPosition) -> LogReader {
        let observed = self.observe(attempt);
        let path = self.shared.folder(attempt).log(step);
        let shutdown = self.shared.shutdown.clone();
        let (sender, chunks) = mpsc::channel(CHUNKS_IN_FLIGHT);
        let end = self.shared.tasks.spawn(async move {
            let reading = log::read(&path, step, after, observed, sender);
            let end = shutdown.run_until_cancelled(reading).await;
            end.unwrap_or_else(|| LogEnd::Lost("the service shuts down".to_owned()))
        });
        LogReader { chunks, end }
    }

    fn shipping(&self, attempt: AttemptId) -> Shipping {
        self.shared
            .with_attempts(|attempts| attempts.get(&attempt).map_or(Shipping::Absent, |entry| entry.shipping))
    }

    async fn stop(&self, attempt: AttemptId) -> Result<(), RunnerError> {
        let folder = self.shared.folder(attempt);
        match folder.request_stop() {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed("telling the build to stop")(error)),
        }
        self.shared.supervise(attempt);
        self.shared.with_attempts(|attempts| {
            if let Some(supervision) = attempts.get(&attempt).and_then(|entry| entry.supervision.as_ref()) {
                supervision.stop.cancel();
            }
        });
        Ok(())
    }

    async fn remove(&self, attempt: AttemptId) -> Result<(), RunnerError> {
        let supervision = self
            .shared
            .with_attempts(|attempts| attempts.get_mut(&attempt).and_then(|entry| entry.supervision.take()));
        if let Some(supervision) = supervision {
            supervision.release.cancel();
            // Cancelled or ended by itself: either way nobody starts processes any more.
            let _ = supervision.task.await;
        }
        let folder = self.shared.folder(attempt);
        supervisor::belongings(&folder)
            .end()
            .await
            .map_err(failed("ending the build's processes"))?;
        match folder.set_aside() {
            Ok(aside) => removal::remove(&aside)
                .await
                .map_err(failed("removing the build's folder"))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("removing the build's folder")(error)),
        }
        self.shared.with_attempts(|attempts| {
            if let Some(entry) = attempts.get(&attempt) {
                entry.observed.send_if_modified(become_gone);
            }
            attempts.retain(|_, entry| entry.supervision.is_some() || entry.observed.receiver_count() > 0);
        });
        Ok(())
    }

    async fn list(&self) -> Result<Vec<AttemptId>, RunnerError> {
        folder::attempts(&self.shared.builds).map_err(failed("listing builds"))
    }

    fn readiness(&self) -> watch::Receiver<Readiness> {
        self.shared.readiness.subscribe()
    }
}

/// What is observed once the folder is removed.
fn become_gone(observation: &mut Observation) -> bool {
    if matches!(observation, Observation::Unseen | Observation::Gone { .. }) {
        return false;
    }
    *observation = Observation::Gone {
        steps: observation.steps().to_vec(),
    };
    true
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> RunnerError {
    move |source| RunnerError::new(action, source)
}
