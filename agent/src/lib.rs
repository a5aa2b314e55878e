//! What the service and the program inside the build pod have in common: the plan that the service hands over,
//! the frames in which a step's output comes back, and the report a step leaves behind.
//!
//! The binary runs in every container of a build pod and, with the local runner, as a host process, so this crate
//! keeps its dependency list short.

#![cfg_attr(
    fuzzing,
    expect(
        dead_code,
        reason = "of the program, fuzz targets call only what reads bytes from outside"
    )
)]

pub mod archive;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod wire;

/// The program's modules, as in `main.rs`, for fuzz targets; they call this crate by its name.
#[cfg(fuzzing)]
extern crate self as kiln_agent;
#[cfg(fuzzing)]
mod args;
#[cfg(fuzzing)]
mod capture;
#[cfg(fuzzing)]
mod credential;
#[cfg(fuzzing)]
mod http;
#[cfg(fuzzing)]
mod install;
#[cfg(fuzzing)]
mod mask;
#[cfg(fuzzing)]
mod process;
#[cfg(fuzzing)]
mod progress;
#[cfg(fuzzing)]
mod run;
#[cfg(fuzzing)]
mod ship;
#[cfg(fuzzing)]
mod source;
#[cfg(fuzzing)]
mod spool;
#[cfg(fuzzing)]
mod step;
