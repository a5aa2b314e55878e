//! Output on its way out: bytes from pipes become numbered frames, in one order over all streams.

pub(crate) mod kept;
pub(crate) mod lines;
mod outlet;
pub(crate) mod reader;
pub(crate) mod sink;
