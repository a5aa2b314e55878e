//! Flags of the commands about builds that are there.

use clap::Args;

use super::{BuildName, Common, Moment, value::moment};
use crate::domain::{event::StepName, state::StateName};

/// `kiln get`.
#[derive(Clone, Debug, Args)]
pub struct Get {
    /// The build: its id, or how it begins, 8 characters at least
    #[arg(value_name = "BUILD")]
    pub id: BuildName,
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
    /// Only builds with this label, or with any value of it; can be given several times
    #[arg(long = "label", value_name = "NAME[=VALUE]")]
    pub labels: Vec<String>,
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
    /// The build: its id, or how it begins, 8 characters at least
    #[arg(value_name = "BUILD")]
    pub id: BuildName,
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
    /// The builds: their ids, or how they begin, 8 characters at least
    #[arg(value_name = "BUILD", required = true)]
    pub ids: Vec<BuildName>,
    /// What every command takes.
    #[command(flatten)]
    pub common: Common,
}

/// `kiln retry`.
#[derive(Clone, Debug, Args)]
pub struct Retry {
    /// The build: its id, or how it begins, 8 characters at least
    #[arg(value_name = "BUILD")]
    pub id: BuildName,
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

fn states() -> [&'static str; 7] {
    StateName::ALL.map(StateName::as_str)
}

fn steps() -> [&'static str; 2] {
    StepName::ALL.map(StepName::as_str)
}
