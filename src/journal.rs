//! The journal of every build: written in groups, read by pulling.
//!
//! A write is durable before anybody hears of it. What a build's journal grows by is read from Postgres once for all its
//! followers in this process, who take it from there at their own speed; a slow reader costs itself only. What wakes the
//! one who reads are [`signals`], and a lost wake-up costs a moment.

pub mod archive;
mod changes;
mod fill;
mod frames;
mod heads;
mod history;
pub mod lines;
pub mod log;
pub mod metrics;
pub mod push;
pub mod reader;
pub mod signals;
mod tail;
pub mod writer;

pub use self::{
    changes::{ChangeReader, Changes},
    frames::{Frames, Slice},
    heads::{Heads, Subscription},
    history::{History, ReadError},
    log::{LogLimits, Logs},
    reader::Reader,
    signals::Signals,
    tail::TailLimits,
    writer::{AppendError, Writer},
};
