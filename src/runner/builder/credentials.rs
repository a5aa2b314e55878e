//! An attempt's credentials as files: what they are called, what they hold, and which of them a plan names. Each step
//! has a folder of its own, so that neither sees what is the other's.

use std::path::{Path, PathBuf};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use kiln_agent::wire::plan::SourceCredentials;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::{Env, text};
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
pub(super) fn source(env: &Env<'_>) -> Option<SourceCredentials> {
    let folder = env.source_credentials;
    env.credentials.source.as_ref().map(|credentials| match credentials {
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

/// The source step's files that hold secrets: names of users and keys of hosts are none.
pub(super) fn masked_in_source(env: &Env<'_>) -> Vec<PathBuf> {
    let secret = |file: &SecretFile| ![GIT_USERNAME, GIT_KNOWN_HOSTS].contains(&file.name.as_str());
    let files = files(env.credentials).source.into_iter().filter(secret);
    files.map(|file| env.source_credentials.join(file.name)).collect()
}

/// The build step's files that hold secrets.
pub(super) fn masked_in_build(env: &Env<'_>) -> Vec<PathBuf> {
    let files = files(env.credentials).build.into_iter();
    files.map(|file| env.build_credentials.join(file.name)).collect()
}

/// The variable that tells `buildctl` where logins for registries are, and the folder.
pub(super) fn docker_config_folder(env: &Env<'_>) -> Option<(String, String)> {
    let folder = text(env.build_credentials);
    (!env.credentials.registries.is_empty()).then(|| ("DOCKER_CONFIG".to_owned(), folder))
}

/// The variable that tells buildah where logins for registries are, and the file.
pub(super) fn registry_auth_file(env: &Env<'_>) -> Option<(String, String)> {
    let file = text(&env.build_credentials.join(REGISTRIES));
    (!env.credentials.registries.is_empty()).then(|| ("REGISTRY_AUTH_FILE".to_owned(), file))
}

/// Flags for what the Dockerfile mounts; `buildctl` and `buildah` have the same.
pub(super) fn mount_flags(env: &Env<'_>) -> Vec<String> {
    let path = |name: &str| text(&env.build_credentials.join(name));
    let mut flags = Vec::new();
    for (index, id) in env.credentials.secrets.keys().enumerate() {
        flags.extend(["--secret".to_owned(), format!("id={id},src={}", path(&mount(index)))]);
    }
    if env.credentials.ssh.is_some() {
        flags.extend(["--ssh".to_owned(), format!("default={}", path(SSH_KEY))]);
    }
    flags
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::Value;

    use super::*;
    use crate::{
        domain::{
            secret::{SecretText, SshKey},
            spec::Builder,
        },
        runner::builder::{
            self,
            tests::{assignment, env, values},
        },
    };

    fn credentials() -> Credentials {
        let login = |registry: &str| RegistryCredentials {
            registry: registry.parse().unwrap(),
            username: SecretText::new("ann"),
            password: SecretText::new("s3cr:t"),
        };
        Credentials {
            source: Some(GitCredentials::Token(SecretText::new("t0k3n"))),
            registries: vec![login("docker.io"), login("registry.example:5000")],
            secrets: [("npm", "npm-v4lue"), ("pip.conf", "pip-v4lue")]
                .map(|(id, value)| (id.parse().unwrap(), SecretBytes::new(value)))
                .into(),
            ssh: Some(SshKey {
                private_key: SecretText::new("pr1vate"),
                known_hosts: "host".to_owned(),
            }),
            upload: None,
            log: None,
        }
    }

    const SECRETS: [&str; 6] = [
        "s3cr:t",
        "YW5uOnMzY3I6dA==",
        "t0k3n",
        "npm-v4lue",
        "pip-v4lue",
        "pr1vate",
    ];

    #[test]
    fn each_step_has_files_of_its_own() {
        let files = files(&credentials());
        let names = |files: &[SecretFile]| files.iter().map(|file| file.name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&files.source), ["git-username", "git-password"]);
        assert_eq!(names(&files.build), ["config.json", "secret-0", "secret-1", "ssh-key"]);
        let config: Value = serde_json::from_slice(files.build[0].content.expose()).unwrap();
        for host in ["https://index.docker.io/v1/", "registry.example:5000"] {
            assert_eq!(config["auths"][host]["auth"], "YW5uOnMzY3I6dA==");
        }
        assert_eq!(files.build[2].content.expose(), b"pip-v4lue");
        assert!(super::files(&Credentials::default()).is_empty());
        assert!(!format!("{files:?}").contains("v4lue"));
    }

    #[test]
    fn plans_name_files_and_hold_no_secret() {
        let credentials = credentials();
        for builder in Builder::ALL {
            let env = Env {
                credentials: &credentials,
                ..env(&[])
            };
            let plan = builder::plan(&assignment(builder), &env);
            let text = serde_json::to_string(&plan).unwrap();
            assert!(SECRETS.iter().all(|secret| !text.contains(secret)), "{text}");
            let argv = &plan.build.commands[0].argv;
            assert_eq!(
                values(argv, "--secret"),
                [
                    "id=npm,src=/kiln/credentials/build/secret-0",
                    "id=pip.conf,src=/kiln/credentials/build/secret-1"
                ]
            );
            assert_eq!(values(argv, "--ssh"), ["default=/kiln/credentials/build/ssh-key"]);
            let (variable, path) = match builder {
                Builder::Buildkit => ("DOCKER_CONFIG", "/kiln/credentials/build"),
                Builder::Buildah => ("REGISTRY_AUTH_FILE", "/kiln/credentials/build/config.json"),
            };
            assert_eq!(plan.build.env[variable], path);
            let in_build = ["config.json", "secret-0", "secret-1", "ssh-key"];
            let in_build = in_build.map(|name| Path::new("/kiln/credentials/build").join(name));
            assert_eq!(plan.build.mask, in_build);
            assert_eq!(plan.source.mask, [Path::new("/kiln/credentials/source/git-password")]);
            assert_eq!(
                source(&env),
                Some(SourceCredentials::Password {
                    username: Path::new("/kiln/credentials/source/git-username").to_owned(),
                    password: Path::new("/kiln/credentials/source/git-password").to_owned(),
                })
            );
        }
    }
}
