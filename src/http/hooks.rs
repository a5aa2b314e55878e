//! `/hooks`: where forges and registries send.

pub(super) mod carry_out;
pub(super) mod receive;
