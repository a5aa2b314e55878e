//! Brings the spool to the service, beside the steps that write it and after them.
//!
//! The service's answers say how far it is, so this process holds nothing that matters: it may be killed and started
//! again at any time, and talk to another replica with each request. It stays until it is told to end, as a sidecar is
//! started again when it exits, and then until everything is there or there is no hope. It is told by SIGTERM or by a
//! file; where nobody may be left to tell, it can end by itself.

mod courier;
mod pace;
mod parcel;
mod watch;

use std::{
    fs::{self, OpenOptions},
    io,
    path::PathBuf,
    process::{self, ExitCode},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use kiln_agent::wire::push::{MAX_PUSH, PushAnswer, Seal};
use nix::sys::signal::{Signal, raise};
use signal_hook::{
    consts::{SIGINT, SIGTERM},
    iterator::Signals,
};

pub(crate) use self::pace::Pace;
use self::{
    courier::{Answer, Courier},
    pace::Backoff,
    parcel::Parcel,
    watch::Watch,
};
use crate::{
    args::Shipping,
    spool::{cancel_file, over_file},
};

/// A push of less than this may wait a moment for more.
const WORTH_A_PUSH: usize = 64 << 10;
/// A push holds at least the longest frame.
const MIN_PUSH: usize = MAX_PUSH / 8;

/// Ships until everything is there, or the time is up.
pub(crate) fn carry_out(order: &Shipping) -> ExitCode {
    // Outlives the terminal and the service that it was started from. Refused to a leader, who is apart already.
    let _ = nix::unistd::setsid();
    match ship(order) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kiln-agent: the log can't be shipped: {error}");
            ExitCode::FAILURE
        }
    }
}

fn ship(order: &Shipping) -> io::Result<()> {
    let mut watch = Watch::new(&order.spool)?;
    let reached = Arc::new(AtomicBool::new(false));
    end_in_time(order.pace, watch.stopper()?, Arc::clone(&reached))?;
    let parcels = order
        .steps
        .iter()
        .map(|&step| Parcel::open(&order.spool, step))
        .collect::<io::Result<Vec<_>>>()?;
    if parcels.iter().any(Parcel::was_taken) {
        reached.store(true, Ordering::Relaxed);
    }
    let mut shipper = Shipper {
        courier: Courier::new(&order.url, &order.token),
        cancel: cancel_file(&order.spool),
        over_file: over_file(&order.spool),
        told: false,
        heard: Instant::now(),
        backoff: Backoff::new(order.pace.retry),
        pace: order.pace,
        parcels,
        reached,
        max_push: MAX_PUSH,
        over: false,
        last_push: None,
        trouble: None,
    };
    while shipper.turn(&mut watch)? {}
    Ok(())
}

/// Waits for the signal to end, passes it on, and ends the process when the time is up.
fn end_in_time(pace: Pace, stopper: io::PipeWriter, reached: Arc<AtomicBool>) -> io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    thread::spawn(move || {
        signals.forever().next();
        drop(stopper);
        thread::sleep(pace.unreached);
        if reached.load(Ordering::Relaxed) {
            thread::sleep(pace.give_up.saturating_sub(pace.unreached));
        }
        eprintln!("kiln-agent: gave up: the service did not take all of the log");
        process::exit(1);
    });
    Ok(())
}

struct Shipper {
    courier: Courier,
    cancel: PathBuf,
    /// Says that the shipper is to come to an end, like the signal, which a process that was just started can't take.
    over_file: PathBuf,
    /// It has told itself to end.
    told: bool,
    /// When the service answered last.
    heard: Instant,
    backoff: Backoff,
    pace: Pace,
    parcels: Vec<Parcel>,
    /// Whether the service has ever answered.
    reached: Arc<AtomicBool>,
    max_push: usize,
    /// The service wants nothing more of this attempt.
    over: bool,
    last_push: Option<Instant>,
    /// What was said last about why it doesn't go on.
    trouble: Option<String>,
}

/// What is to be done about one of the parcels.
enum Work {
    Push(usize, Vec<u8>),
    Seal(usize, Seal),
}

impl Shipper {
    /// Does what is next, or waits for it. Says whether there is more to come.
    fn turn(&mut self, watch: &mut Watch) -> io::Result<bool> {
        if !self.told && self.over_file.exists() {
            self.told = true;
            raise(Signal::SIGTERM)?;
        }
        if self.is_alone() {
            let nobody = "no step runs, and the service does not answer";
            let over = self.parcels.iter().all(Parcel::is_over);
            return if over { Ok(false) } else { Err(io::Error::other(nobody)) };
        }
        // The signal that it has sent itself takes a moment.
        let stopping = self.told || watch.stopping();
        let work = if self.over { None } else { self.next_work(stopping)? };
        let Some(work) = work else {
            if stopping && (self.over || self.parcels.iter().all(Parcel::is_over)) {
                return Ok(false);
            }
            return self.idle(watch).map(|()| true);
        };
        if let Work::Push(_, frames) = &work
            && frames.len() < WORTH_A_PUSH
            && let Some(last) = self.last_push
        {
            let due = last + self.pace.gather;
            if !stopping && Instant::now() < due {
                watch.pause(due.saturating_duration_since(Instant::now()));
                return Ok(true);
            }
        }
        self.last_push = Some(Instant::now());
        let answer = match &work {
            Work::Push(at, frames) => {
                let parcel = &self.parcels[*at];
                self.courier
                    .push(parcel.step, parcel.offset(), frames, parcel.printed()?)
            }
            Work::Seal(at, seal) => self.courier.seal(self.parcels[*at].step, seal),
        };
        self.settle(&work, answer, watch)?;
        Ok(true)
    }

