//! The client as its callers start it: a process with an environment of its own.

use std::{fs, path::Path, process::Stdio};

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

use super::service::{TestApp, soon, token};
use kiln::domain::project::Scope;

/// What a run of the client gave.
#[derive(Debug)]
pub(super) struct Ran {
    pub(super) code: i32,
    pub(super) out: String,
    pub(super) error: String,
}

impl Ran {
    #[track_caller]
    pub(super) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:#?}");
        self
    }

    #[track_caller]
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }

    #[track_caller]
    pub(super) fn says(&self, words: &[&str]) {
        for words in words {
            assert!(self.error.contains(words), "{words:?} isn't in {self:#?}");
        }
    }
}

/// Somebody at a shell.
pub(super) struct Shell {
    pub(super) home: TempDir,
    pub(super) url: Option<String>,
    pub(super) token: Option<String>,
}

impl Shell {
    /// Somebody without any setting.
    pub(super) fn bare() -> Self {
        Self {
            home: tempfile::tempdir().expect("a folder"),
            url: None,
            token: None,
        }
    }

    /// Somebody who has set the service's address and a token for it.
    pub(super) async fn of(app: &TestApp, scope: Scope) -> Self {
        Self {
            url: Some(app.base().to_owned()),
            token: Some(token(&app.pool, "default", scope, None).await),
            ..Self::bare()
        }
    }

    /// The variables of its environment.
    pub(super) fn variables(&self) -> Vec<(&'static str, String)> {
        let mut variables = vec![("HOME", self.home.path().display().to_string())];
        variables.extend(self.url.clone().map(|url| ("KILN_URL", url)));
        variables.extend(self.token.clone().map(|token| ("KILN_TOKEN", token)));
        variables
    }

    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
        command
            .args(arguments)
            .env_clear()
            .envs(self.variables())
            .env("PATH", std::env::var("PATH").expect("set"))
            .current_dir(self.home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    pub(super) async fn run(&self, arguments: &[&str]) -> Ran {
        finish(&mut self.command(arguments)).await
    }

    /// Writes a file below the home folder.
    pub(super) fn write(&self, path: &str, text: &str) {
        let path = self.home.path().join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, text).expect("written");
    }

    pub(super) fn folder(&self) -> &Path {
        self.home.path()
    }
}

/// Runs a command to its end.
pub(super) async fn finish(command: &mut Command) -> Ran {
    let output = soon("the end of the client", command.output()).await.expect("it runs");
    let ran = Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).expect("UTF-8"),
        error: String::from_utf8(output.stderr).expect("UTF-8"),
    };
    // Who types commands isn't told of the API behind them.
    for api in ["/v1/", "Authorization", "\"push\"", "`ref`", "`subdir`"] {
        assert!(!ran.error.contains(api), "{api:?} is in {ran:#?}");
    }
    for pointer in ["/name: ", "/data: ", "/data/"] {
        let spoken = ran.error.lines().any(|line| line.trim_start().starts_with(pointer));
        assert!(!spoken, "{pointer:?} is in {ran:#?}");
    }
    ran
}
