//! Secrets of a project: credentials for git servers and registries, and values for `RUN --mount=type=secret`.
//!
//! What is secret is held in types that don't show it in their `Debug` form, can't be serialised by accident and wipe
//! their memory when they are dropped.

mod material;
mod need;
mod read;

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use zeroize::Zeroizing;

pub use self::{
    need::{Need, Purpose},
    read::{Limits, NewSecret},
};
use super::{
    attempt_token::AttemptToken,
    spec::{ImageRef, Invalid, text::checked_text},
};

checked_text! {
    /// A secret's name within its project.
    SecretName, |text| {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let valid = (1..=63).contains(&text.len())
            && text.bytes().all(|b| plain(b) || matches!(b, b'-' | b'_' | b'.'))
            && text.bytes().next().is_some_and(plain);
        if valid {
            Ok(())
        } else {
            Err(Invalid::new("expected a secret's name: lower-case letters, digits, `-`, `_` and `.`, beginning with a letter or digit, at most 63 bytes"))
        }
    }
}

checked_text! {
    /// What a Dockerfile calls a secret: the `id` of `RUN --mount=type=secret`.
    SecretMountId, |text| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let valid = (1..=128).contains(&text.len())
            && text.bytes().all(|b| plain(b) || matches!(b, b'-' | b'.'))
            && text.bytes().next().is_some_and(plain);
        if valid {
            Ok(())
        } else {
            Err(Invalid::new("expected an id of `RUN --mount=type=secret`: letters, digits, `-`, `_` and `.`, not beginning with a dash or dot, at most 128 bytes"))
        }
    }
}

/// What a secret is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SecretKind {
    /// Reading a source: a git repository, or an archive behind a login.
    Git,
    /// Pulling from and pushing to a registry.
    Registry,
    /// A value that a Dockerfile mounts.
    Build,
}

impl SecretKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Git, Self::Registry, Self::Build];

    /// The kind as it stands in JSON and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Git => "git",
            Self::Registry => "registry",
            Self::Build => "build",
        }
    }
}

impl fmt::Display for SecretKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for SecretKind {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| Invalid::new("expected git, registry or build"))
    }
}

/// What a secret's data consist of; known without decrypting them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SecretForm {
    /// User and password.
    Password,
    /// A token.
    Token,
    /// A private SSH key, with the host keys to trust.
    SshKey,
    /// A value.
    Value,
}

impl SecretForm {
    /// Every form.
    pub const ALL: [Self; 4] = [Self::Password, Self::Token, Self::SshKey, Self::Value];

    /// The form as it stands in JSON and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Password => "password",
            Self::Token => "token",
            Self::SshKey => "ssh_key",
            Self::Value => "value",
        }
    }
}

impl FromStr for SecretForm {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|form| form.as_str() == text)
            .ok_or_else(|| Invalid::new("expected password, token, ssh_key or value"))
    }
}

/// Text that nobody is to see.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    /// Takes the text over.
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The text, for whoever uses it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Bytes that nobody is to see.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretBytes(Zeroizing<Vec<u8>>);

impl SecretBytes {
    /// Takes the bytes over.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Zeroizing::new(bytes.into()))
    }

    /// The bytes, for whoever uses them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// A registry's host with its port, as it stands in image references.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegistryHost(String);

impl RegistryHost {
    /// The host.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RegistryHost {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = || {
            Invalid::new(
                "expected a registry's host as in image references, such as `registry.example:5000`: no scheme, no path; Docker Hub's is `docker.io`",
            )
        };
        if text.contains('/') {
            return Err(expected());
        }
        // The rule of image references, so that the two can be compared.
        let image: ImageRef = format!("{text}/image").parse().map_err(|_| expected())?;
        Ok(Self(image.registry().to_owned()))
    }
}

impl fmt::Display for RegistryHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What opens a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GitCredentials {
    /// User and password, over http or https.
    Password {
        /// The user.
        username: SecretText,
        /// The password.
        password: SecretText,
    },
    /// A token of a forge, over http or https.
    Token(SecretText),
    /// A private key, over ssh.
    Ssh(SshKey),
}

impl GitCredentials {
    /// The user that stands for a token. GitHub asks for this one with the tokens of its apps; forges take any name
    /// with a personal token.
    pub const TOKEN_USER: &'static str = "x-access-token";
}

/// A private SSH key without a passphrase, and the host keys to trust with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshKey {
    /// The key as a file holds it, with a newline at its end.
    pub private_key: SecretText,
    /// Lines of `known_hosts`.
    pub known_hosts: String,
}

/// What opens a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegistryCredentials {
    /// Which.
    pub registry: RegistryHost,
    /// The user.
    pub username: SecretText,
    /// The password or token.
    pub password: SecretText,
}

