//! Ctrl-C and SIGTERM while something goes on that isn't this machine's.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::error::ClientError;

/// Listens for Ctrl-C and SIGTERM from when it is made.
pub(super) struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    pub(super) fn listen() -> Result<Self, ClientError> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for either. `true` for Ctrl-C, behind which there may be a person.
    pub(super) async fn next(&mut self) -> bool {
        tokio::select! {
            _ = self.interrupt.recv() => true,
            _ = self.terminate.recv() => false,
        }
    }
}
