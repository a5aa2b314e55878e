//! The real binary against real processes and a real git server.

#![expect(
    clippy::unwrap_used,
    reason = "in tests a surprise is a failure, in their helpers too"
)]

mod archive;
mod git_server;
mod install;
mod log_server;
mod login;
mod mask;
mod output;
mod run;
mod service;
mod ship;
mod source;
mod spool;
mod stop;
mod support;
