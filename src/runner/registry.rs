//! Registries as the operator describes them: `[[registry]]` in the configuration.

use std::path::PathBuf;

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
    /// Certificate authority of the registry, in PEM: trusted for this registry only, beside the public ones.
    #[serde(default)]
    pub ca: Option<String>,
    /// File that holds `ca`; read when the service starts.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Whether the service itself asks this registry for the digest after a push. Switch it off where the service
    /// can't reach the registry or may not read from it.
    #[serde(default = "yes")]
    pub verify: bool,
}

impl Registry {
    /// Reads `ca_file` into `ca`; an error says what is wrong.
    pub fn read_ca(&mut self) -> Result<(), String> {
        let host = &self.host;
        if let Some(path) = &self.ca_file {
            if self.ca.is_some() {
                return Err(format!(
                    "the registry `{host}` has both `ca` and `ca_file`: leave one out"
                ));
            }
            let read = std::fs::read_to_string(path);
            let pem = read.map_err(|error| {
                format!(
                    "`ca_file` of the registry `{host}`, {}, can't be read: {error}",
                    path.display()
                )
            })?;
            self.ca = Some(pem);
        }
        match &self.ca {
            Some(pem) if !pem.contains("-----BEGIN CERTIFICATE-----") => Err(format!(
                "the certificate authority of the registry `{host}` isn't PEM: expected `-----BEGIN CERTIFICATE-----`"
            )),
            _ => Ok(()),
        }
    }
}

const fn yes() -> bool {
    true
}
