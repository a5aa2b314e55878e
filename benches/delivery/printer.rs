//! What the builds run: a program that prints the time, again and again.

use std::{
    env,
    io::Write as _,
    os::unix::process::parent_id,
    process::Stdio,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use tokio::process::{Child, Command};

/// Set in the process that prints: how, as JSON.
pub(crate) const PRINTING: &str = "KILN_BENCH_PRINTING";

/// How to print.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Printing {
    pub(crate) lines: u32,
    /// Between two lines.
    pub(crate) interval: Duration,
    /// When to begin, in microseconds since the Unix epoch.
    pub(crate) begin_us: i64,
}

impl Printing {
    /// So that so many programs are there before any of them prints.
    pub(crate) fn begins_soon(mut self, programs: usize) -> Self {
        let programs = i64::try_from(programs).unwrap_or(i64::MAX);
        self.begin_us = now_us() + 1_000_000 + programs * 30_000;
        self
    }
}

/// Microseconds since the Unix epoch.
pub(crate) fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// Prints the time, line by line.
pub(crate) fn print(printing: &Printing) -> anyhow::Result<()> {
    let mut output = std::io::stdout();
    let left = u64::try_from(printing.begin_us - now_us()).unwrap_or(0);
    // Programs that begin together print at different times.
    std::thread::sleep(Duration::from_micros(left) + printing.interval.mul_f64(rand::random_range(0.0..1.0)));
    for _ in 0..printing.lines {
        // As one write, so that it can't arrive in pieces.
        output.write_all(format!("{}\n", now_us()).as_bytes())?;
        output.flush()?;
        std::thread::sleep(printing.interval);
    }
    // Its end is not what is measured, and so it comes later: with the end of whoever started it.
    let parent = parent_id();
    while parent_id() == parent {
        std::thread::sleep(Duration::from_secs(1));
    }
    Ok(())
}

/// A program that prints into a pipe; killed when it is dropped.
pub(crate) fn spawn(printing: &Printing) -> anyhow::Result<Child> {
    let child = Command::new(env::current_exe()?)
        .env(PRINTING, serde_json::to_string(printing)?)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    Ok(child)
}
