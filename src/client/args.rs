//! Flags of the client's commands.

use std::{path::PathBuf, time::Duration};

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand, ValueEnum, ValueHint};
use uuid::Uuid;

use crate::domain::{
    event::StepName,
    project::{ProjectName, Scope},
    spec::Builder,
    state::StateName,
};

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

/// `NAME=VALUE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair(pub String, pub String);

fn pair(text: &str) -> Result<Pair, String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok(Pair(name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

/// `NAME=VALUE`, or `NAME` for the value of the variable of that name.
fn argument(text: &str) -> Result<Pair, String> {
    if text.contains('=') {
        return pair(text);
    }
    match std::env::var(text) {
        Ok(value) if !text.is_empty() => Ok(Pair(text.to_owned(), value)),
        _ => Err(format!(
            "expected NAME=VALUE, or the name of a variable that is set; `{text}` is not"
        )),
    }
}

/// `MOUNT=NAME`; just a name means both.
fn secret(text: &str) -> Result<Pair, String> {
    let expected = "expected MOUNT=NAME: the id in the Dockerfile's --mount=type=secret, and the project's secret";
    match text.split_once('=') {
        None if !text.is_empty() => Ok(Pair(text.to_owned(), text.to_owned())),
        Some((mount, name)) if !mount.is_empty() && !name.is_empty() && !name.contains([',', '=']) => {
            Ok(Pair(mount.to_owned(), name.to_owned()))
        }
        _ => Err(expected.to_owned()),
    }
}

/// Seconds, or a number with a unit: `90s`, `30m`, `2h`.
fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let factor = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => 0,
    };
    let seconds = number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    match seconds {
        Some(seconds) if factor > 0 => Ok(Duration::from_secs(seconds)),
        _ => Err("expected seconds, or a number with a unit such as 90s, 30m, 2h or 7d".to_owned()),
    }
}

/// A time, or how long ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// That time.
    At(DateTime<Utc>),
    /// That long before now.
    Ago(Duration),
}

fn moment(text: &str) -> Result<Moment, String> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(Moment::At(time.to_utc()));
    }
    let ago = duration(text).map(Moment::Ago);
    ago.map_err(|_| "expected a time such as 2030-01-31T12:00:00Z, or how long ago: 90s, 30m, 2h or 7d".to_owned())
}

/// `kiln build`.
#[derive(Clone, Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line")]
pub struct Build {
    /// What to build
    #[arg(help = "Folder to send, git URL (https://git.example/app.git#ref:folder), or URL of a tar archive", value_name = "PATH|URL", default_value = ".", value_hint = ValueHint::DirPath)]
    pub source: String,
    /// Name to push the image under, with its registry in front; can be given several times
    #[arg(short, long = "tag", visible_alias = "image", value_name = "IMAGE")]
    pub tags: Vec<String>,
    /// Build without pushing
    #[arg(long)]
    pub no_push: bool,
    /// Dockerfile; from the working folder for a folder, from the context for a URL
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: Option<PathBuf>,
    /// Value for an ARG; NAME alone takes the variable's value
    #[arg(long = "build-arg", value_name = "NAME=VALUE", value_parser = argument)]
    pub build_args: Vec<Pair>,
    /// Secret of the project for RUN --mount=type=secret,id=MOUNT; NAME alone is both
    #[arg(long = "secret", value_name = "MOUNT=NAME", value_parser = secret)]
    pub secrets: Vec<Pair>,
    /// Secret of the project with the key for RUN --mount=type=ssh
    #[arg(long, value_name = "NAME")]
    pub ssh: Option<String>,
    /// Stage to build
    #[arg(long, value_name = "STAGE")]
    pub target: Option<String>,
    /// What the image runs on, such as linux/amd64
    #[arg(long = "platform", value_name = "OS/ARCH", value_delimiter = ',')]
    pub platforms: Vec<String>,
    /// Label of the image
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = pair)]
    pub labels: Vec<Pair>,
    /// Variable of a Dockerfile template; turns the Dockerfile into one
    #[arg(long = "template", value_name = "NAME=VALUE", value_parser = pair)]
    pub template: Vec<Pair>,
    /// Program that makes the image
    #[arg(long, value_name = "BUILDER", value_parser = builders())]
    pub builder: Option<String>,
    /// Secret of the project with the registry's user and password; can be given several times
    #[arg(long, value_name = "NAME")]
    pub registry_credentials: Vec<String>,
    /// Secret of the project for a private repository or archive
    #[arg(long, value_name = "NAME")]
    pub git_credentials: Option<String>,
    /// Check out the repository's submodules
    #[arg(long)]
    pub submodules: bool,
    /// Digest of a tar archive, which an URL of one needs
    #[arg(long, value_name = "DIGEST")]
    pub sha256: Option<String>,
    /// Image to take cached steps from; can be given several times
    #[arg(long, value_name = "IMAGE")]
    pub cache_from: Vec<String>,
    /// Image to keep steps in
    #[arg(long, value_name = "IMAGE")]
    pub cache_to: Option<String>,
    /// Use no cache, not even the project's
    #[arg(long, conflicts_with_all = ["cache_from", "cache_to"])]
    pub no_cache: bool,
    /// Processors, such as 2 or 500m
    #[arg(long, value_name = "CPU")]
    pub cpu: Option<String>,
    /// Memory, such as 4Gi
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Disk, such as 20Gi
    #[arg(long, value_name = "SIZE")]
    pub disk: Option<String>,
    /// How long it may run: 90s, 30m, 2h
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub timeout: Option<Duration>,
    /// Higher goes first in the queue
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub priority: Option<i32>,
    /// Note to keep with the build
    #[arg(long = "annotation", value_name = "NAME=VALUE", value_parser = pair)]
    pub annotations: Vec<Pair>,
    /// Show the log until the build is over; the default
    #[arg(long, overrides_with = "detach")]
    pub follow: bool,
    /// Print the build's id and don't wait
    #[arg(short, long, overrides_with = "follow")]
    pub detach: bool,
    /// What every command takes.
    #[command(flatten)]
    pub common: Common,
}

