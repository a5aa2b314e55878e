//! What the service and the program inside the build pod have in common: the plan that the service hands over,
//! the frames in which a step's output comes back, and the report a step leaves behind.
//!
//! The binary runs in every container of a build pod and, with the local runner, as a host process, so this crate
//! keeps its dependency list short.

pub mod archive;
pub mod wire;
