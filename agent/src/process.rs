//! Child processes: each in a process group of its own, ended for sure, and every zombie reaped.
//!
//! One thread decides: it alone starts, signals and reaps processes, so that no signal can hit a process that took
//! over the number of one reaped before. Signals and the ends of pipes reach it as events.

mod job;
mod strays;

use std::{
    io::{self, Read},
    os::{fd::AsFd, unix::process::CommandExt},
    path::PathBuf,
    process::{Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use kiln_agent::wire::{frame::Stream, report::Exit};
use nix::{
    errno::Errno,
    sys::{
        prctl,
        wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
    },
    unistd::Pid,
};
use signal_hook::{
    consts::{SIGCHLD, SIGINT, SIGTERM},
    iterator::Signals,
};

use crate::capture::{
    reader,
    reader::Target,
    sink::{OutputLost, Writer},
};
use job::{Job, Next};

/// How long to look for processes that a step left behind, and to wait for their end.
const SWEEP: Duration = Duration::from_secs(5);

/// How often to look for the file that ends the step.
const LOOK: Duration = Duration::from_millis(200);

/// What happened, for the thread that decides.
enum Event {
    /// A child ended.
    Child,
    /// The step is to stop.
    Stop,
    /// One of a job's pipes was read to its end.
    Closed(JobId),
    /// The log can't be written.
    Lost(OutputLost),
}

/// A process that was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct JobId(u64);

/// Why waiting ended before what was waited for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Halt {
    /// The step was told to stop.
    #[error("the step was stopped")]
    Stopped,
    /// The log can't be written.
    #[error(transparent)]
    OutputLost(#[from] OutputLost),
}

/// Starts, watches and ends processes.
pub(crate) struct Supervisor {
    events: Receiver<Event>,
    sender: Sender<Event>,
    jobs: Vec<Job>,
    last_id: u64,
    /// How long a job has between SIGTERM and SIGKILL when the step is told to stop.
    grace: Duration,
    stopping: Option<Instant>,
    lost: Option<OutputLost>,
    abandoned: bool,
}

impl Supervisor {
    /// Takes charge of the process's signals and of all its descendants. There can be only one. A file at the path
    /// `cancel` means the same as SIGTERM.
    pub(crate) fn new(cancel: Option<PathBuf>) -> io::Result<Self> {
        prctl::set_child_subreaper(true)?;
        let (sender, events) = channel();
        let mut signals = Signals::new([SIGCHLD, SIGINT, SIGTERM])?;
        let to_supervisor = sender.clone();
        thread::spawn(move || {
            for signal in signals.forever() {
                let event = if signal == SIGCHLD { Event::Child } else { Event::Stop };
                if to_supervisor.send(event).is_err() {
                    break;
                }
            }
        });
        if let Some(cancel) = cancel {
            let to_supervisor = sender.clone();
            thread::spawn(move || {
                while !cancel.exists() {
                    thread::sleep(LOOK);
                }
                let _ = to_supervisor.send(Event::Stop);
            });
        }
        Ok(Self {
            events,
            sender,
            jobs: Vec::new(),
            last_id: 0,
            grace: Duration::from_secs(5),
            stopping: None,
            lost: None,
            abandoned: false,
        })
    }

    /// Sets how long a job has between SIGTERM and SIGKILL when the step is told to stop.
    pub(crate) fn set_grace(&mut self, grace: Duration) {
        self.grace = grace;
    }

    /// Starts a process in a group of its own, with nothing on its standard input.
    pub(crate) fn start(&mut self, command: &mut Command, stdout: Target, stderr: Target) -> io::Result<JobId> {
        let (finished, finish) = io::pipe()?;
        let finished_too = finished.try_clone()?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        self.last_id += 1;
        let id = JobId(self.last_id);
        let mut pipes = 0;
        if let Some(pipe) = child.stdout.take() {
            pipes += 1;
            self.read(id, pipe, finished, Stream::Stdout, stdout);
        }
        if let Some(pipe) = child.stderr.take() {
            pipes += 1;
            self.read(id, pipe, finished_too, Stream::Stderr, stderr);
        }
        self.jobs.push(Job::new(id, child, pipes, finish));
        Ok(id)
    }

    fn read(
        &self,
        id: JobId,
        pipe: impl Read + AsFd + Send + 'static,
        finish: io::PipeReader,
        stream: Stream,
        target: Target,
    ) {
        let events = self.sender.clone();
        thread::spawn(move || {
            // Nobody receives any more only when the step is over.
            reader::read_to_end(pipe, &finish, Writer(id.0), stream, &target, |error| {
                let _ = events.send(Event::Lost(error));
            });
            let _ = events.send(Event::Closed(id));
        });
    }

    /// Waits until the process has ended, the rest of its group was killed and its output was read. When the step
    /// is told to stop meanwhile, sees to it that the process ends.
    pub(crate) fn wait(&mut self, id: JobId) -> Result<Exit, Halt> {
        let exit = self.drive(id);
        self.check()?;
        Ok(exit)
    }

    /// Ends a process: SIGTERM, then SIGKILL after `grace`.
    pub(crate) fn end(&mut self, id: JobId, grace: Duration) -> Exit {
        if let Some(job) = self.jobs.iter_mut().find(|job| job.id == id) {
            job.stop(Instant::now(), grace);
        }
        self.drive(id)
    }

    /// Lets time pass, at most until `deadline`; may return before.
    pub(crate) fn pass(&mut self, deadline: Instant) -> Result<(), Halt> {
        self.check()?;
        self.turn(Some(deadline));
        self.check()
    }

    /// Waits.
    pub(crate) fn pause(&mut self, duration: Duration) -> Result<(), Halt> {
        let deadline = Instant::now() + duration;
        while Instant::now() < deadline {
            self.pass(deadline)?;
        }
        Ok(())
    }

    /// How a process ended, if it did. Its output may not have been read to the end yet.
    pub(crate) fn exit_of(&self, id: JobId) -> Option<Exit> {
        self.jobs.iter().find(|job| job.id == id).and_then(Job::exit)
    }

    /// What is left of the time that a stop allows.
    pub(crate) fn grace_left(&self) -> Option<Duration> {
        let stopped = self.stopping?;
        Some((stopped + self.grace).saturating_duration_since(Instant::now()))
    }

    /// Whether output was given up because writing it blocked for too long after a stop.
    pub(crate) const fn abandoned_output(&self) -> bool {
        self.abandoned
    }

    /// Kills every process that is left, whatever session or group it went to. Says whether none is left.
    pub(crate) fn sweep(&mut self) -> bool {
        let deadline = Instant::now() + SWEEP;
        loop {
            self.reap();
            if strays::kill() == 0 {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            self.turn(Some(deadline.min(Instant::now() + Duration::from_millis(20))));
        }
    }

    fn check(&mut self) -> Result<(), Halt> {
        if let Some(error) = self.lost.take() {
            return Err(Halt::OutputLost(error));
        }
        if self.stopping.is_some() {
            return Err(Halt::Stopped);
        }
        Ok(())
    }

    fn drive(&mut self, id: JobId) -> Exit {
        loop {
            let now = Instant::now();
            let stop = if self.lost.is_some() {
                Some((now, Duration::ZERO))
            } else {
                self.stopping.map(|since| (since, self.grace))
            };
            let alone = self.jobs.len() == 1;
            let Some(at) = self.jobs.iter().position(|job| job.id == id) else {
                return Exit::Code(0);
            };
            let job = &mut self.jobs[at];
            if let Some((since, grace)) = stop {
                job.stop(since, grace);
            }
            if alone && job.exit().is_some() {
                // Whoever is left belongs to this job, even where it has left the job's group. Next to a service that
                // can't be told: orphans of both end up here.
                strays::kill();
            }
            match self.jobs[at].advance(now) {
                Next::Wait(deadline) => self.turn(deadline),
                Next::Done { exit, abandoned } => {
                    self.abandoned |= abandoned;
                    self.jobs.swap_remove(at);
                    return exit;
                }
            }
        }
    }

    /// Takes in what happens next, waiting for it until the deadline.
    fn turn(&mut self, deadline: Option<Instant>) {
        let event = match deadline {
            Some(deadline) => self
                .events
                .recv_timeout(deadline.saturating_duration_since(Instant::now())),
            None => self.events.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match event {
            Ok(Event::Child) => self.reap(),
            Ok(Event::Stop) => {
                self.stopping.get_or_insert_with(Instant::now);
            }
            Ok(Event::Closed(id)) => {
                if let Some(job) = self.jobs.iter_mut().find(|job| job.id == id) {
                    job.pipe_closed();
                }
            }
            Ok(Event::Lost(error)) => {
                self.lost.get_or_insert(error);
            }
            // Disconnected can't be: `self.sender` is there.
            Err(_) => {}
        }
    }

    /// Reaps whoever has ended: our jobs, and orphans that came to us.
    fn reap(&mut self) {
        loop {
            for job in &mut self.jobs {
                job.reap();
            }
            let ended = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
            match waitid(Id::All, ended | WaitPidFlag::WNOWAIT) {
                Ok(WaitStatus::StillAlive) => return,
                Ok(status) => {
                    if let Some(pid) = status.pid()
                        && !self.is_live_job(pid)
                    {
                        let _ = waitpid(pid, Some(WaitPidFlag::WNOHANG));
                    }
                }
                Err(Errno::EINTR) => {}
                // Killed by a signal that nix has no name for. It isn't a job: those were reaped a moment ago.
                Err(Errno::EINVAL) => {
                    let _ = waitpid(None, Some(WaitPidFlag::WNOHANG));
                }
                Err(_) => return,
            }
        }
    }

    fn is_live_job(&self, pid: Pid) -> bool {
        self.jobs.iter().any(|job| job.exit().is_none() && job.pid() == pid)
    }
}
