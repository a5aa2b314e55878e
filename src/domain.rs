//! What Kiln is about, in types that can't hold a bad value: builds and their attempts, the state machine, what a
//! request asks for, how things fail. No I/O and no knowledge of any other module.

pub mod attempt_token;
pub mod build;
pub mod clock;
pub mod event;
pub mod failure;
pub mod hook;
pub mod id;
pub mod node;
pub mod project;
pub mod queue;
pub mod secret;
pub mod spec;
pub mod state;
pub mod term;
pub mod trace_parent;
