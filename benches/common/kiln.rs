//! A real `kiln` process.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use tempfile::TempDir;
use url::Url;

const PROGRAM: &str = env!("CARGO_BIN_EXE_kiln");
const START_LIMIT: Duration = Duration::from_secs(30);

/// To be called before any client is made.
pub(crate) fn prepare() {
    // Fails where there is one already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Runs a command of `kiln` to its end and gives what it printed.
pub(crate) fn run(database: &Url, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(PROGRAM)
        .args(arguments)
        .env_remove("KILN_CONFIG")
        .env("KILN_DATABASE_URL", database.as_str())
        .stdin(Stdio::null())
        .output()
        .context(PROGRAM)?;
    if !output.status.success() {
        bail!(
            "kiln {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// A running server; dropping it kills it.
pub(crate) struct Kiln {
    process: Child,
    folder: TempDir,
    /// Where the API answers, without a slash at the end.
    pub(crate) base: String,
}

impl Kiln {
    /// Starts `kiln serve` with a configuration (TOML) and waits until `ready` (a path of the API) answers 200.
    pub(crate) async fn start(
        configuration: &str,
        arguments: &[&str],
        environment: &[(&str, &str)],
        ready: &str,
    ) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("kiln.toml");
        fs::write(&file, configuration)?;
        let log = File::create(log_file(folder.path()))?;
        // Free a moment ago, which is good enough on a loopback that nobody else listens on by chance.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let process = Command::new(PROGRAM)
            .arg("serve")
            .args(arguments)
            .env("KILN_CONFIG", &file)
            .env("KILN_LISTEN", address.to_string())
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context(PROGRAM)?;
        let mut kiln = Self {
            process,
            folder,
            base: format!("http://{address}"),
        };
        kiln.wait_until(ready).await?;
        Ok(kiln)
    }

    async fn wait_until(&mut self, ready: &str) -> anyhow::Result<()> {
        let client = reqwest::Client::new();
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let answer = client.get(format!("{}{ready}", self.base)).send().await;
            if answer.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(());
            }
            if Instant::now() > deadline || self.process.try_wait()?.is_some() {
                bail!(
                    "kiln isn't ready:\n{}",
                    fs::read_to_string(log_file(self.folder.path()))?
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Its number, for looking at it under `/proc`.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }
}

fn log_file(folder: &Path) -> std::path::PathBuf {
    folder.join("log")
}

impl Drop for Kiln {
    fn drop(&mut self) {
        // It has ended already, or it ends now.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the server at `process` holds in memory, in MiB.
pub(crate) fn resident(process: u32) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: f64 = line
        .and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok())
        .context("/proc has no VmRSS")?;
    Ok(kib / 1024.0)
}
