//! The folder of an attempt: all that is known of it. Whoever restarts reads it back; nothing is kept in memory only.
//!
//! It appears under its name in one step, complete with the plan, so that creating it twice is refused, as with a pod.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use chrono::{DateTime, SubsecRound, Utc};
use kiln_agent::wire::{
    plan::Plan,
    report::{Exit, Report},
};
use uuid::Uuid;

use super::process::ProcessId;
use crate::{
    domain::{event::StepName, id::AttemptId, secret::LogAccess},
    runner::{StepEnd, builder::credentials::CredentialFiles},
};

/// Folders that are being made or removed; never mistaken for an attempt's, whose names begin with a UUID.
const UNFINISHED: &str = ".unfinished-";

/// Where an attempt's files are.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    path: PathBuf,
    attempt: AttemptId,
}

impl Folder {
    pub(super) fn new(builds: &Path, attempt: AttemptId) -> Self {
        Self {
            path: builds.join(attempt.to_string()),
            attempt,
        }
    }

    pub(super) const fn attempt(&self) -> AttemptId {
        self.attempt
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn exists(&self) -> bool {
        self.path.is_dir()
    }

    pub(super) fn plan(&self) -> PathBuf {
        self.path.join("plan.json")
    }

    pub(super) fn source(&self) -> PathBuf {
        self.path.join("source")
    }

    pub(super) fn scratch(&self) -> PathBuf {
        self.path.join("scratch")
    }

    pub(super) fn storage(&self) -> PathBuf {
        self.path.join("storage")
    }

    /// What a step is to log in with.
    pub(super) fn credentials(&self, step: StepName) -> PathBuf {
        self.path.join("credentials").join(step.as_str())
    }

    /// The processes' own folders, in place of the user's: (environment variable, folder).
    pub(super) fn homes(&self) -> [(&'static str, PathBuf); 3] {
        [("HOME", "home"), ("TMPDIR", "tmp"), ("XDG_RUNTIME_DIR", "run")]
            .map(|(name, folder)| (name, self.path.join(folder)))
    }

    pub(super) fn log(&self, step: StepName) -> PathBuf {
        self.path.join(format!("{}.log", step.as_str()))
    }

    pub(super) fn report(&self, step: StepName) -> PathBuf {
        self.path.join(format!("{}.report", step.as_str()))
    }

    /// What the agent itself has to say; builds print into the log.
    pub(super) fn complaints(&self, step: StepName) -> PathBuf {
        self.path.join(format!("{}.err", step.as_str()))
    }

    /// What steps write their output to for the shipper, where there is one.
    pub(super) fn spool(&self) -> PathBuf {
        self.path.join("spool")
    }

    /// The file that holds the bearer token for the attempt's log.
    pub(super) fn log_token(&self) -> PathBuf {
        self.path.join("log-token")
    }

    /// What the shipper has to say.
    pub(super) fn shipper_complaints(&self) -> PathBuf {
        self.path.join("ship.err")
    }

    fn log_url_file(&self) -> PathBuf {
        self.path.join("log-url")
    }

    fn process(&self, step: StepName) -> PathBuf {
        self.path.join(format!("{}.pid", step.as_str()))
    }

    fn stop(&self) -> PathBuf {
        self.path.join("stop")
    }

    /// Makes the folder. `Ok(false)`: it was there.
    pub(super) fn create(
        &self,
        plan: &Plan,
        credentials: &CredentialFiles,
        log: Option<&LogAccess>,
    ) -> Result<bool, CreateError> {
        if self.exists() {
            return Ok(false);
        }
        let builds = self.path.parent().unwrap_or(Path::new("/"));
        let new = Self {
            path: builds.join(format!("{UNFINISHED}{}", Uuid::new_v4())),
            attempt: self.attempt,
        };
        let made = new
            .fill(plan, credentials, log)
            .map_err(CreateError::Nothing)
            .and_then(|()| match fs::rename(&new.path, &self.path) {
                Ok(()) => Ok(true),
                Err(_) if self.exists() => Ok(false),
                Err(error) => Err(CreateError::Unknown(error)),
            });
        if !matches!(made, Ok(true)) {
            // What stays is swept at the next start.
            let _ = fs::remove_dir_all(&new.path);
        }
        made
    }

    fn fill(&self, plan: &Plan, credentials: &CredentialFiles, log: Option<&LogAccess>) -> io::Result<()> {
        let mut private = fs::DirBuilder::new();
        private.mode(0o700);
        private.create(&self.path)?;
        for folder in [self.scratch(), self.storage()]
            .into_iter()
            .chain(self.homes().map(|(_, folder)| folder))
        {
            private.create(folder)?;
        }
        let steps = [
            (StepName::Source, &credentials.source),
            (StepName::Build, &credentials.build),
        ];
        for (step, files) in steps.into_iter().filter(|(_, files)| !files.is_empty()) {
            let folder = self.credentials(step);
            private.recursive(true).create(&folder)?;
            for file in files {
                write_private(&folder.join(&file.name), file.content.expose())?;
            }
        }
        if let Some(log) = log {
            fs::DirBuilder::new().mode(0o700).create(self.spool())?;
            write_private(&self.log_token(), log.token.expose().as_bytes())?;
            fs::write(self.log_url_file(), &log.url)?;
        }
        fs::write(self.plan(), serde_json::to_vec(plan)?)
    }

    /// Moves the folder out of sight, for removal.
    pub(super) fn set_aside(&self) -> io::Result<PathBuf> {
        let aside = self.path.with_file_name(format!("{UNFINISHED}{}", Uuid::new_v4()));
        fs::rename(&self.path, &aside).map(|()| aside)
    }

    /// Notes that the attempt is to stop, for whoever supervises it.
    pub(super) fn request_stop(&self) -> io::Result<()> {
        fs::write(self.stop(), "")
    }

    /// Whether somebody wants the attempt to stop; the answer to a push may have said so, too.
    pub(super) fn stop_requested(&self) -> bool {
        self.stop().exists() || self.spool().join("cancel").exists()
    }

    /// Where the attempt's log is to be sent, if it is to be sent.
    pub(super) fn log_url(&self) -> Option<String> {
        fs::read_to_string(self.log_url_file()).ok()
    }

    /// Notes that the log is to be sent there from now on.
    pub(super) fn record_log_url(&self, url: &str) -> io::Result<()> {
        let new = self.path.join("log-url.new");
        fs::write(&new, url)?;
        fs::rename(new, self.log_url_file())
    }

    /// Tells the shipper that no step begins any more.
    pub(super) fn note_over(&self) -> io::Result<()> {
        fs::write(self.spool().join("over"), "")
    }

    /// Notes that the step begins. Returns when it did first.
    pub(super) fn record_start(&self, step: StepName) -> io::Result<DateTime<Utc>> {
        let file = self.path.join(format!("{}.start", step.as_str()));
        File::options().append(true).create(true).open(&file)?;
        modified(&file).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Notes which process carries out the step.
    pub(super) fn record_process(&self, step: StepName, process: &ProcessId) -> io::Result<()> {
        let new = self.path.join("pid.new");
        fs::write(&new, process.to_string())?;
        fs::rename(new, self.process(step))
    }

    /// The step's process, if it was noted.
    pub(super) fn recorded_process(&self, step: StepName) -> Option<ProcessId> {
        fs::read_to_string(self.process(step)).ok()?.parse().ok()
    }

    /// What the step left behind. To be asked once its process has ended.
    pub(super) fn step_end(&self, step: StepName) -> StepEnd {
        let report: Option<Report> = fs::read(self.report(step))
            .ok()
            .and_then(|json| serde_json::from_slice(&json).ok());
        let at = [self.report(step), self.log(step), self.process(step)]
            .iter()
            .find_map(|file| modified(file));
        StepEnd {
            succeeded: report
                .as_ref()
                .is_some_and(|report| report.exit == Exit::Code(0) && report.problem.is_none()),
            at: at.unwrap_or_default(),
            report,
        }
    }
}

fn write_private(file: &Path, content: &[u8]) -> io::Result<()> {
    let mut private = OpenOptions::new();
    private.write(true).create_new(true).mode(0o600);
    private.open(file)?.write_all(content)
}

/// Why a folder wasn't made.
#[derive(Debug)]
pub(super) enum CreateError {
    /// Certainly there is none.
    Nothing(io::Error),
    /// Nobody knows.
    Unknown(io::Error),
}

/// The attempts that have a folder.
pub(super) fn attempts(builds: &Path) -> io::Result<Vec<AttemptId>> {
    let names = fs::read_dir(builds)?.map(|entry| Ok(entry?.file_name()));
    let names: Vec<_> = names.collect::<io::Result<_>>()?;
    Ok(names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect())
}

/// Folders that a killed process was making or removing.
pub(super) fn unfinished(builds: &Path) -> io::Result<Vec<PathBuf>> {
    let entries: Vec<_> = fs::read_dir(builds)?.collect::<io::Result<_>>()?;
    let unfinished = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with(UNFINISHED);
    Ok(entries
        .iter()
        .filter(|entry| unfinished(entry))
        .map(fs::DirEntry::path)
        .collect())
}

fn modified(file: &Path) -> Option<DateTime<Utc>> {
    let at: DateTime<Utc> = fs::metadata(file).ok()?.modified().ok()?.into();
    Some(at.trunc_subsecs(6))
}
