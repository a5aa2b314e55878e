//! A Postgres of a test's own, which it may end as it likes.

use std::{
    fs::File,
    os::unix::fs::{PermissionsExt as _, chown},
    path::PathBuf,
    process::Stdio,
};

use nix::unistd::{User, geteuid};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use url::Url;

use super::{DEADLINE, eventually};

/// A server on a socket in a folder of its own.
pub(in crate::cluster) struct Postgres {
    folder: TempDir,
    server: Option<Child>,
}

impl Postgres {
    /// Makes a database and starts its server.
    pub(in crate::cluster) async fn start() -> Self {
        let folder = TempDir::new().expect("a folder");
        // It refuses to run as root.
        if geteuid().is_root() {
            let user = User::from_name("postgres").expect("users").expect("the user postgres");
            chown(folder.path(), Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("ours");
        }
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).expect("ours");
        let made = program("initdb")
            .args([
                "-U",
                "postgres",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--no-locale",
                "--no-sync",
                "-D",
            ])
            .arg(folder.path().join("data"))
            .stdout(Stdio::null())
            .status()
            .await;
        assert!(made.expect("initdb runs").success());
        let mut postgres = Self { folder, server: None };
        postgres.resume().await;
        postgres
    }

    /// Its URL, for whoever may do everything.
    pub(in crate::cluster) fn url(&self) -> Url {
        let host = self.folder.path().display();
        format!("postgres:///postgres?host={host}&user=postgres")
            .parse()
            .expect("a URL")
    }

    /// Starts the server, and waits until it answers.
    pub(in crate::cluster) async fn resume(&mut self) {
        let folder = self.folder.path();
        let log = File::options()
            .create(true)
            .append(true)
            .open(folder.join("log"))
            .expect("a log");
        let server = program("postgres")
            .args(["-c", "listen_addresses=", "-c", "max_connections=100", "-k"])
            .arg(folder)
            .arg("-D")
            .arg(folder.join("data"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn();
        self.server = Some(server.expect("postgres starts"));
        let url = self.url();
        eventually("Postgres answers", DEADLINE, || async {
            use sqlx::Connection as _;
            sqlx::PgConnection::connect(url.as_str()).await.ok().map(drop)
        })
        .await;
    }

    /// Ends the server as if its machine had lost power.
    pub(in crate::cluster) async fn crash(&mut self) {
        let mut server = self.server.take().expect("runs");
        let id = nix::unistd::Pid::from_raw(i32::try_from(server.id().expect("runs")).expect("a process id"));
        nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGQUIT).expect("ours");
        server.wait().await.expect("ends");
    }
}

/// A program of Postgres, run as a user who isn't root.
fn program(name: &str) -> Command {
    let installed = || -> Option<PathBuf> {
        let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
        let mut programs: Vec<_> = versions.map(|version| version.path().join("bin").join(name)).collect();
        programs.retain(|program| program.exists());
        programs.sort();
        programs.pop()
    };
    let program = installed().unwrap_or_else(|| name.into());
    let mut command = if geteuid().is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]);
        command.arg(program);
        command
    } else {
        Command::new(program)
    };
    command.current_dir("/");
    command
}
