//! The configuration file. Unknown keys are errors; the environment and flags win over it.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use url::Url;

use super::secrets::Secrets;
use crate::{
    domain::{
        queue::QueueConfig,
        secret::SecretText,
        spec::{Builder, Limits, MemoryBytes},
    },
    engine::{self, keeper::Retention},
    http::{Cors, UploadConfig},
    journal::{LogLimits, TailLimits},
    runner::{kubernetes, local, registry::Registry},
};

/// All that can be configured. `deploy/kiln.toml` shows it with comments.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where the API listens.
    pub listen: SocketAddr,
    /// Stands before the paths in links.
    pub external_url: Option<Url>,
    /// How build pods reach the API.
    pub agent_url: Option<Url>,
    /// The database.
    pub database: Database,
    /// Where attempts run.
    pub runner: RunnerKind,
    /// The cluster, for `runner = "kubernetes"`.
    pub kubernetes: kubernetes::config::Config,
    /// The host, for `runner = "local"`.
    pub local: local::LocalConfig,
    /// Registries that need more than HTTPS by their own name.
    pub registry: Vec<Registry>,
    /// Keys for the secrets of projects.
    pub secrets: Secrets,
    /// What requests may ask for.
    pub limits: Limits,
    /// In which order builds are taken from the queue, and what projects may have.
    pub queue: QueueConfig,
    /// Which web pages may call the API.
    pub cors: Cors,
    /// What is held for those who follow builds.
    pub streams: Streams,
    /// What callers may send to be built from.
    pub uploads: UploadConfig,
    /// How much of logs is kept.
    pub logs: LogLimits,
    /// Limits and timers of the engine.
    pub engine: engine::Config,
    /// Where journals of finished builds are moved to.
    pub archive: Archive,
    /// How long things are kept.
    pub retention: Retention,
    /// Where traces go.
    pub telemetry: Telemetry,
    /// What is written to standard error.
    pub log: Log,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            external_url: None,
            agent_url: None,
            database: Database::default(),
            runner: RunnerKind::Kubernetes,
            kubernetes: kubernetes::config::Config::default(),
            local: local::LocalConfig::default(),
            registry: Vec::new(),
            secrets: Secrets::default(),
            limits: Limits::default(),
            queue: QueueConfig::default(),
            cors: Cors::default(),
            streams: Streams::default(),
            uploads: UploadConfig::default(),
            logs: LogLimits::default(),
            engine: engine::Config::default(),
            archive: Archive::default(),
            retention: Retention::default(),
            telemetry: Telemetry::default(),
            log: Log::default(),
        }
    }
}

/// The database.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Database {
    /// `postgres://user:password@host/database`; a folder as `host` is a Unix socket.
    pub url: String,
    /// Connections this replica opens at most.
    pub max_connections: u32,
    /// How long to wait for a free connection.
    pub acquire_timeout_seconds: u32,
}

impl Database {
    const DEFAULT_URL: &str = "postgres:///kiln";

    /// Whether somebody has said which database to use.
    pub fn is_set(&self) -> bool {
        self.url != Self::DEFAULT_URL
    }
}

impl Default for Database {
    fn default() -> Self {
        Self {
            url: Self::DEFAULT_URL.to_owned(),
            max_connections: 20,
            acquire_timeout_seconds: 5,
        }
    }
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The URL may hold a password.
        f.debug_struct("Database")
            .field("max_connections", &self.max_connections)
            .finish_non_exhaustive()
    }
}

/// Where attempts run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunnerKind {
    /// As pods.
    Kubernetes,
    /// As processes of this host. For trying Kiln, and for its tests.
    Local,
}

/// Where journals of finished builds are moved to.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Archive {
    /// `file:///folder`, `s3://bucket/folder`, `gs://bucket/folder` or `az://container/folder`; they stay in the
    /// database when absent.
    pub url: Option<Url>,
    /// How long a build is over before its journal is moved.
    pub after_seconds: u32,
}

impl Default for Archive {
    fn default() -> Self {
        Self {
            url: None,
            after_seconds: 3600,
        }
    }
}

/// What is held in memory of the output of builds that somebody follows.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Streams {
    /// Of one build.
    pub tail_bytes_per_build: MemoryBytes,
    /// Of all builds together.
    pub tail_bytes: MemoryBytes,
}

impl Default for Streams {
    fn default() -> Self {
        let TailLimits { build, total } = TailLimits::default();
        Self {
            tail_bytes_per_build: MemoryBytes(build as u64),
            tail_bytes: MemoryBytes(total as u64),
        }
    }
}

impl Streams {
    /// In the words of the journal.
    pub fn tails(&self) -> TailLimits {
        let bytes = |size: MemoryBytes| usize::try_from(size.0).unwrap_or(usize::MAX);
        TailLimits {
            build: bytes(self.tail_bytes_per_build),
            total: bytes(self.tail_bytes),
        }
    }
}

/// Where traces go.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// A collector that takes OTLP over HTTP, such as `http://collector.example:4318`; without one nothing is traced.
    pub otlp_endpoint: Option<Url>,
}

/// What is written to standard error.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// How.
    pub format: LogFormat,
    /// Which events, in the notation of `tracing-subscriber`'s `EnvFilter`.
    pub filter: String,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            format: LogFormat::Text,
            filter: "info,sqlx=warn,kube_client=off".to_owned(),
        }
    }
}

/// Forms of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Why a configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("the configuration {} can't be read: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file isn't right.
    #[error("the configuration {} isn't valid:\n{source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A value doesn't work with the others.
    #[error("the configuration isn't valid: {0}")]
    Invalid(String),
}

