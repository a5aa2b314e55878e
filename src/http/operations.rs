//! What operators and tools ask for.

pub(super) mod docs;
pub(super) mod healthz;
pub(super) mod metrics;
pub(super) mod openapi;
pub(super) mod readyz;
