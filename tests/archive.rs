//! History that doesn't grow for ever: partitions, the archive, and retention, on a real Postgres.

#[path = "archive/faults.rs"]
mod faults;
#[path = "archive/moves.rs"]
mod moves;
#[path = "archive/partitions.rs"]
mod partitions;
#[path = "archive/retention.rs"]
mod retention;
#[path = "archive/store.rs"]
mod store;
#[path = "archive/support.rs"]
mod support;
