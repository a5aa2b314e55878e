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

/// The commands as they are listed, by what brings somebody to them.
const GROUPS: [(&str, &[&str]); 4] = [
    ("Builds", &["build", "get", "list", "logs", "cancel", "retry"]),
    ("Projects", &["secret", "token"]),
    (
        "Running Kiln",
        &["serve", "dev", "migrate", "config", "secrets", "openapi"],
    ),
    ("Help", &["completions", "help"]),
];

/// The command line with its help. What sets up a service is no part of the help of commands that only call one.
pub fn command() -> clap::Command {
    let mut command = Cli::command();
    let server: Vec<_> = overrides(&command).map(|argument| argument.get_id().clone()).collect();
    command.build();
    for verb in calls() {
        command = command.mut_subcommand(verb, |verb| without(verb, &server));
    }
    let command = command.mut_subcommand("token", |token| {
        token
            .mut_subcommand("list", |verb| without(verb, &server))
            .mut_subcommand("delete", |verb| without(verb, &server))
    });
    let command = command.mut_args(|argument| hidden(argument, &server));
    let help = grouped(&command);
    plain_usage(command).help_template(help)
}

/// The command line as shells complete it, which offer what is hidden, too: commands that only call a service don't have
/// the flags of those that run one.
pub fn for_completions() -> clap::Command {
    let mut command = Cli::command();
    let server: Vec<_> = overrides(&command)
        .map(|argument| argument.clone().global(false))
        .collect();
    command = command.mut_args(|argument| argument.global(false));
    let calls = calls();
    let names: Vec<_> = command
        .get_subcommands()
        .map(|verb| verb.get_name().to_owned())
        .collect();
    for name in names.iter().filter(|name| !calls.contains(name)) {
        command = match name.as_str() {
            "token" => command.mut_subcommand("token", |token| {
                token.mut_subcommand("create", |create| with(create, &server))
            }),
            _ => command.mut_subcommand(name, |verb| with(verb, &server)),
        };
    }
    command
}

/// The flags that set up a service.
fn overrides(command: &clap::Command) -> impl Iterator<Item = &clap::Arg> {
    command.get_arguments().filter(|argument| argument.is_global_set())
}

/// The commands that only call a service, or nothing at all.
fn calls() -> Vec<String> {
    client::Verb::augment_subcommands(clap::Command::new(""))
        .get_subcommands()
        .map(|verb| verb.get_name().to_owned())
        .chain(["completions".to_owned()])
        .collect()
}

fn hidden(argument: clap::Arg, ids: &[clap::Id]) -> clap::Arg {
    let hide = argument.is_hide_set() || ids.contains(argument.get_id());
    argument.hide(hide)
}

/// The command, with these flags hidden from its help.
fn without(command: clap::Command, ids: &[clap::Id]) -> clap::Command {
    command
        .mut_args(|argument| hidden(argument, ids))
        .mut_subcommands(|inner| without(inner, ids))
}

/// The command, or those in it, with these flags.
fn with(command: clap::Command, flags: &[clap::Arg]) -> clap::Command {
    if command.has_subcommands() {
        command.mut_subcommands(|inner| with(inner, flags))
    } else {
        command.args(flags)
    }
}

/// Errors show the usage that help shows. Left to itself, clap puts every flag into it that is set, also by a variable.
fn plain_usage(mut command: clap::Command) -> clap::Command {
    let usage = command.render_usage().to_string();
    let usage = usage.strip_prefix("Usage: ").unwrap_or(&usage).to_owned();
    command.override_usage(usage).mut_subcommands(plain_usage)
}

/// A template for help that lists the commands by groups.
fn grouped(command: &clap::Command) -> String {
    let header = command.get_styles().get_header();
    let literal = command.get_styles().get_literal();
    let mut text = "{about-with-newline}\n{usage-heading} {usage}\n".to_owned();
    for (group, names) in GROUPS {
        text = format!("{text}\n{header}{group}:{header:#}\n");
        for name in names {
            let about = command.find_subcommand(name).and_then(clap::Command::get_about);
            let about = about.map(ToString::to_string).unwrap_or_default();
            text = format!("{text}  {literal}{name:11}{literal:#}  {about}\n");
        }
    }
    format!("{text}\n{header}Options:{header:#}\n{{options}}\n\n`kiln help COMMAND` has a command's flags.")
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
        for_completions().debug_assert();
    }

    #[test]
    fn every_command_is_in_one_group() {
        let mut command = super::command();
        let mut names: Vec<_> = command
            .get_subcommands()
            .map(|verb| verb.get_name().to_owned())
            .collect();
        let mut grouped: Vec<_> = GROUPS.iter().flat_map(|(_, names)| *names).copied().collect();
        names.sort_unstable();
        grouped.sort_unstable();
        assert_eq!(names, grouped);
        let help = command.render_help().to_string();
        assert!(help.contains("\nRunning Kiln:\n  serve        Run the API"), "{help}");
        assert!(!help.contains("--database-url"), "{help}");
    }
}
