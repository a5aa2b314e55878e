//! The program `kiln`.

use std::process::ExitCode;

use clap::Parser;
use kiln::app::{
    cli::{Cli, Command, ConfigCommand, TokenCommand},
    commands,
    config::Config,
    dev, openapi, telemetry,
};

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kiln: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    if let Command::Openapi = cli.command {
        print!("{}", openapi::document()?);
        return Ok(());
    }
    let config = Config::load(&cli.overrides)?;
    telemetry::init(&config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match cli.command {
            Command::Serve(flags) => commands::serve(config, &flags).await?,
            Command::Dev(flags) => Box::pin(dev::dev(config, &flags)).await?,
            Command::Migrate(flags) => commands::migrate(&config, &flags).await?,
            Command::Token(TokenCommand::Create(flags)) => {
                println!("{}", commands::create_token(&config, &flags).await?);
            }
            Command::Config(ConfigCommand::Check) => println!("The configuration can be used."),
            // Answered before the configuration was read.
            Command::Openapi => {}
        }
        Ok(())
    })
}
