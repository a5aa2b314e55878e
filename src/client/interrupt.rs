//! Ctrl-C while a build is followed. The build isn't this machine's, so the person is asked what it is to mean.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
};

use super::error::ClientError;

/// What is to become of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wish {
    /// Stop it.
    Cancel,
    /// Let it go on, unseen.
    Detach,
    /// It was no more than a slip.
    Follow,
}

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

    /// Asks at the terminal. Another Ctrl-C is an answer, too.
    pub(super) async fn ask(&mut self, mut say: impl FnMut(&str) -> std::io::Result<()>) -> Result<Wish, ClientError> {
        loop {
            say("Ctrl-C: [c]ancel the build, [d]etach and let it go on, or Enter to keep following?")?;
            let line = tokio::select! {
                line = typed() => line,
                _ = self.next() => {
                    // Below what the terminal shows for the key.
                    say("")?;
                    return Ok(Wish::Detach);
                }
            };
            match line.as_deref().map(str::trim) {
                Some("c" | "cancel") => return Ok(Wish::Cancel),
                // The end of the input: there is nobody.
                Some("d" | "detach") | None => return Ok(Wish::Detach),
                Some("") => return Ok(Wish::Follow),
                Some(_) => {}
            }
        }
    }
}

/// A line from the terminal, whatever standard input is.
async fn typed() -> Option<String> {
    let (sender, line) = oneshot::channel();
    // Reading can't be called off, so the process must be able to end without this thread.
    std::thread::spawn(move || {
        let mut text = String::new();
        let read = File::open("/dev/tty").and_then(|terminal| BufReader::new(terminal).read_line(&mut text));
        // Nobody waits any more when the build was detached from meanwhile.
        let _ = sender.send(read.ok().filter(|bytes| *bytes > 0).map(|_| text));
    });
    line.await.ok().flatten()
}
