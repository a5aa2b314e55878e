//! The journal of every build: written in groups, read by pulling.
//!
//! A write is durable before anybody hears of it. Readers are woken by [`signals`] and read from Postgres; a slow
//! reader costs itself only, and a lost wake-up costs a moment.

pub mod archive;
mod changes;
mod heads;
mod history;
pub mod lines;
pub mod log;
pub mod metrics;
pub mod push;
pub mod reader;
pub mod signals;
pub mod writer;

pub use self::{
    changes::ChangeReader,
    heads::{Heads, Subscription},
    history::{History, ReadError},
    log::{LogLimits, Logs},
    reader::Reader,
    signals::Signals,
    writer::{AppendError, Writer},
};
