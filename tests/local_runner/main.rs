//! The local runner with the real agent, git and buildah.

mod builds;
mod git;
mod queue;
mod restarts;
mod service;
mod sources;
mod stopping;
mod support;
