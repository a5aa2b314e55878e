//! Registries as the operator describes them: `[[registry]]` in the configuration.

use serde::{Deserialize, Serialize};

/// How to reach a registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Registry {
    /// Host with its port, as it stands in image references: `docker.io`, `registry.example:5000`.
    pub host: String,
    /// Hosts to ask first when pulling from this one.
    #[serde(default)]
    pub mirrors: Vec<String>,
    /// Plain HTTP, or TLS without verification. Never the default.
    #[serde(default)]
    pub insecure: bool,
    /// Whether the service itself asks this registry for the digest after a push. Switch it off where the service
    /// can't reach the registry or may not read from it.
    #[serde(default = "yes")]
    pub verify: bool,
}

const fn yes() -> bool {
    true
}
