//! Waiting for news in the spool, and for the signal to end.

use std::{
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};

/// How often to look even though nothing was heard: where the kernel tells nothing, as with some sandboxes.
const LOOK: Duration = Duration::from_secs(1);

/// What wakes a shipper.
pub(super) struct Watch {
    root: PathBuf,
    inotify: Option<Inotify>,
    stop: io::PipeReader,
    stopping: bool,
    stopper: Option<io::PipeWriter>,
}

impl Watch {
    pub(super) fn new(root: &Path) -> io::Result<Self> {
        let (stop, stopper) = io::pipe()?;
        Ok(Self {
            root: root.to_owned(),
            inotify: Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).ok(),
            stop,
            stopping: false,
            stopper: Some(stopper),
        })
    }

    /// Closed to say that the shipper is to come to an end. Can be had once.
    pub(super) fn stopper(&mut self) -> io::Result<io::PipeWriter> {
        self.stopper
            .take()
            .ok_or_else(|| io::Error::from(io::ErrorKind::AlreadyExists))
    }

    /// Whether the shipper is to come to an end.
    pub(super) fn stopping(&mut self) -> bool {
        if !self.stopping {
            self.poll(false, Duration::ZERO);
        }
        self.stopping
    }

    /// Waits for news at most that long; may return before.
    pub(super) fn wait(&mut self, patience: Duration) {
        // Folders that are watched already stay so; those that aren't there yet show in their parent.
        if let Some(inotify) = &self.inotify {
            let events = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_MOVED_TO;
            for folder in ["", "source", "build"] {
                let _ = inotify.add_watch(&self.root.join(folder), events);
            }
        }
        self.poll(true, patience.min(LOOK));
        if let Some(inotify) = &self.inotify {
            while inotify.read_events().is_ok_and(|events| !events.is_empty()) {}
        }
    }

    /// Waits that long, or until the shipper is to come to an end.
    pub(super) fn pause(&mut self, duration: Duration) {
        if self.stopping {
            thread::sleep(duration);
        } else {
            self.poll(false, duration);
        }
    }

    fn poll(&mut self, news: bool, patience: Duration) {
        let mut fds = Vec::with_capacity(2);
        if let Some(inotify) = self.inotify.as_ref().filter(|_| news) {
            fds.push(PollFd::new(inotify.as_fd(), PollFlags::POLLIN));
        }
        if !self.stopping {
            fds.push(PollFd::new(self.stop.as_fd(), PollFlags::POLLIN));
        }
        let timeout = u16::try_from(patience.as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
        if poll(&mut fds, PollTimeout::from(timeout)).is_ok() && !self.stopping {
            self.stopping = fds.last().and_then(PollFd::any).unwrap_or(false);
        }
    }
}
