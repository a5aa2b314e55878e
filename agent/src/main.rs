//! `kiln-agent`: PID 1 of each container of a build pod and, with the local runner, a detached host process.

mod args;
mod capture;
mod credential;
mod http;
mod install;
mod mask;
mod process;
mod progress;
mod run;
mod ship;
mod source;
mod spool;
mod step;

use std::process::ExitCode;

use crate::args::Action;

fn main() -> ExitCode {
    match args::parse(std::env::args_os()) {
        Ok(Action::Help) => {
            println!("{}", args::USAGE);
            ExitCode::SUCCESS
        }
        Ok(Action::Version) => {
            println!("kiln-agent {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Ok(Action::Install { folder }) => match install::install(&folder) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("kiln-agent: can't install into {}: {error}", folder.display());
                ExitCode::FAILURE
            }
        },
        Ok(Action::Step(order)) => step::carry_out(&order),
        Ok(Action::Ship(order)) => ship::carry_out(&order),
        Ok(Action::Credential(login)) => credential::answer(&login),
        Err(error) => {
            eprintln!("kiln-agent: {error}\n{}", args::USAGE);
            ExitCode::from(2)
        }
    }
}
