//! Log lines on standard error, and traces to a collector where one is configured.

mod otlp;

use std::io::IsTerminal as _;

use tokio::runtime::Handle;
use tracing_subscriber::{EnvFilter, Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _};

pub use self::otlp::Traces;
use super::config::{ConfigError, Log, LogFormat, Telemetry};

/// Starts logging and tracing; once a process. Traces are sent by tasks of `runtime`, for as long as what is returned
/// lives.
pub fn init(log: &Log, telemetry: &Telemetry, runtime: &Handle) -> Result<Option<Traces>, ConfigError> {
    let filter = EnvFilter::try_new(&log.filter)
        .map_err(|error| ConfigError::Invalid(format!("`log.filter` can't be read: {error}")))?;
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let lines = match log.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let traces = match &telemetry.otlp_endpoint {
        Some(endpoint) => Some(Traces::to(endpoint, runtime)?),
        None => None,
    };
    let installed = tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .with(traces.as_ref().map(Traces::layer))
        .try_init();
    // A second call keeps the first subscriber.
    drop(installed);
    Ok(traces)
}
