//! A `kiln serve` process.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::Mutex,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::process::{Child, Command};

use super::{Api, DEADLINE, eventually};

/// Draining open requests and drivers takes less.
const EXIT_LIMIT: Duration = Duration::from_secs(30);

/// A running `kiln serve`, or one that was ended.
pub(in crate::cluster) struct Replica {
    pub(in crate::cluster) api: Api,
    /// Where it listens.
    pub(super) address: String,
    log: PathBuf,
    /// Taken when it was ended.
    child: Mutex<Option<Child>>,
}

impl Replica {
    /// Starts a process and waits until its API listens. It needn't be ready.
    pub(super) async fn start(
        config: &Path,
        roles: &str,
        kubeconfig: &Path,
        log: PathBuf,
        token: &str,
        environment: Vec<(String, String)>,
    ) -> Self {
        let mut child = program(config)
            .envs(environment)
            .env("KUBECONFIG", kubeconfig)
            .args(["serve", "--migrate", "--roles", roles])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).expect("a log file"))
            .kill_on_drop(true)
            .spawn()
            .expect("kiln starts");
        let address = eventually("kiln listens", DEADLINE, || {
            let ended = child.try_wait().expect("its status");
            let text = std::fs::read_to_string(&log).expect("its log");
            assert!(ended.is_none(), "kiln ended: {text}");
            let said = text.lines().find(|line| line.contains(" serving "));
            let address = said.and_then(|line| Some(line.split_once("address=")?.1.trim().to_owned()));
            std::future::ready(address)
        })
        .await;
        Self {
            api: Api::new(&address, token),
            address,
            log,
            child: Mutex::new(Some(child)),
        }
    }

    /// Waits until it can launch builds.
    pub(in crate::cluster) async fn wait_until_ready(&self) {
        eventually("kiln is ready", DEADLINE, || async {
            self.api.ready().await.0.then_some(())
        })
        .await;
    }

    /// `kill -9`.
    pub(in crate::cluster) async fn kill(&self) {
        let mut child = self.take().expect("runs");
        child.kill().await.expect("dies");
    }

    /// SIGTERM.
    pub(in crate::cluster) async fn terminate(&self) -> ExitStatus {
        let mut child = self.take().expect("runs");
        signal(&child, Signal::SIGTERM);
        let exited = tokio::time::timeout(EXIT_LIMIT, child.wait()).await;
        exited
            .unwrap_or_else(|_| panic!("did not end within {} s of SIGTERM", EXIT_LIMIT.as_secs()))
            .expect("its status")
    }

    /// Sends it a signal that doesn't end it.
    pub(in crate::cluster) fn signal(&self, name: Signal) {
        signal(
            self.child.lock().expect("no panic meanwhile").as_ref().expect("runs"),
            name,
        );
    }

    /// Whether nobody has ended it.
    pub(super) fn is_up(&self) -> bool {
        self.child.lock().expect("no panic meanwhile").is_some()
    }

    /// What it wrote to its standard error.
    pub(in crate::cluster) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).expect("its log")
    }

    /// The end of what it wrote to its standard error.
    pub(super) fn log_tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(80)..].join("\n")
    }

    fn take(&self) -> Option<Child> {
        self.child.lock().expect("no panic meanwhile").take()
    }
}

/// The program under test, with nothing but its configuration file.
pub(super) fn program(config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
    command
        .env_remove("KILN_CONFIG")
        .env_remove("KILN_DATABASE_URL")
        .env("NO_COLOR", "1")
        .arg("--config")
        .arg(config);
    command
}

fn signal(child: &Child, name: Signal) {
    let id = child.id().expect("not waited for yet");
    let id = Pid::from_raw(i32::try_from(id).expect("a process id"));
    kill(id, name).expect("the process is ours");
}
