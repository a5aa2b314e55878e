//! The local runner with the real agent, git and buildah.

mod builds;
mod git;
#[path = "../shared/program.rs"]
mod program;
mod queue;
mod restarts;
mod service;
mod shipping;
mod sources;
mod stopping;
mod support;
#[path = "../shared/token.rs"]
mod token;
