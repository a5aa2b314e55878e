//! Running git with an environment that nothing but the plan decides about.

use std::{env, io, path::Path, process::Command, sync::Arc, time::Duration};

use kiln_agent::wire::report::Exit;

use super::access::Access;
use crate::{
    capture::{kept::SharedKept, reader::Target, sink::Sink},
    process::Supervisor,
    step::Failure,
};

/// How much of a command's output is kept to judge it by.
const KEPT: usize = 64 * 1024;

/// What git takes from the agent's environment: where programs are, how to get through a proxy, whom to trust.
const INHERITED: [&str; 16] = [
    "ALL_PROXY",
    "CURL_CA_BUNDLE",
    "GIT_EXEC_PATH",
    "GIT_SSL_CAINFO",
    "GIT_SSL_CAPATH",
    "HTTPS_PROXY",
    "LD_LIBRARY_PATH",
    "NO_PROXY",
    "PATH",
    "SSL_CERT_DIR",
    "SSL_CERT_FILE",
    "TMPDIR",
    "all_proxy",
    "http_proxy",
    "https_proxy",
    "no_proxy",
];

/// Settings that win over every configuration file. They go through the environment, so that the git processes that
/// git starts for submodules have them too.
const SETTINGS: [(&str, &str); 14] = [
    ("advice.detachedHead", "false"),
    ("core.fsmonitor", "false"),
    ("core.hooksPath", "/dev/null"),
    ("credential.helper", ""),
    // Only run for files that `.gitattributes` puts into Git LFS; a pointer must not be taken for the file.
    ("filter.lfs.process", "git-lfs filter-process"),
    ("filter.lfs.required", "true"),
    ("filter.lfs.smudge", "git-lfs smudge -- %f"),
    ("gc.auto", "0"),
    // A transfer below this rate for this long is given up.
    ("http.lowSpeedLimit", "100"),
    ("http.lowSpeedTime", "60"),
    ("lfs.transfer.maxretries", "3"),
    ("lfs.transfer.maxretrydelay", "2"),
    ("protocol.version", "2"),
    // In a pod the folder's owner is whoever made the volume.
    ("safe.directory", "*"),
];

/// Runs git commands in one folder.
pub(super) struct Git<'a> {
    folder: &'a Path,
    access: Access,
    supervisor: &'a mut Supervisor,
    sink: &'a Arc<Sink>,
    last_exit: Exit,
}

/// What a command came to.
#[derive(Debug)]
pub(super) struct Ran {
    exit: Exit,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

impl Ran {
    pub(super) fn succeeded(&self) -> bool {
        self.exit == Exit::Code(0)
    }
}

impl<'a> Git<'a> {
    pub(super) const fn new(
        folder: &'a Path,
        access: Access,
        supervisor: &'a mut Supervisor,
        sink: &'a Arc<Sink>,
    ) -> Self {
        Self {
            folder,
            access,
            supervisor,
            sink,
            last_exit: Exit::Code(1),
        }
    }

    /// The folder, as an argument.
    pub(super) fn folder(&self) -> String {
        self.folder.to_string_lossy().into_owned()
    }

    /// Exit status of the last command that failed.
    pub(super) const fn last_exit(&self) -> Exit {
        self.last_exit
    }

    /// Writes a message into the log.
    pub(super) fn say(&self, message: &str) {
        self.sink.say(message);
    }

    /// Waits.
    pub(super) fn pause(&mut self, duration: Duration) -> Result<(), Failure> {
        Ok(self.supervisor.pause(duration)?)
    }

    /// Runs a command whose output is for the log.
    pub(super) fn run(&mut self, args: &[&str]) -> Result<Ran, Failure> {
        self.execute(args, true)
    }

    /// Runs a command whose output is only an answer.
    pub(super) fn ask(&mut self, args: &[&str]) -> Result<Ran, Failure> {
        self.execute(args, false)
    }

    fn execute(&mut self, args: &[&str], logged: bool) -> Result<Ran, Failure> {
        let (stdout, stderr) = (Arc::new(SharedKept::new(KEPT)), Arc::new(SharedKept::new(KEPT)));
        let target = |kept: &Arc<SharedKept>| {
            if logged {
                Target::LogAndMemory(Arc::clone(self.sink), Arc::clone(kept))
            } else {
                Target::Memory(Arc::clone(kept))
            }
        };
        let targets = (target(&stdout), target(&stderr));
        let job = self
            .supervisor
            .start(&mut self.command(args), targets.0, targets.1)
            .map_err(|error| cannot_start(&error))?;
        let exit = self.supervisor.wait(job)?;
        if exit != Exit::Code(0) {
            self.last_exit = exit;
        }
        Ok(Ran {
            exit,
            stdout: stdout.text(),
            stderr: stderr.text(),
        })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("git");
        command.args(args).current_dir(self.folder).env_clear();
        command.envs(env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_inherited)));
        // git's own folder: nothing that a repository holds can put a `.netrc` or a configuration there.
        let home = self.folder.join(".git");
        command
            .env("HOME", &home)
            .env("XDG_CONFIG_HOME", &home)
            .env("LC_ALL", "C")
            .env("GIT_ALLOW_PROTOCOL", "http:https:ssh")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_SSH_COMMAND", &self.access.ssh)
            .env("GIT_TERMINAL_PROMPT", "0");
        let settings = SETTINGS.into_iter();
        let settings = settings.chain(
            self.access
                .helper
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_str())),
        );
        let mut count = 0;
        for (at, (key, value)) in settings.enumerate() {
            count = at + 1;
            command
                .env(format!("GIT_CONFIG_KEY_{at}"), key)
                .env(format!("GIT_CONFIG_VALUE_{at}"), value);
        }
        command.env("GIT_CONFIG_COUNT", count.to_string());
        command
    }
}

/// Kiln's own variables are a mark by which the processes of an attempt are found.
fn is_inherited(name: &str) -> bool {
    INHERITED.contains(&name) || name.starts_with("KILN_")
}

fn cannot_start(error: &io::Error) -> Failure {
    Failure::internal(match error.kind() {
        io::ErrorKind::NotFound => {
            "git is not installed where the source is fetched: install it, or use a source image that has it".to_owned()
        }
        _ => format!("git can't be started: {error}"),
    })
}
