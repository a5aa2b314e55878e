//! The command line.

use std::path::PathBuf;

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use super::config::Overrides;
use crate::{
    client::{
        self, Call,
        args::{Common, TokenDelete, TokenRequest},
    },
    domain::project::{ProjectName, Scope},
};

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
    /// What is asked of a running service.
    #[command(flatten)]
    Client(client::Verb),
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
    /// Manage the encryption of secrets, straight in the database
    #[command(subcommand)]
    Secrets(SecretsCommand),
    /// Make, list and delete tokens
    #[command(subcommand)]
    Token(TokenCommand),
    /// Print a script that completes commands and flags for a shell
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: Shell,
    },
}

/// The command line with its help. What sets up a service is no part of the help of commands that only call one.
pub fn command() -> clap::Command {
    let mut command = Cli::command();
    let server: Vec<_> = command
        .get_arguments()
        .filter(|argument| argument.is_global_set())
        .map(|argument| argument.get_id().clone())
        .collect();
    command.build();
    let verbs: Vec<_> = client::Verb::augment_subcommands(clap::Command::new(""))
        .get_subcommands()
        .map(|verb| verb.get_name().to_owned())
        .chain(["completions".to_owned()])
        .collect();
    for verb in verbs {
        command = command.mut_subcommand(verb, |verb| without(verb, &server));
    }
    command.mut_subcommand("token", |token| {
        token
            .mut_subcommand("list", |verb| without(verb, &server))
            .mut_subcommand("delete", |verb| without(verb, &server))
    })
}

/// The command, with these flags hidden from its help.
fn without(command: clap::Command, hidden: &[clap::Id]) -> clap::Command {
    let hide = |argument: clap::Arg| {
        let hide = argument.is_hide_set() || hidden.contains(argument.get_id());
        argument.hide(hide)
    };
    command.mut_args(hide).mut_subcommands(|inner| without(inner, hidden))
}

impl Command {
    /// The call of a running service that this is, or what it is otherwise.
    pub fn for_service(self) -> Result<Call, Box<Self>> {
        match self {
            Self::Client(verb) => Ok(Call::Verb(verb)),
            Self::Token(TokenCommand::List(common)) => Ok(Call::TokenList(common)),
            Self::Token(TokenCommand::Delete(flags)) => Ok(Call::TokenDelete(flags)),
            Self::Token(TokenCommand::Create(flags)) if flags.api => {
                let request = flags.request();
                Ok(Call::TokenCreate(flags.common, request))
            }
            other => Err(Box::new(other)),
        }
    }
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

/// `kiln secrets …`.
#[derive(Debug, Subcommand)]
pub enum SecretsCommand {
    /// Encrypt with the current key what an older one has encrypted
    Rotate,
}

/// `kiln token …`.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token and print it; it can't be shown again. Straight in the database, or with --api by a running service
    Create(TokenCreate),
    /// List the project's tokens
    List(Common),
    /// Delete a token; it stops working at once
    Delete(TokenDelete),
}

/// Flags of `kiln token create`.
#[derive(Debug, Args)]
pub struct TokenCreate {
    /// Ask a running service, with a token of the scope project:admin, instead of the database
    #[arg(long)]
    pub api: bool,
    /// What the token is for
    #[arg(long, default_value = "cli")]
    pub name: String,
    /// What the token allows: builds:read, builds:write, project:admin, admin
    #[arg(long = "scope", value_delimiter = ',', default_values = ["builds:write"], value_name = "SCOPE")]
    pub scopes: Vec<Scope>,
    /// Days until it stops working; for ever without
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36500))]
    pub expires_in_days: Option<u32>,
    /// How a service is called, and for which project the token is.
    #[command(flatten)]
    pub common: Common,
}

impl TokenCreate {
    /// The project, where no service says which one the caller's is; made if there is none.
    pub fn project(&self) -> Result<ProjectName, crate::domain::spec::Invalid> {
        let named = self.common.connection.project.clone();
        named.map_or_else(|| "default".parse(), Ok)
    }

    /// What a service is asked for.
    pub fn request(&self) -> TokenRequest {
        TokenRequest {
            name: self.name.clone(),
            scopes: self.scopes.clone(),
            expires_in_days: self.expires_in_days,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
        super::command().debug_assert();
    }
}