    /// Whether nobody needs it, and nobody may be left to say so.
    fn is_alone(&self) -> bool {
        let limit = self.pace.alone;
        limit.is_some_and(|limit| self.heard.elapsed() >= limit) && !self.parcels.iter().any(Parcel::has_writer)
    }

    /// Waits for something to do, and sends a sign of life when there is nothing for a while.
    fn idle(&mut self, watch: &mut Watch) -> io::Result<()> {
        let alive = self.parcels.iter().position(|parcel| !parcel.sealed());
        let Some(at) = alive.filter(|_| !self.over) else {
            watch.wait(Duration::MAX);
            return Ok(());
        };
        let due = self.last_push.map(|last| last + self.pace.heartbeat);
        let left = due.map_or(Duration::ZERO, |due| due.saturating_duration_since(Instant::now()));
        if !left.is_zero() {
            watch.wait(left);
            return Ok(());
        }
        self.last_push = Some(Instant::now());
        let parcel = &self.parcels[at];
        let answer = self.courier.push(parcel.step, parcel.offset(), &[], parcel.printed()?);
        self.settle(&Work::Push(at, Vec::new()), answer, watch)
    }

    fn next_work(&mut self, stopping: bool) -> io::Result<Option<Work>> {
        for at in 0..self.parcels.len() {
            // A step begins when those before it have ended.
            let expected = stopping || self.parcels[at + 1..].iter().any(Parcel::has_begun);
            let parcel = &mut self.parcels[at];
            if parcel.sealed() {
                continue;
            }
            let end = parcel.end(expected)?;
            let frames = parcel.read(self.max_push)?;
            if !frames.is_empty() {
                return Ok(Some(Work::Push(at, frames)));
            }
            if let Some(end) = end {
                return Ok(Some(Work::Seal(at, parcel.seal_for(end)?)));
            }
        }
        Ok(None)
    }

    fn settle(&mut self, work: &Work, answer: Answer, watch: &mut Watch) -> io::Result<()> {
        let (Work::Push(at, _) | Work::Seal(at, _)) = work;
        let before = self.parcels[*at].offset();
        let mut wait = None;
        match answer {
            Answer::Taken(PushAnswer { offset, cancel }) => {
                self.heard();
                self.parcels[*at].advance(offset)?;
                match work {
                    Work::Seal(..) => self.parcels[*at].seal()?,
                    Work::Push(_, frames) if !frames.is_empty() && offset == before => {
                        wait = Some((None, "the service takes nothing".to_owned()));
                    }
                    Work::Push(..) => {}
                }
                if cancel {
                    OpenOptions::new().create(true).append(true).open(&self.cancel)?;
                }
            }
            Answer::Behind(offset) => {
                self.heard();
                let parcel = &mut self.parcels[*at];
                let known = parcel.advance(offset)?;
                match work {
                    // What the service lacks is not there any more.
                    Work::Seal(_, seal) if !known || offset == before => {
                        if !parcel.cut(seal, offset) {
                            wait = Some((None, "the service does not take the seal".to_owned()));
                        }
                    }
                    Work::Push(..) if !known => {
                        self.over = true;
                        eprintln!("kiln-agent: the service lacks what it took before: nothing more is shipped");
                    }
                    Work::Push(..) if offset == before => {
                        wait = Some((None, "the service refuses the offset that it asked for".to_owned()));
                    }
                    Work::Push(..) | Work::Seal(..) => {}
                }
            }
            Answer::TooLarge if self.max_push > MIN_PUSH => {
                self.heard();
                self.max_push /= 2;
            }
            Answer::TooLarge => wait = Some((None, "the service takes no push, however small".to_owned())),
            Answer::Over(why) => {
                self.reached.store(true, Ordering::Relaxed);
                self.over = true;
                eprintln!("kiln-agent: the service wants nothing more of this log: {why}");
            }
            Answer::Busy { after, why } => wait = Some((after, why)),
        }
        match wait {
            None => self.backoff.reset(),
            Some((after, why)) => {
                if self.trouble.as_ref() != Some(&why) {
                    eprintln!("kiln-agent: {why}: that may pass");
                }
                self.trouble = Some(why);
                watch.pause(self.backoff.next(after, pace::random()));
            }
        }
        Ok(())
    }

    /// The service has answered.
    fn heard(&mut self) {
        self.reached.store(true, Ordering::Relaxed);
        self.heard = Instant::now();
        if self.trouble.take().is_some() {
            eprintln!("kiln-agent: the service takes the log again");
        }
    }
}

/// The token in a file, which may come later than this process.
fn read_token(path: &PathBuf) -> io::Result<String> {
    Ok(fs::read_to_string(path)?.trim().to_owned())
}
