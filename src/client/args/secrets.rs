//! Flags of `kiln secret`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum, ValueHint};

use super::Common;

/// `kiln secret …`.
#[derive(Clone, Debug, Subcommand)]
pub enum Secret {
    /// Store a secret; its value comes from a file or standard input and is never shown again
    Set(SecretSet),
    /// List the project's secrets, without their values
    List(Common),
    /// Delete a secret
    Delete(SecretDelete),
}

/// Kinds of secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SecretKind {
    /// For RUN --mount=type=secret.
    Build,
    /// User and password of a registry.
    Registry,
    /// Token, user and password, or SSH key of a git server.
    Git,
}

/// `kiln secret set`.
#[derive(Clone, Debug, Args)]
pub struct SecretSet {
    /// The secret's name
    #[arg(value_name = "NAME")]
    pub name: String,
    /// What it is for
    #[arg(long, value_enum, value_name = "KIND", default_value = "build")]
    pub kind: SecretKind,
    /// File with the value: the build secret, the password, the token or the SSH key; - is standard input
    #[arg(long, value_name = "FILE", default_value = "-", value_hint = ValueHint::FilePath)]
    pub from: PathBuf,
    /// Registry's host (kind registry)
    #[arg(long, value_name = "HOST")]
    pub registry: Option<String>,
    /// User whose password the value is (kinds registry and git; git without it: the value is a token)
    #[arg(long, value_name = "USER")]
    pub username: Option<String>,
    /// The value is an SSH key (kind git), and this file says which hosts it is for
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "username")]
    pub known_hosts: Option<PathBuf>,
    /// What every command takes.
    #[command(flatten)]
    pub common: Common,
}

/// `kiln secret delete`.
#[derive(Clone, Debug, Args)]
pub struct SecretDelete {
    /// The secret's name
    #[arg(value_name = "NAME")]
    pub name: String,
    /// What every command takes.
    #[command(flatten)]
    pub common: Common,
}
