//! The types that cross the border between the service and the agent.
//!
//! A plan travels as a pod annotation (mounted as a file by the downward API) or as a file on the host; a report
//! travels as the container's termination message. Both are JSON. Output travels as text frames ([`frame`]), which are
//! pushed to the service ([`push`]).

pub mod frame;
pub mod plan;
pub mod push;
pub mod report;
pub mod step;
