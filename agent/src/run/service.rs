//! The daemon that the builder's commands talk to. Its own log is noise as long as all goes well, so it is shown only
//! when the daemon dies or doesn't become ready.

use std::{
    collections::BTreeMap,
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use kiln_agent::wire::{
    plan::Service as Plan,
    report::{Exit, Problem, ProblemKind},
};

use crate::{
    capture::{kept::SharedKept, reader::Target, sink::Sink},
    process::{JobId, Supervisor},
    step::Failure,
};

/// How much of the daemon's log is kept.
const KEPT_LOG: usize = 64 * 1024;

/// How often to see whether the daemon is ready.
const POLL: Duration = Duration::from_millis(20);

/// How long the daemon has to end by itself.
const END: Duration = Duration::from_secs(5);

/// How long it has at least when the step is stopped and its commands have used up the time.
const LATE_END: Duration = Duration::from_secs(1);

/// A daemon that is ready.
#[derive(Debug)]
pub(super) struct Service {
    job: JobId,
    program: String,
    socket: PathBuf,
    log: Arc<SharedKept>,
}

/// Starts the daemon and waits until it accepts connections.
pub(super) fn start(
    plan: &Plan,
    env: &BTreeMap<String, String>,
    supervisor: &mut Supervisor,
    sink: &Sink,
) -> Result<Service, Failure> {
    let mut process = super::process(&plan.argv, env)?;
    let log = Arc::new(SharedKept::new(KEPT_LOG));
    let target = Target::Memory(Arc::clone(&log));
    let job = supervisor
        .start(&mut process, target.clone(), target)
        .map_err(|error| super::cannot_start(&plan.argv, &error))?;
    let service = Service {
        job,
        program: plan.argv.first().cloned().unwrap_or_default(),
        socket: plan.socket.clone(),
        log,
    };
    let ready_by = Instant::now() + Duration::from_secs(plan.ready_seconds.into());
    while !service.answers() {
        let halted = supervisor.pass(Instant::now() + POLL);
        if let Err(halt) = halted {
            service.end(supervisor);
            return Err(halt.into());
        }
        if supervisor.exit_of(job).is_some() {
            let exit = service.end(supervisor);
            return Err(service.failed(exit, &format!("ended before it was ready ({})", words(exit)), sink));
        }
        if Instant::now() >= ready_by {
            service.end(supervisor);
            let what = format!("was not ready after {} seconds", plan.ready_seconds);
            return Err(service.failed(Exit::Code(1), &what, sink));
        }
    }
    Ok(service)
}

impl Service {
    /// Ends the daemon after its commands. Where they failed because it died under them, that is the failure.
    pub(super) fn settle(
        &self,
        outcome: Result<(), Failure>,
        supervisor: &mut Supervisor,
        sink: &Sink,
    ) -> Result<(), Failure> {
        let died = matches!(outcome, Err(Failure::Command(_))) && self.has_died(supervisor);
        let exit = self.end(supervisor);
        if died {
            return Err(self.failed(exit, &format!("died during the build ({})", words(exit)), sink));
        }
        outcome
    }

    fn answers(&self) -> bool {
        UnixStream::connect(&self.socket).is_ok()
    }

    /// Whether the daemon is gone. Its clients notice first, so one that doesn't answer gets a moment to end and
    /// leave its exit status.
    fn has_died(&self, supervisor: &mut Supervisor) -> bool {
        if supervisor.exit_of(self.job).is_none() && self.answers() {
            return false;
        }
        let deadline = Instant::now() + LATE_END;
        while supervisor.exit_of(self.job).is_none() && Instant::now() < deadline {
            if supervisor.pass(deadline).is_err() {
                break;
            }
        }
        true
    }

    fn end(&self, supervisor: &mut Supervisor) -> Exit {
        let grace = supervisor.grace_left().map_or(END, |left| left.clamp(LATE_END, END));
        supervisor.end(self.job, grace)
    }

    /// Shows the daemon's log and makes its last line part of the problem. A daemon that ended before its time has
    /// failed, whatever its exit status.
    fn failed(&self, exit: Exit, what: &str, sink: &Sink) -> Failure {
        let exit = if exit == Exit::Code(0) { Exit::Code(1) } else { exit };
        let log = self.log.text();
        sink.say(&format!("Log of {}:", self.program));
        sink.say(&log);
        let last = log.lines().rev().find(|line| !line.trim().is_empty());
        let message = match last {
            Some(last) => format!("`{}` {what}; its last words: {}", self.program, last.trim()),
            None => format!("`{}` {what} and said nothing", self.program),
        };
        let problem = Problem {
            kind: ProblemKind::Internal,
            message,
        };
        Failure::Problem(exit, problem)
    }
}

fn words(exit: Exit) -> String {
    match exit {
        Exit::Code(code) => format!("exit status {code}"),
        Exit::Signal(signal) => format!("killed by signal {signal}"),
        Exit::Stopped => "stopped".to_owned(),
    }
}
