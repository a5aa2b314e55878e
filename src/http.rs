//! The REST API. [`router`] has the table of operations; each operation has a file of its own. Everything that can go
//! wrong is an [`error::ApiError`], and [`problem`] says how each is told to callers.

mod accept;
mod attempts;
mod auth;
mod body;
mod builds;
mod conditional;
mod cors;
mod error;
mod events;
#[cfg(fuzzing)]
pub mod fuzzing;
mod hooks;
mod live;
mod metrics;
mod nodes;
mod operations;
mod path;
mod problem;
mod projects;
mod query;
mod request_id;
mod router;
mod server;
mod state;
mod stream;
mod stream_tickets;
mod strict;
pub mod token;
mod trace;
mod uploads;

pub use self::{
    attempts::{PushMetrics, Pushes},
    cors::{Cors, Origin},
    metrics::Metrics,
    router::{openapi, router},
    server::{PeerTimeouts, serve, serve_with},
    state::{App, Health, Random},
    stream::sse::StreamTiming,
    uploads::{UploadConfig, Uploads},
};
