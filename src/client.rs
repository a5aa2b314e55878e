//! The commands that call a running service. They know the API and nothing of how it is served: whatever they can do,
//! any other program can.

pub mod args;
pub mod context;
pub mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod ignore;

mod api;
mod cancel;
mod follow;
mod git_url;
mod interrupt;
mod keyboard;
mod live;
mod problem;
mod reasons;
mod request;
mod screen;
mod settings;
mod text;
mod upload;
mod verbs;
mod watch;
mod wire;
mod words;

use std::io::Write as _;

use clap::Subcommand;

use self::{
    args::{Build, Cancel, Common, Get, List, Logs, Retry, Secret, TokenDelete, TokenRequest},
    error::{ClientError, Exit},
};

/// The commands that are the client's alone.
#[derive(Clone, Debug, Subcommand)]
pub enum Verb {
    /// Build an image from a folder, a git repository or an archive, and follow it
    Build(Box<Build>),
    /// Show a build
    Get(Get),
    /// List builds, newest first
    List(List),
    /// Print a build's output
    Logs(Logs),
    /// Stop builds
    Cancel(Cancel),
    /// Build again what was built, as a new build
    Retry(Retry),
    /// Keep passwords, tokens and keys that builds need
    #[command(subcommand)]
    Secret(Secret),
}

/// Something to be asked of a service.
#[derive(Clone, Debug)]
pub enum Call {
    /// A command of the client's alone.
    Verb(Verb),
    /// `kiln token create --api`.
    TokenCreate(Common, TokenRequest),
    /// `kiln token list`.
    TokenList(Common),
    /// `kiln token delete`.
    TokenDelete(TokenDelete),
}

/// Carries out a command, and says on standard error what went wrong.
pub fn run(call: Call) -> Exit {
    // One call at a time needs no more than one thread.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = match runtime {
        Ok(runtime) => {
            let done = runtime.block_on(carry_out(call));
            // A folder may still be being read that nobody wants any more.
            runtime.shutdown_background();
            done
        }
        Err(error) => Err(ClientError::Output(error)),
    };
    done.unwrap_or_else(|error| {
        let exit = error.exit();
        if exit != Exit::BrokenPipe {
            // Nothing is left to say it to when this fails.
            let _ = writeln!(anstream::stderr(), "kiln: {error}");
        }
        exit
    })
}

async fn carry_out(call: Call) -> Result<Exit, ClientError> {
    match call {
        Call::Verb(verb) => match verb {
            Verb::Build(flags) => verbs::build::build(*flags).await,
            Verb::Get(flags) => verbs::builds::get(flags).await,
            Verb::List(flags) => verbs::list::list(flags).await,
            Verb::Logs(flags) => verbs::logs::logs(flags).await,
            Verb::Cancel(flags) => verbs::builds::cancel(flags).await,
            Verb::Retry(flags) => verbs::build::retry(flags).await,
            Verb::Secret(Secret::Set(flags)) => verbs::secrets::set(flags).await,
            Verb::Secret(Secret::List(common)) => verbs::secrets::list(&common).await,
            Verb::Secret(Secret::Delete(flags)) => verbs::secrets::delete(flags).await,
        },
        Call::TokenCreate(common, request) => verbs::tokens::create(&common, request).await,
        Call::TokenList(common) => verbs::tokens::list(&common).await,
        Call::TokenDelete(flags) => verbs::tokens::delete(flags).await,
    }
}
