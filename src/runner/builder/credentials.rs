//! An attempt's credentials as files: what they are called, what they hold, and which of them a plan names. Each step
//! has a folder of its own, so that neither sees what is the other's.

use std::path::{Path, PathBuf};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use kiln_agent::wire::plan::SourceCredentials;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use crate::domain::secret::{Credentials, GitCredentials, RegistryCredentials, SecretBytes};

const GIT_USERNAME: &str = "git-username";
const GIT_PASSWORD: &str = "git-password";
const GIT_SSH_KEY: &str = "git-ssh-key";
const GIT_KNOWN_HOSTS: &str = "git-known-hosts";
/// Name and form of a Docker configuration, which BuildKit and buildah both read.
const REGISTRIES: &str = "config.json";
const SSH_KEY: &str = "ssh-key";
const UPLOAD_TOKEN: &str = "upload-token";

/// A file with something secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretFile {
    /// Its name in the step's folder.
    pub name: String,
    /// What it holds.
    pub content: SecretBytes,
}

impl SecretFile {
    fn new(name: impl Into<String>, content: impl Into<Vec<u8>>) -> Self {
        Self {
            name: name.into(),
            content: SecretBytes::new(content),
        }
    }
}

/// The files of an attempt. Their names differ between the steps, too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CredentialFiles {
    /// For the source step.
    pub source: Vec<SecretFile>,
    /// For the build step.
    pub build: Vec<SecretFile>,
}

impl CredentialFiles {
    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.source.is_empty() && self.build.is_empty()
    }
}

/// The files for an attempt's credentials.
pub fn files(credentials: &Credentials) -> CredentialFiles {
    let mut source = match &credentials.source {
        None => vec![],
        Some(GitCredentials::Password { username, password }) => vec![
            SecretFile::new(GIT_USERNAME, username.expose()),
            SecretFile::new(GIT_PASSWORD, password.expose()),
        ],
        Some(GitCredentials::Token(token)) => vec![
            SecretFile::new(GIT_USERNAME, GitCredentials::TOKEN_USER),
            SecretFile::new(GIT_PASSWORD, token.expose()),
        ],
        Some(GitCredentials::Ssh(key)) => vec![
            SecretFile::new(GIT_SSH_KEY, key.private_key.expose()),
            SecretFile::new(GIT_KNOWN_HOSTS, key.known_hosts.as_str()),
        ],
    };
    if let Some(upload) = &credentials.upload {
        source.push(SecretFile::new(UPLOAD_TOKEN, upload.token.expose()));
    }
    let mut build = Vec::new();
    if !credentials.registries.is_empty() {
        build.push(SecretFile::new(REGISTRIES, docker_config(&credentials.registries)));
    }
    for (index, value) in credentials.secrets.values().enumerate() {
        build.push(SecretFile::new(mount(index), value.expose()));
    }
    if let Some(key) = &credentials.ssh {
        build.push(SecretFile::new(SSH_KEY, key.private_key.expose()));
    }
    CredentialFiles { source, build }
}

fn mount(index: usize) -> String {
    format!("secret-{index}")
}

/// A Docker configuration with a login for each registry.
fn docker_config(registries: &[RegistryCredentials]) -> Vec<u8> {
    let auths: Map<String, Value> = registries
        .iter()
        .map(|credentials| {
            let login = Zeroizing::new(format!(
                "{}:{}",
                credentials.username.expose(),
                credentials.password.expose()
            ));
            let host = match credentials.registry.as_str() {
                // The name under which Docker's own tools keep it.
                "docker.io" => "https://index.docker.io/v1/",
                host => host,
            };
            (
                host.to_owned(),
                json!({"auth": BASE64_STANDARD.encode(login.as_bytes())}),
            )
        })
        .collect();
    json!({"auths": auths}).to_string().into_bytes()
}

/// The file with the token that opens the upload.
pub(super) fn upload_token(folder: &Path) -> PathBuf {
    folder.join(UPLOAD_TOKEN)
}

/// The source step's files, as its plan names them.
pub(super) fn source(credentials: Option<&GitCredentials>, folder: &Path) -> Option<SourceCredentials> {
    credentials.map(|credentials| match credentials {
        GitCredentials::Password { .. } | GitCredentials::Token(_) => SourceCredentials::Password {
            username: folder.join(GIT_USERNAME),
            password: folder.join(GIT_PASSWORD),
        },
        GitCredentials::Ssh(_) => SourceCredentials::Ssh {
            key: folder.join(GIT_SSH_KEY),
            known_hosts: folder.join(GIT_KNOWN_HOSTS),
        },
    })
}
