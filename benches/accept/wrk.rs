//! Posts builds as fast as they are answered, by wrk: a few microseconds of processor time a request, so that the
//! load leaves the two processors to what is measured.

use std::{fs, process::Command};

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use tempfile::TempDir;

use crate::Rate;

/// Prints what was measured as one line of JSON.
const DONE: &str = r#"
done = function(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests":%d,"micros":%d,"refused":%d,"broken":%d,"p50":%d,"p99":%d}\n',
    summary.requests, summary.duration, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"#;

#[derive(Debug, Deserialize)]
struct Summary {
    requests: f64,
    micros: f64,
    refused: u64,
    broken: u64,
    p50: f64,
    p99: f64,
}

pub(crate) struct Wrk {
    folder: TempDir,
}

impl Wrk {
    pub(crate) fn new(token: &str, body: &str) -> anyhow::Result<Self> {
        ensure!(!body.contains("]==]"), "the body ends the string it is in");
        let folder = tempfile::tempdir()?;
        let script = format!(
            "wrk.method = 'POST'\nwrk.body = [==[{body}]==]\nwrk.headers['Content-Type'] = 'application/json'\n\
             wrk.headers['Authorization'] = 'Bearer {token}'\n{DONE}"
        );
        fs::write(folder.path().join("post.lua"), script)?;
        Ok(Self { folder })
    }

    /// Posts to the service at `base` for some seconds. Any answer but success is an error.
    pub(crate) fn run(&self, base: &str, connections: u32, seconds: u32) -> anyhow::Result<Rate> {
        let output = Command::new("wrk")
            .args([
                "-t",
                "1",
                "-c",
                &connections.to_string(),
                "-d",
                &format!("{seconds}s"),
                "-s",
            ])
            .arg(self.folder.path().join("post.lua"))
            .arg(format!("{base}/v1/builds"))
            .output()
            .context("wrk (Debian package wrk)")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let summary = text
            .lines()
            .rev()
            .find_map(|line| serde_json::from_str::<Summary>(line).ok());
        let Some(summary) = summary else {
            bail!("wrk: {text}{}", String::from_utf8_lossy(&output.stderr));
        };
        ensure!(
            summary.refused == 0 && summary.broken == 0 && summary.requests > 0.0,
            "not every build was accepted: {summary:?}"
        );
        Ok(Rate {
            per_second: summary.requests / (summary.micros / 1e6),
            p50_ms: summary.p50 / 1000.0,
            p99_ms: summary.p99 / 1000.0,
        })
    }
}
