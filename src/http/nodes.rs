//! `/v1/nodes`: what the nodes of the cluster have done to builds lately.

pub(super) mod delete;
pub(super) mod list;
