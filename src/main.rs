//! The program `kiln`.

use std::process::ExitCode;

use clap::FromArgMatches as _;
use kiln::{
    app::{
        cli::{self, Cli, Command, ConfigCommand, SecretsCommand, TokenCommand},
        commands,
        config::Config,
        dev, openapi, telemetry,
    },
    client,
};

fn main() -> ExitCode {
    let cli = Cli::from_arg_matches(&cli::command().get_matches()).unwrap_or_else(|error| error.exit());
    match cli.command.for_service() {
        // They need no configuration of a service, and none is read.
        Ok(call) => client::run(call).into(),
        Err(command) => serve(Cli {
            command: *command,
            ..cli
        }),
    }
}

fn serve(cli: Cli) -> ExitCode {
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kiln: {error}");
            match error.downcast_ref::<commands::CommandError>() {
                Some(error) => ExitCode::from(error.exit_code()),
                None => ExitCode::FAILURE,
            }
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    if let Command::Openapi = cli.command {
        print!("{}", openapi::document()?);
        return Ok(());
    }
    if let Command::Completions { shell } = cli.command {
        clap_complete::generate(shell, &mut cli::for_completions(), "kiln", &mut std::io::stdout());
        return Ok(());
    }
    let mut config = Config::load(&cli.overrides)?;
    if matches!(cli.command, Command::Serve(_) | Command::Dev(_) | Command::Config(_)) {
        config.read_files()?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    // Dropped before the runtime, which sends what is left of the traces.
    let _traces = telemetry::init(&config.log, &config.telemetry, runtime.handle())?;
    runtime.block_on(async {
        match cli.command {
            Command::Serve(flags) => Box::pin(commands::serve(config, &flags)).await?,
            Command::Dev(flags) => Box::pin(dev::dev(config, &flags)).await?,
            Command::Migrate(flags) => commands::migrate(&config, &flags).await?,
            Command::Secrets(SecretsCommand::Rotate) => println!("{}", commands::rotate_secrets(&config).await?),
            Command::Token(TokenCommand::Create(flags)) => {
                println!("{}", commands::create_token(&config, &flags).await?);
            }
            Command::Config(ConfigCommand::Check) => {
                config.secrets.keyring()?;
                println!("The configuration can be used.");
            }
            // Carried out before the configuration was read.
            Command::Openapi | Command::Completions { .. } | Command::Client(_) | Command::Token(_) => {}
        }
        Ok(())
    })
}
