//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::config::Overrides;
use crate::domain::project::{ProjectName, Scope};

/// A container-image build service: one pod per build, logs and status over SSE.
#[derive(Debug, Parser)]
#[command(name = "kiln", version, propagate_version = true)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub overrides: Overrides,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the API and the workers
    Serve(Serve),
    /// Run everything on this machine, on a private Postgres: nothing needs to be set up
    Dev(Dev),
    /// Bring the database's schema up to date
    Migrate(Migrate),
    /// Print the API's description (OpenAPI 3.1)
    Openapi,
    /// Look at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Manage tokens, straight in the database
    #[command(subcommand)]
    Token(TokenCommand),
}

/// Flags of `kiln serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// Parts to run in this process
    #[arg(long, value_delimiter = ',', default_values = ["api", "worker"], value_name = "ROLE")]
    pub roles: Vec<Role>,
    /// Bring the schema up to date first
    #[arg(long)]
    pub migrate: bool,
}

/// Flags of `kiln migrate`.
#[derive(Debug, Args)]
pub struct Migrate {
    /// Wait up to this many seconds for a database that can't be reached
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    pub wait: u32,
}

/// Flags of `kiln dev`.
#[derive(Debug, Args)]
pub struct Dev {
    /// Folder for the database and the builds; .kiln in the current folder, or for root /var/lib/kiln-dev, when absent
    #[arg(long, env = "KILN_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Build this folder of text files once it serves, to show that and how it works
    #[arg(long, value_name = "DIR")]
    pub sample: Option<PathBuf>,
}

/// Parts of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Takes requests and streams logs.
    Api,
    /// Carries out builds.
    Worker,
}

/// `kiln config …`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Say whether the configuration can be used
    Check,
}

/// `kiln token …`.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token and print it; it can't be shown again
    Create(TokenCreate),
}

/// Flags of `kiln token create`.
#[derive(Debug, Args)]
pub struct TokenCreate {
    /// Project that the token belongs to; made if there is none
    #[arg(long, default_value = "default")]
    pub project: ProjectName,
    /// What the token is for
    #[arg(long, default_value = "cli")]
    pub name: String,
    /// What the token allows: builds:read, builds:write, project:admin, admin
    #[arg(long = "scope", value_delimiter = ',', default_values = ["builds:write"], value_name = "SCOPE")]
    pub scopes: Vec<Scope>,
    /// Days until it stops working; for ever without
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36500))]
    pub expires_in_days: Option<u32>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
