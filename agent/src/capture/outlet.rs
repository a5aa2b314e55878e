//! Standard output, or a file in its place. Beside a spool it is a convenience: a reader that stops reading costs lines
//! there, and neither the build nor the spool.

use std::{
    fs::File,
    io::{self, Write},
    os::{fd::AsFd, unix::fs::FileTypeExt},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use memchr::memchr;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

/// What a pipe that has room takes without blocking (`PIPE_BUF`).
const PIECE: usize = 4096;
/// How often to look whether somebody still waits.
const LOOK_MS: u16 = 50;

/// Where frames are shown.
#[derive(Debug)]
pub(super) struct Outlet {
    out: File,
    /// How long a reader may take nothing until it isn't waited for; without it, for ever, and errors count.
    patience: Option<Duration>,
    may_block: bool,
    /// The rest of a frame that was begun: what comes next begins on a line of its own.
    begun: Vec<u8>,
    /// The reader was waited for in vain.
    stalled: bool,
    closed: bool,
}

impl Outlet {
    /// The only place that frames go to.
    pub(super) fn only(out: File) -> Self {
        Self::new(out, None)
    }

    /// A place that frames go to as long as somebody reads, with pauses of at most `patience`.
    pub(super) fn aside(out: File, patience: Duration) -> Self {
        Self::new(out, Some(patience))
    }

    fn new(out: File, patience: Option<Duration>) -> Self {
        let kind = out.metadata().map(|metadata| metadata.file_type());
        Self {
            may_block: kind.is_ok_and(|kind| kind.is_fifo() || kind.is_socket() || kind.is_char_device()),
            out,
            patience,
            begun: Vec::new(),
            stalled: false,
            closed: false,
        }
    }

    /// Writes whole frames. `hurry` says that nobody waits any more.
    pub(super) fn write(&mut self, frames: &[u8], hurry: &AtomicBool) -> io::Result<()> {
        if self.patience.is_none() {
            return self.out.write_all(frames);
        }
        if self.closed || frames.is_empty() {
            return Ok(());
        }
        // Without a reader, or on a full disk, there is nothing to show any more.
        self.closed = self.show(frames, hurry).is_err();
        Ok(())
    }

    fn show(&mut self, frames: &[u8], hurry: &AtomicBool) -> io::Result<()> {
        let begun = std::mem::take(&mut self.begun);
        let sent = self.send(&begun, hurry)?;
        if sent < begun.len() {
            self.begun = begun[sent..].to_vec();
            return Ok(());
        }
        let sent = self.send(frames, hurry)?;
        let in_the_middle = sent > 0 && frames[sent - 1] != b'\n';
        if in_the_middle {
            let rest = &frames[sent..];
            let end = memchr(b'\n', rest).map_or(rest.len(), |end| end + 1);
            self.begun = rest[..end].to_vec();
        }
        Ok(())
    }

    /// Writes as long as somebody reads and says how many bytes were taken.
    fn send(&mut self, bytes: &[u8], hurry: &AtomicBool) -> io::Result<usize> {
        if !self.may_block {
            return self.out.write_all(bytes).map(|()| bytes.len());
        }
        let mut sent = 0;
        while sent < bytes.len() {
            if !self.wait(hurry)? {
                self.stalled = true;
                break;
            }
            self.stalled = false;
            let piece = &bytes[sent..bytes.len().min(sent + PIECE)];
            match self.out.write(piece) {
                Ok(count) => sent += count,
                Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(sent)
    }

    /// Waits until something can be written, and not at all for a reader that was waited for in vain before.
    fn wait(&self, hurry: &AtomicBool) -> io::Result<bool> {
        let patience = self.patience.filter(|_| !self.stalled).unwrap_or(Duration::ZERO);
        let deadline = Instant::now() + patience;
        loop {
            let mut fds = [PollFd::new(self.out.as_fd(), PollFlags::POLLOUT)];
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = if hurry.load(Ordering::Relaxed) {
                PollTimeout::ZERO
            } else {
                let left = u16::try_from(left.as_millis()).unwrap_or(u16::MAX);
                PollTimeout::from(left.min(LOOK_MS))
            };
            match poll(&mut fds, timeout) {
                Ok(0) | Err(Errno::EINTR) if !left.is_zero() && !hurry.load(Ordering::Relaxed) => {}
                Ok(0) | Err(Errno::EINTR) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Read as _, os::fd::OwnedFd};

    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use proptest::prelude::*;

    use super::*;

    fn pipe(patience: Duration) -> (io::PipeReader, Outlet) {
        let (reader, writer) = io::pipe().unwrap();
        fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        (reader, Outlet::aside(File::from(OwnedFd::from(writer)), patience))
    }

    #[test]
    fn who_hurries_does_not_wait_for_a_reader() {
        let (_reader, mut outlet) = pipe(Duration::from_mins(5));
        outlet
            .write(&b"frame\n".repeat(10_000), &AtomicBool::new(true))
            .unwrap();
        assert!(outlet.stalled);
    }

    #[test]
    fn without_a_reader_it_is_closed() {
        let (reader, mut outlet) = pipe(Duration::from_mins(5));
        drop(reader);
        let hurry = AtomicBool::new(false);
        outlet.write(b"frame\n", &hurry).unwrap();
        outlet.write(b"frame\n", &hurry).unwrap();
        assert!(outlet.closed);
    }

    proptest! {
        #[test]
        fn a_reader_that_falls_behind_sees_whole_frames_in_order(
            batches in prop::collection::vec((1_usize..20, 1_usize..3000, any::<bool>()), 1..20),
        ) {
            let (mut reader, mut outlet) = pipe(Duration::ZERO);
            let hurry = AtomicBool::new(false);
            let (mut number, mut seen, mut stalled) = (0, Vec::new(), false);
            let mut frames = Vec::new();
            for &(count, length, reads) in &batches {
                let mut batch = Vec::new();
                for _ in 0..count {
                    number += 1;
                    let frame = format!("{number} {}\n", "x".repeat(length));
                    batch.extend_from_slice(frame.as_bytes());
                    frames.push(frame);
                }
                outlet.write(&batch, &hurry).unwrap();
                stalled |= outlet.stalled;
                if reads {
                    let _ = reader.read_to_end(&mut seen);
                }
            }
            while !outlet.begun.is_empty() {
                let _ = reader.read_to_end(&mut seen);
                let begun = std::mem::take(&mut outlet.begun);
                outlet.write(&begun, &hurry).unwrap();
            }
            drop(outlet);
            let _ = reader.read_to_end(&mut seen);
            let seen = String::from_utf8(seen).unwrap();
            let mut all = frames.iter();
            let mut count = 0;
            for line in seen.split_inclusive('\n') {
                prop_assert!(all.any(|frame| frame == line), "{:?} is out of order, or no frame", line.get(..20));
                count += 1;
            }
            prop_assert!(stalled || count == frames.len());
        }
    }
}
