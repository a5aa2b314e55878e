//! The build step: files, the builder's daemon, its commands, the digest.

mod digest;
mod service;

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
    sync::Arc,
    time::Duration,
};

use kiln_agent::wire::{
    plan::{self, File, Progress, RunPlan},
    report::Exit,
};

use crate::{
    capture::{reader::Target, sink::Sink},
    process::Supervisor,
    step::{Done, Failure},
};

/// The shell's exit status for a program that can't be found.
const NOT_FOUND: i32 = 127;

/// Carries out the build step.
pub(crate) fn carry_out(plan: &RunPlan, supervisor: &mut Supervisor, sink: &Arc<Sink>) -> Result<Done, Failure> {
    supervisor.set_grace(Duration::from_secs(plan.grace_seconds.into()));
    for folder in &plan.folders {
        make(folder).map_err(|error| Failure::internal(format!("can't make {}: {error}", folder.display())))?;
    }
    for file in &plan.files {
        write(file).map_err(|error| Failure::internal(format!("can't write {}: {error}", file.path.display())))?;
    }
    if let Some(file) = &plan.digest {
        digest::remove_old(file)?;
    }
    let service = match &plan.service {
        Some(service) => Some(service::start(service, &plan.env, supervisor, sink)?),
        None => None,
    };
    let mut outcome = run_all(plan, supervisor, sink);
    if let Some(service) = &service {
        outcome = service.settle(outcome, supervisor, sink);
    }
    outcome?;
    let digest = plan.digest.as_ref().map(digest::read).transpose()?;
    Ok(Done { commit: None, digest })
}

fn make(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    // Not by the mode of mkdir(2), which keeps the setgid bit that the folder got from its parent.
    fs::set_permissions(folder, Permissions::from_mode(0o700))
}

fn write(file: &File) -> io::Result<()> {
    if let Some(folder) = file.path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(&file.path, &file.content)
}

fn run_all(plan: &RunPlan, supervisor: &mut Supervisor, sink: &Arc<Sink>) -> Result<(), Failure> {
    for command in &plan.commands {
        let mut outcome = run(command, &command.argv, plan, supervisor, sink);
        if let (Err(Failure::Command(Exit::Code(_))), Some(otherwise)) = (&outcome, &command.otherwise)
            && sink
                .totals()
                .tail
                .lines()
                .last()
                .is_some_and(|line| line.starts_with(&otherwise.said))
        {
            sink.say(&otherwise.remark);
            outcome = run(command, &otherwise.argv, plan, supervisor, sink);
        }
        outcome?;
    }
    Ok(())
}

/// Runs one command with these arguments.
fn run(
    command: &plan::Command,
    argv: &[String],
    plan: &RunPlan,
    supervisor: &mut Supervisor,
    sink: &Arc<Sink>,
) -> Result<(), Failure> {
    let mut process = process(argv, &plan.env)?;
    let log = || Target::Log(Arc::clone(sink));
    let (stdout, stderr) = match command.progress {
        None => (log(), log()),
        Some(told @ Progress::BuildkitJson) => (log(), Target::Progress(Arc::clone(sink), told)),
        Some(told @ Progress::Buildah) => (Target::Progress(Arc::clone(sink), told), log()),
    };
    let job = supervisor
        .start(&mut process, stdout, stderr)
        .map_err(|error| cannot_start(argv, &error))?;
    match supervisor.wait(job)? {
        Exit::Code(0) => Ok(()),
        exit => Err(Failure::Command(exit)),
    }
}

/// A process with the plan's environment on top of the agent's own.
fn process(argv: &[String], env: &BTreeMap<String, String>) -> Result<Command, Failure> {
    let (program, arguments) = argv
        .split_first()
        .ok_or_else(|| Failure::internal("the plan holds a command without a program"))?;
    let mut command = Command::new(program);
    command.args(arguments).envs(env);
    Ok(command)
}

fn cannot_start(argv: &[String], error: &io::Error) -> Failure {
    let program = argv.first().map_or("", String::as_str);
    let message = match error.kind() {
        io::ErrorKind::NotFound => format!("`{program}` is not installed where the build runs"),
        _ => format!("`{program}` can't be started: {error}"),
    };
    match Failure::internal(message) {
        Failure::Problem(_, problem) => Failure::Problem(Exit::Code(NOT_FOUND), problem),
        other => other,
    }
}
