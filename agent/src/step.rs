//! One step from the command line to the report.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use kiln_agent::wire::{
    plan::Plan,
    push::SpoolStep,
    report::{Exit, Problem, ProblemKind, Report},
};

use crate::{
    args::{Order, Step},
    capture::sink::{Sink, Totals},
    install,
    mask::{self, Masker},
    process::{Halt, Supervisor},
    run, source,
    spool::{
        Folder, cancel_file,
        writer::{Limits, Spool},
    },
};

/// What a step has to show for itself.
#[derive(Debug, Default)]
pub(crate) struct Done {
    /// The commit that was checked out.
    pub(crate) commit: Option<String>,
    /// The digest of the image that was made.
    pub(crate) digest: Option<String>,
}

/// Why a step did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It was told to stop.
    Stopped,
    /// A command failed and has said why.
    Command(Exit),
    /// The agent knows what is wrong.
    Problem(Exit, Problem),
}

impl Failure {
    /// A problem found without a command's help.
    pub(crate) fn problem(kind: ProblemKind, message: impl Into<String>) -> Self {
        Self::Problem(
            Exit::Code(1),
            Problem {
                kind,
                message: message.into(),
            },
        )
    }

    /// A problem that isn't the user's.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::problem(ProblemKind::Internal, message)
    }
}

impl From<Halt> for Failure {
    fn from(halt: Halt) -> Self {
        match halt {
            Halt::Stopped => Self::Stopped,
            Halt::OutputLost(error) => Self::internal(error.to_string()),
        }
    }
}

impl From<Step> for SpoolStep {
    fn from(step: Step) -> Self {
        match step {
            Step::Source => Self::Source,
            Step::Run => Self::Build,
        }
    }
}

/// Carries out a step and reports on it.
pub(crate) fn carry_out(order: &Order) -> ExitCode {
    let (outcome, totals) = match open_sink(order) {
        Ok(sink) => {
            let sink = Arc::new(sink);
            let outcome = supervised(order, &sink);
            let sealed = sink.seal(order.spool.is_some());
            let outcome = outcome.and_then(|done| match sealed {
                Ok(()) => Ok(done),
                Err(error) => Err(Failure::internal(error.to_string())),
            });
            let outcome = outcome.map_err(|failure| match failure {
                Failure::Problem(exit, Problem { kind, message }) => {
                    let message = sink.masked(&message);
                    Failure::Problem(exit, Problem { kind, message })
                }
                other => other,
            });
            (outcome, sink.totals())
        }
        Err(error) => {
            let nothing = Totals {
                lines: 0,
                bytes: 0,
                tail: String::new(),
                failed: None,
            };
            let message = format!("the build log can't be opened: {error}");
            (Err(Failure::internal(message)), nothing)
        }
    };
    let succeeded = outcome.is_ok();
    if let Err(error) = write_report(&order.report, &report(outcome, totals)) {
        eprintln!(
            "kiln-agent: can't write the report to {}: {error}",
            order.report.display()
        );
        return ExitCode::FAILURE;
    }
    if succeeded {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Opens the place for the frames. With a log file this is a process on a host, which must outlive the terminal that
/// its parent was started from.
fn open_sink(order: &Order) -> io::Result<Sink> {
    let out = match &order.log {
        Some(path) => {
            // Refused to the leader of a process group, who is apart from the terminal's foreground already.
            let _ = nix::unistd::setsid();
            OpenOptions::new().append(true).create(true).open(path)?
        }
        None => File::from(io::stdout().as_fd().try_clone_to_owned()?),
    };
    let spool = match &order.spool {
        Some(root) => {
            let folder = Folder::new(root, order.step.into());
            Some(Spool::create(
                folder,
                Limits::new(order.spool_limit, order.spool_patience),
            )?)
        }
        None => None,
    };
    Ok(Sink::new(out, spool, unix_ms))
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn supervised(order: &Order, sink: &Arc<Sink>) -> Result<Done, Failure> {
    let cancel = order.spool.as_deref().map(cancel_file);
    let mut supervisor = Supervisor::new(cancel)
        .map_err(|error| Failure::internal(format!("signals and child processes can't be watched: {error}")))?;
    let outcome = install(order)
        .and_then(|()| read_plan(&order.plan))
        .and_then(|plan| {
            let secrets = match order.step {
                Step::Source => &plan.source.mask,
                Step::Run => &plan.build.mask,
            };
            hide(secrets, sink)?;
            Ok(plan)
        })
        .and_then(|plan| match order.step {
            Step::Source => source::carry_out(&plan.source, &mut supervisor, sink),
            Step::Run => run::carry_out(&plan.build, &mut supervisor, sink),
        });
    let swept = supervisor.sweep();
    if supervisor.abandoned_output() {
        sink.abandon();
    }
    if !swept {
        sink.say("Warning: some processes of this step could not be ended");
    }
    match &outcome {
        Err(Failure::Problem(_, problem)) => sink.say(&format!("Error: {}", problem.message)),
        Err(Failure::Stopped) => sink.say("Stopped as requested"),
        Err(Failure::Command(_)) | Ok(_) => {}
    }
    outcome
}

/// Keeps what is in these files out of the step's output. Nothing runs when that can't be done.
fn hide(files: &[PathBuf], sink: &Sink) -> Result<(), Failure> {
    let mut secrets = Vec::new();
    for file in files {
        let found = mask::read(file)
            .map_err(|error| Failure::internal(format!("the secret {} can't be read: {error}", file.display())))?;
        secrets.extend(found);
    }
    let masker = Masker::new(&secrets)
        .map_err(|error| Failure::internal(format!("the secrets can't be kept out of the log: {error}")))?;
    if let Some(masker) = masker {
        sink.hide(masker);
    }
    Ok(())
}

fn install(order: &Order) -> Result<(), Failure> {
    let Some(folder) = &order.install else {
        return Ok(());
    };
    install::install(folder)
        .map_err(|error| Failure::internal(format!("can't install into {}: {error}", folder.display())))
}

fn read_plan(path: &Path) -> Result<Plan, Failure> {
    let text = fs::read(path)
        .map_err(|error| Failure::internal(format!("the plan {} can't be read: {error}", path.display())))?;
    serde_json::from_slice(&text).map_err(|error| {
        Failure::internal(format!(
            "the plan {} is not one that this agent understands: {error}",
            path.display()
        ))
    })
}

fn report(outcome: Result<Done, Failure>, totals: Totals) -> Report {
    let (exit, done, problem) = match outcome {
        Ok(done) => (Exit::Code(0), done, None),
        Err(Failure::Stopped) => (Exit::Stopped, Done::default(), None),
        Err(Failure::Command(exit)) => (exit, Done::default(), None),
        Err(Failure::Problem(exit, problem)) => (exit, Done::default(), Some(problem)),
    };
    Report {
        exit,
        lines: totals.lines,
        bytes: totals.bytes,
        commit: done.commit,
        digest: done.digest,
        problem,
        failed: if exit == Exit::Code(0) { None } else { totals.failed },
        tail: if exit == Exit::Code(0) {
            String::new()
        } else {
            totals.tail
        },
    }
}

/// Writes the report in place and at once: a pod's termination log is a mounted file that can't be renamed over.
fn write_report(path: &Path, report: &Report) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(path)?;
    file.write_all(report.to_json().as_bytes())
}
