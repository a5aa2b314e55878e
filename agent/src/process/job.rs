//! One process with its group and its output, from the start to the end of both.

use std::{
    io::PipeWriter,
    os::unix::process::ExitStatusExt,
    process::{Child, ExitStatus},
    time::{Duration, Instant},
};

use kiln_agent::wire::report::Exit;
use nix::{
    sys::{
        signal::{Signal, killpg},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::Pid,
};

use super::JobId;

/// How long processes that outlive the job and its group may keep its output open.
const DRAIN: Duration = Duration::from_secs(5);

/// The same for a job that was told to end: by now whoever told it counts on that.
const STOPPED_DRAIN: Duration = Duration::from_millis(200);

/// How long after that a stopped job waits for somebody to take its output.
const UNREAD: Duration = Duration::from_millis(500);

/// A process that was started.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) id: JobId,
    child: Child,
    ended: Option<(Exit, Instant)>,
    open_pipes: u8,
    /// Closed to tell the readers to come to an end.
    finish: Option<PipeWriter>,
    stop: Option<Stop>,
}

/// A job on its way to an end that was asked for.
#[derive(Debug)]
struct Stop {
    since: Instant,
    kill_at: Instant,
    terminated: bool,
    killed: bool,
}

/// What becomes of a job.
pub(super) enum Next {
    /// Something has to happen first, or this time has to come.
    Wait(Option<Instant>),
    /// It is over.
    Done {
        /// How the process ended.
        exit: Exit,
        /// Whether its output was given up.
        abandoned: bool,
    },
}

impl Job {
    pub(super) const fn new(id: JobId, child: Child, pipes: u8, finish: PipeWriter) -> Self {
        Self {
            id,
            child,
            ended: None,
            open_pipes: pipes,
            finish: Some(finish),
            stop: None,
        }
    }

    pub(super) fn pid(&self) -> Pid {
        // A process id fits: the kernel's own type is signed.
        Pid::from_raw(i32::try_from(self.child.id()).unwrap_or(i32::MAX))
    }

    pub(super) fn exit(&self) -> Option<Exit> {
        self.ended.map(|(exit, _)| exit)
    }

    pub(super) const fn pipe_closed(&mut self) {
        self.open_pipes = self.open_pipes.saturating_sub(1);
    }

    /// Asks for the end of the job. The first call decides about the time that it has.
    pub(super) fn stop(&mut self, since: Instant, grace: Duration) {
        self.stop.get_or_insert(Stop {
            since,
            kill_at: since + grace,
            terminated: false,
            killed: false,
        });
    }

    /// Reaps the process if it has ended, after killing what is left of its group: as long as the zombie is there,
    /// nobody else can have its number.
    pub(super) fn reap(&mut self) {
        if self.ended.is_some() {
            return;
        }
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        if waitid(Id::Pid(self.pid()), flags) == Ok(WaitStatus::StillAlive) {
            return;
        }
        self.signal(Signal::SIGKILL);
        let exit = match self.child.try_wait() {
            Ok(None) => return,
            Ok(Some(status)) => exit_of(status),
            // Somebody else has reaped it. That can't be known from success, so it is none.
            Err(_) => Exit::Code(255),
        };
        self.ended = Some((exit, Instant::now()));
    }

    /// Does what is due at `now`.
    pub(super) fn advance(&mut self, now: Instant) -> Next {
        let Some((exit, ended_at)) = self.ended else {
            return Next::Wait(self.press(now));
        };
        if self.open_pipes == 0 {
            return Next::Done { exit, abandoned: false };
        }
        let drained_at = match &self.stop {
            Some(stop) => stop.since.max(ended_at) + STOPPED_DRAIN,
            None => ended_at + DRAIN,
        };
        if now < drained_at {
            return Next::Wait(Some(drained_at));
        }
        self.finish = None;
        let give_up_at = self.stop.as_ref().map(|_| drained_at + UNREAD);
        match give_up_at {
            Some(at) if now >= at => Next::Done { exit, abandoned: true },
            at => Next::Wait(at),
        }
    }

    /// Sends the signals that are due; says when the next one will be.
    fn press(&mut self, now: Instant) -> Option<Instant> {
        let (terminate, kill, next) = {
            let stop = self.stop.as_mut()?;
            let terminate = !std::mem::replace(&mut stop.terminated, true);
            let kill = now >= stop.kill_at && !std::mem::replace(&mut stop.killed, true);
            (terminate, kill, (!stop.killed).then_some(stop.kill_at))
        };
        if terminate {
            self.signal(Signal::SIGTERM);
        }
        if kill {
            self.signal(Signal::SIGKILL);
        }
        next
    }

    fn signal(&self, signal: Signal) {
        // It fails when nobody is left in the group, which is what is wanted.
        let _ = killpg(self.pid(), signal);
    }
}

fn exit_of(status: ExitStatus) -> Exit {
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, Some(signal)) => Exit::Signal(signal),
        (None, None) => Exit::Code(255),
    }
}