/// What a secret holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretData {
    /// For [`SecretKind::Git`].
    Git(GitCredentials),
    /// For [`SecretKind::Registry`].
    Registry(RegistryCredentials),
    /// For [`SecretKind::Build`].
    Build(SecretBytes),
}

impl SecretData {
    /// What it is for.
    pub const fn kind(&self) -> SecretKind {
        match self {
            Self::Git(_) => SecretKind::Git,
            Self::Registry(_) => SecretKind::Registry,
            Self::Build(_) => SecretKind::Build,
        }
    }

    /// What it consists of.
    pub const fn form(&self) -> SecretForm {
        match self {
            Self::Git(GitCredentials::Password { .. }) | Self::Registry(_) => SecretForm::Password,
            Self::Git(GitCredentials::Token(_)) => SecretForm::Token,
            Self::Git(GitCredentials::Ssh(_)) => SecretForm::SshKey,
            Self::Build(_) => SecretForm::Value,
        }
    }

    /// The registry that it is for.
    pub const fn registry(&self) -> Option<&RegistryHost> {
        match self {
            Self::Registry(credentials) => Some(&credentials.registry),
            Self::Git(_) | Self::Build(_) => None,
        }
    }
}

/// Where an attempt gets its upload, and what it shows there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadAccess {
    /// The upload's address, as pods reach the service.
    pub url: String,
    /// The attempt's token.
    pub token: AttemptToken,
}

/// Where an attempt pushes its log, and what it shows there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogAccess {
    /// The log's address, as pods reach the service.
    pub url: String,
    /// The attempt's token.
    pub token: AttemptToken,
}

/// The decrypted secrets that one attempt needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// For the source.
    pub source: Option<GitCredentials>,
    /// For pulling and pushing; at most one for each registry.
    pub registries: Vec<RegistryCredentials>,
    /// What the Dockerfile mounts.
    pub secrets: BTreeMap<SecretMountId, SecretBytes>,
    /// The key of `RUN --mount=type=ssh`.
    pub ssh: Option<SshKey>,
    /// How the source step gets the upload that it is to build from.
    pub upload: Option<UploadAccess>,
    /// How the attempt pushes its log; absent where attempts can't reach the service.
    pub log: Option<LogAccess>,
}

impl Credentials {
    /// Those for a registry.
    pub fn registry(&self, host: &str) -> Option<&RegistryCredentials> {
        self.registries
            .iter()
            .find(|credentials| credentials.registry.as_str() == host)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_and_hosts_are_plain() {
        for text in ["a", "forge-token", "0.a_b"] {
            assert!(text.parse::<SecretName>().is_ok(), "{text}");
        }
        for text in ["", "-a", ".a", "A", "a b", "a/b", "a,b", &"a".repeat(64)] {
            assert!(text.parse::<SecretName>().is_err(), "{text}");
        }
        for text in ["a", "NPM_TOKEN", "_x", "a.b-c"] {
            assert!(text.parse::<SecretMountId>().is_ok(), "{text}");
        }
        for text in ["", "-a", ".a", "a,src=/etc/shadow", "a b", "a/b", "é"] {
            assert!(text.parse::<SecretMountId>().is_err(), "{text}");
        }
        for (text, host) in [
            ("registry.example:5000", "registry.example:5000"),
            ("Registry.Example", "registry.example"),
            ("localhost", "localhost"),
            ("index.docker.io", "docker.io"),
        ] {
            assert_eq!(text.parse::<RegistryHost>().expect(text).as_str(), host);
        }
        for text in [
            "",
            "registry",
            "https://registry.example",
            "registry.example/team",
            "a b.c",
            "r.example:0",
        ] {
            assert!(text.parse::<RegistryHost>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn nothing_secret_is_shown(value in "[a-z0-9]{12,40}") {
            let text = || SecretText::new(value.clone());
            let ssh = || SshKey { private_key: text(), known_hosts: String::new() };
            let registry = || RegistryCredentials {
                registry: "r.example".parse().expect("a host"),
                username: text(),
                password: text(),
            };
            let all = [
                GitCredentials::Password { username: text(), password: text() },
                GitCredentials::Token(text()),
                GitCredentials::Ssh(ssh()),
            ];
            for source in all {
                let credentials = Credentials {
                    source: Some(source.clone()),
                    registries: vec![registry()],
                    secrets: [("id".parse().expect("an id"), SecretBytes::new(value.clone()))].into(),
                    ssh: Some(ssh()),
                    upload: None,
                    log: None,
                };
                let shown = [
                    format!("{credentials:?}"),
                    format!("{credentials:#?}"),
                    format!("{:?}", SecretData::Git(source)),
                ];
                prop_assert!(shown.iter().all(|shown| !shown.contains(&value)));
            }
        }
    }
}
