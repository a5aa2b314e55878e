//! Flags of the client's commands.

mod build;
mod builds;
mod secrets;
mod tokens;
mod value;

use std::path::PathBuf;

use clap::{Args, ValueEnum, ValueHint};

pub(super) use self::value::{argument, pair, secret};
pub use self::{
    build::Build,
    builds::{Cancel, Get, List, Logs, Retry},
    secrets::{Secret, SecretDelete, SecretKind, SecretSet},
    tokens::{TokenDelete, TokenRequest},
    value::{BuildName, Moment, Pair},
};
use crate::domain::project::ProjectName;

/// Which service, as whom.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Service")]
pub struct Connection {
    /// Address of the service
    #[arg(long, help = "Address of the service; http://127.0.0.1:8080 when nothing sets it", env = "KILN_URL", value_name = "URL", value_hint = ValueHint::Url)]
    pub url: Option<String>,
    /// Token; other users of this machine can see flags, so prefer the variable or a file
    #[arg(long, env = "KILN_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub token: Option<String>,
    /// File that holds the token; - is standard input
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub token_file: Option<PathBuf>,
    /// Project; the token's own when nothing sets it
    #[arg(long, env = "KILN_PROJECT", value_name = "NAME")]
    pub project: Option<ProjectName>,
}

/// How the answer is written.
#[derive(Clone, Copy, Debug, Default, Args)]
#[command(next_help_heading = "Output")]
pub struct Output {
    /// Write what the service answers, as JSON, to standard output
    #[arg(long)]
    pub json: bool,
    /// When to use colours
    #[arg(
        long,
        help = "When to use colours; NO_COLOR turns them off, too",
        value_enum,
        value_name = "WHEN",
        default_value_t
    )]
    pub color: Color,
}

/// When to use colours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// On a terminal.
    #[default]
    Auto,
    /// Everywhere.
    Always,
    /// Nowhere.
    Never,
}

/// What every command takes.
#[derive(Clone, Debug, Default, Args)]
pub struct Common {
    /// Which service.
    #[command(flatten)]
    pub connection: Connection,
    /// How the answer is written.
    #[command(flatten)]
    pub output: Output,
}