fn builders() -> [&'static str; 2] {
    Builder::ALL.map(Builder::as_str)
}

fn states() -> [&'static str; 7] {
    StateName::ALL.map(StateName::as_str)
}

fn steps() -> [&'static str; 2] {
    StepName::ALL.map(StepName::as_str)
}

/// `kiln get`.
#[derive(Clone, Debug, Args)]
pub struct Get {
    /// The build
    #[arg(value_name = "BUILD")]
    pub id: Uuid,
    /// Wait until it is over; then the exit code tells how it ended
    #[arg(short, long)]
    pub wait: bool,
    /// What every command takes.
    #[command(flatten)]
    pub common: Common,
}

/// `kiln list`.
#[derive(Clone, Debug, Args)]
pub struct List {
    /// Only builds in this state; can be given several times
    #[arg(long = "state", value_name = "STATE", value_delimiter = ',', value_parser = states())]
    pub states: Vec<String>,
    /// Only builds of this branch, tag or commit
    #[arg(long = "ref", value_name = "REF")]
    pub reference: Option<String>,
    /// Only builds of this image
    #[arg(long, visible_alias = "tag", value_name = "IMAGE")]
    pub image: Option<String>,
    /// Only builds with this label; can be given several times
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = pair)]
    pub labels: Vec<Pair>,
    /// Only builds since then: a time, or how long ago (90s, 30m, 2h, 7d)
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub since: Option<Moment>,
    /// How many builds at most
    #[arg(short = 'n', long, value_name = "NUMBER", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: u32,
    /// What every command takes.
    #[command(flatten)]
    pub common: Common,
}

/// `kiln logs`.
#[derive(Clone, Debug, Args)]
pub struct Logs {
    /// The build
    #[arg(value_name = "BUILD")]
    pub id: Uuid,
    /// Stay until the build is over; then the exit code tells how it ended
    #[arg(short, long)]
    pub follow: bool,
    /// Only this step's output
    #[arg(long, value_name = "STEP", value_parser = steps())]
    pub step: Option<String>,
    /// Begin after this event
    #[arg(long, value_name = "SEQ", default_value_t = 0, value_parser = clap::value_parser!(i64).range(0..))]
    pub from: i64,
    /// What every command takes.
    #[command(flatten)]
    pub common: Common,
}

/// `kiln cancel`.
#[derive(Clone, Debug, Args)]
pub struct Cancel {
    /// The builds
    #[arg(value_name = "BUILD", required = true)]
    pub ids: Vec<Uuid>,
    /// What every command takes.
    #[command(flatten)]
    pub common: Common,
}

/// `kiln retry`.
#[derive(Clone, Debug, Args)]
pub struct Retry {
    /// The build
    #[arg(value_name = "BUILD")]
    pub id: Uuid,
    /// Show the new build's log until it is over; the default
    #[arg(long, overrides_with = "detach")]
    pub follow: bool,
    /// Print the new build's id and don't wait
    #[arg(short, long, overrides_with = "follow")]
    pub detach: bool,
    /// What every command takes.
    #[command(flatten)]
    pub common: Common,
}

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

/// `kiln token delete`.
#[derive(Clone, Debug, Args)]
pub struct TokenDelete {
    /// The token's id, as `kiln token list` shows it
    #[arg(value_name = "ID")]
    pub id: Uuid,
    /// What every command takes.
    #[command(flatten)]
    pub common: Common,
}

/// A token to be made.
#[derive(Clone, Debug)]
pub struct TokenRequest {
    /// What it is for.
    pub name: String,
    /// What it allows.
    pub scopes: Vec<Scope>,
    /// Days until it stops working.
    pub expires_in_days: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_moments() {
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("30m"), Ok(Duration::from_mins(30)));
        assert_eq!(duration("7d"), Ok(Duration::from_hours(168)));
        for bad in ["", "m", "1w", "-5", "99999999999999999999h", "1h30m"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(moment("2h"), Ok(Moment::Ago(Duration::from_hours(2))));
        assert_eq!(
            moment("1970-01-01T01:00:00+01:00"),
            Ok(Moment::At(DateTime::UNIX_EPOCH))
        );
        assert!(moment("yesterday").is_err());
    }

    #[test]
    fn pairs_and_secrets() {
        let two = |a: &str, b: &str| Ok(Pair(a.to_owned(), b.to_owned()));
        assert_eq!(pair("a=b=c"), two("a", "b=c"));
        assert_eq!(pair("a="), two("a", ""));
        assert!(pair("=b").is_err() && pair("a").is_err());
        assert!(argument("KILN_NO_SUCH_VARIABLE").is_err());
        assert_eq!(secret("npm=npm-token"), two("npm", "npm-token"));
        assert_eq!(secret("npm"), two("npm", "npm"));
        for bad in ["", "=x", "x=", "id=npm,src=x"] {
            assert!(secret(bad).is_err(), "{bad}");
        }
    }
}
