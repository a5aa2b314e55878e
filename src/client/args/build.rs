//! Flags of `kiln build`. What belongs together is read together, after clap: so all that is wrong is said at once.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueHint};

use super::{Common, value::duration};
use crate::domain::spec::{Builder, Supersede};

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
    #[arg(long = "build-arg", value_name = "NAME=VALUE")]
    pub build_args: Vec<String>,
    /// Secret of the project for RUN --mount=type=secret,id=MOUNT; NAME alone is both
    #[arg(long = "secret", value_name = "MOUNT=NAME")]
    pub secrets: Vec<String>,
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
    #[arg(long = "label", value_name = "NAME=VALUE")]
    pub labels: Vec<String>,
    /// Variable of a Dockerfile template; turns the Dockerfile into one
    #[arg(long = "template", value_name = "NAME=VALUE")]
    pub template: Vec<String>,
    /// Program that makes the image
    #[arg(long, value_name = "BUILDER", value_parser = builders())]
    pub builder: Option<String>,
    /// Secret of the project with the registry's user and password; can be given several times
    #[arg(long, value_name = "NAME")]
    pub registry_credentials: Vec<String>,
    /// Secret of the project for a private repository
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
    /// Key of the builds of which the newest counts, such as app/main
    #[arg(long, value_name = "KEY")]
    pub group: Option<String>,
    /// Cancel older builds of the group: those that are queued, or also those that run
    #[arg(long, value_name = "WHICH", requires = "group", value_parser = Supersede::ALL.map(|(name, _)| name))]
    pub supersede: Option<String>,
    /// Wait until no other build of the group runs
    #[arg(long, requires = "group")]
    pub serialize: bool,
    /// Share a build that is in flight for the same request
    #[arg(long)]
    pub coalesce: bool,
    /// Note to keep with the build
    #[arg(long = "annotation", value_name = "NAME=VALUE")]
    pub annotations: Vec<String>,
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
