//! `/v1/builds`.

pub(super) mod accept;
pub(super) mod cancel;
pub(super) mod create;
pub(super) mod events;
pub(super) mod get;
pub(super) mod list;
pub(super) mod logs;
pub(super) mod queue;
pub(super) mod retry;
mod view;
