//! The ceiling: the same statements by pgbench, prepared, over as many connections.

use std::{
    fmt::Write as _,
    fs,
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, bail};
use tempfile::TempDir;
use url::Url;

use super::capture::{Captured, times_named};
use crate::{Rate, stats::quantile};

/// Writing the log of latencies costs the ceiling something: only this share of the transactions is written.
const LOGGED: &str = "0.25";

pub(crate) struct Pgbench {
    url: String,
    folder: TempDir,
    variables: Vec<String>,
}

impl Pgbench {
    /// Turns `$n` into variables of pgbench; the build's id, which must differ each time, is counted.
    pub(crate) fn new(url: &Url, captured: &Captured) -> anyhow::Result<Self> {
        let mut script = String::from("\\set n :n + 1\n");
        let mut variables = vec!["n=0".to_owned()];
        for (index, statement) in captured.statements.iter().enumerate() {
            let mut text = statement.text.clone();
            // From the last, so that $1 doesn't match the beginning of $10.
            for (number, value) in statement.parameters.iter().enumerate().rev() {
                let variable = format!("s{index}_{number}");
                let placeholder = format!("${}", number + 1);
                let times = times_named(value, &captured.id);
                if times > 0 {
                    // Ids grow with time, as those of version 7 do: the round's prefix, a counter, the client.
                    let id = "(:prefix || lpad(to_hex(:n::bigint * 1024 + :client_id::bigint), 20, '0'))::uuid";
                    text = text.replace(&placeholder, &format!("ARRAY[{}]", vec![id; times].join(", ")));
                } else {
                    text = text.replace(&placeholder, &format!(":{variable}"));
                    variables.push(format!("{variable}={value}"));
                }
            }
            writeln!(script, "{text};")?;
        }
        let folder = tempfile::tempdir()?;
        fs::write(folder.path().join("script.sql"), script)?;
        Ok(Self {
            url: url.to_string(),
            folder,
            variables,
        })
    }

    pub(crate) fn run(&self, connections: u32, seconds: u32) -> anyhow::Result<Rate> {
        let log = self.folder.path().join("latencies");
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
        let mut command = Command::new("pgbench");
        command
            .current_dir(self.folder.path())
            .args(["-n", "-M", "prepared", "-f", "script.sql", "-j", "1"])
            .args(["-c", &connections.to_string(), "-T", &seconds.to_string()])
            .args(["--log", "--sampling-rate", LOGGED, "--log-prefix"])
            .arg(&log)
            .args(["-D", &format!("prefix={now:012x}")]);
        for variable in &self.variables {
            command.args(["-D", variable]);
        }
        let output = command.arg(&self.url).output().context("pgbench")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let per_second = text
            .lines()
            .find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
        let (true, Some(per_second)) = (output.status.success(), per_second) else {
            bail!("pgbench: {text}{}", String::from_utf8_lossy(&output.stderr));
        };

        let mut latencies = Vec::new();
        for entry in fs::read_dir(self.folder.path())? {
            let path = entry?.path();
            if path.to_string_lossy().starts_with(&*log.to_string_lossy()) {
                let lines = fs::read_to_string(&path)?;
                // Client, number, microseconds, …
                let micros = lines
                    .lines()
                    .filter_map(|line| line.split(' ').nth(2)?.parse::<f64>().ok());
                latencies.extend(micros.map(|micros| micros / 1000.0));
                fs::remove_file(path)?;
            }
        }
        Ok(Rate {
            per_second,
            p50_ms: quantile(&latencies, 0.5),
            p99_ms: quantile(&latencies, 0.99),
        })
    }
}