/// What the environment and flags can set; each wins over the file.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Configuration")]
pub struct Overrides {
    /// Configuration file (TOML)
    #[arg(long, global = true, env = "KILN_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Database to use, such as `postgres://kiln:secret@db/kiln`
    #[arg(
        long,
        global = true,
        env = "KILN_DATABASE_URL",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub database_url: Option<String>,
    /// Address that the API listens on
    #[arg(long, global = true, env = "KILN_LISTEN", value_name = "HOST:PORT")]
    pub listen: Option<SocketAddr>,
    /// Keys for secrets. They are no flag, because everybody sees those.
    #[arg(skip = Secrets::from_environment())]
    pub secrets_key: Option<SecretText>,
    /// Namespace of build pods
    #[arg(long, global = true, env = "KILN_NAMESPACE", value_name = "NAME")]
    pub namespace: Option<String>,
    /// What stands before the paths in links
    #[arg(long, global = true, env = "KILN_EXTERNAL_URL", value_name = "URL")]
    pub external_url: Option<Url>,
    /// How build pods reach the API
    #[arg(long, global = true, env = "KILN_AGENT_URL", value_name = "URL")]
    pub agent_url: Option<Url>,
}

impl Config {
    /// The configuration that a process is to use.
    pub fn load(overrides: &Overrides) -> Result<Self, ConfigError> {
        let mut config = match &overrides.config {
            Some(path) => Self::read(path)?,
            None => Self::default(),
        };
        if let Some(url) = &overrides.database_url {
            config.database.url.clone_from(url);
        }
        config.secrets.keys.clone_from(&overrides.secrets_key);
        if let Some(listen) = overrides.listen {
            config.listen = listen;
        }
        if let Some(namespace) = &overrides.namespace {
            config.kubernetes.namespace.clone_from(namespace);
        }
        if let Some(url) = &overrides.external_url {
            config.external_url = Some(url.clone());
        }
        if let Some(url) = &overrides.agent_url {
            config.agent_url = Some(url.clone());
        }
        if config.runner == RunnerKind::Local {
            // The one builder that works as processes of a host.
            config.limits.builders = vec![Builder::Buildah];
        }
        config.check()?;
        Ok(config)
    }

    /// Reads the files that it names and that a service needs from its start on.
    pub fn read_files(&mut self) -> Result<(), ConfigError> {
        for registry in &mut self.registry {
            registry.read_ca().map_err(ConfigError::Invalid)?;
        }
        Ok(())
    }

    fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        toml::from_str(&text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })
    }

    fn check(&self) -> Result<(), ConfigError> {
        let invalid = |problem: String| Err(ConfigError::Invalid(problem));
        if self.database.max_connections < 3 {
            return invalid("`database.max_connections` must be at least 3".to_owned());
        }
        let buildah = self.limits.builders.contains(&Builder::Buildah);
        if self.runner == RunnerKind::Kubernetes && buildah && self.kubernetes.buildah_image.is_none() {
            return invalid("`limits.builders` names buildah, so `kubernetes.buildah_image` must be set".to_owned());
        }
        if self.engine.lease_seconds < 3 {
            return invalid("`engine.lease_seconds` must be at least 3".to_owned());
        }
        if self.engine.max_attempts == 0 || self.engine.claim_batch == 0 {
            return invalid("`engine.max_attempts` and `engine.claim_batch` must be at least 1".to_owned());
        }
        if let Err(problem) = self.limits.check() {
            return invalid(format!("`[limits]`: {problem}"));
        }
        if let Err(problem) = self.queue.check() {
            return invalid(format!("`[queue]`: {problem}"));
        }
        for (name, url) in [("external_url", &self.external_url), ("agent_url", &self.agent_url)] {
            if url
                .as_ref()
                .is_some_and(|url| !matches!(url.scheme(), "http" | "https"))
            {
                return invalid(format!("`{name}` must begin with http:// or https://"));
            }
        }
        let uploads = &self.uploads;
        if uploads.max_bytes.0 == 0
            || uploads.keep_seconds == 0
            || uploads.max_entries == 0
            || uploads.max_concurrent == 0
            || uploads.max_concurrent_per_project == 0
        {
            return invalid("`[uploads]`: limits must be at least 1".to_owned());
        }
        if let Some(url) = &self.archive.url
            && !matches!(url.scheme(), "file" | "s3" | "gs" | "az")
        {
            return invalid("`archive.url` must begin with file://, s3://, gs:// or az://".to_owned());
        }
        let kept = &self.retention;
        if [
            kept.builds_days,
            Some(kept.deleted_builds_days),
            Some(kept.changes_days),
            Some(kept.hook_deliveries_days),
        ]
        .contains(&Some(0))
        {
            return invalid("`[retention]`: at least 1 day".to_owned());
        }
        if let Some(url) = &self.telemetry.otlp_endpoint
            && !matches!(url.scheme(), "http" | "https")
        {
            return invalid("`telemetry.otlp_endpoint` must begin with http:// or https://".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_are_errors_that_name_the_place() {
        let error = toml::from_str::<Config>("[engine]\nlease_second = 3\n").expect_err("unknown key");
        assert!(error.to_string().contains("lease_second"), "{error}");
    }

    #[test]
    fn passwords_are_not_shown() {
        let mut config = Config::default();
        config.database.url = "postgres://kiln:hunter2@db/kiln".to_owned();
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn values_that_do_not_fit_together_are_refused() {
        let mut config = Config::default();
        config.database.max_connections = 1;
        assert!(matches!(config.check(), Err(ConfigError::Invalid(_))));
        let mut config = Config::default();
        config.limits.builders.clear();
        assert!(matches!(config.check(), Err(ConfigError::Invalid(_))));
    }
}
