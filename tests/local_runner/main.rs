//! The local runner with the real agent, git and buildah.

mod git;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use kiln::{
    domain::{
        build::Assignment,
        event::StepName,
        failure::FailureCode,
        id::{AttemptId, BuildId},
        secret::{Credentials, GitCredentials, SecretBytes, SecretText},
    },
    runner::{
        LaunchError, LogEnd, LogPosition, Observation, Outcome, Readiness, Runner,
        local::{LocalConfig, LocalRunner},
    },
};
use kiln_agent::wire::{frame::Frame, report::Exit};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{sync::watch, time::timeout};

use crate::git::GitServer;

/// Nothing here takes longer, even on a busy machine.
const LIMIT: Duration = Duration::from_mins(4);

fn config(data: &TempDir) -> LocalConfig {
    let agent = Path::new(env!("CARGO_BIN_EXE_kiln")).with_file_name("kiln-agent");
    assert!(agent.exists(), "first build the agent: cargo build --workspace --bins");
    LocalConfig {
        data_dir: data.path().to_owned(),
        agent: Some(agent),
        stop_grace_seconds: 1,
    }
}

fn runner(data: &TempDir) -> LocalRunner {
    LocalRunner::start(&config(data), Vec::new()).expect("starts")
}

fn assignment(source: &Value) -> Assignment {
    let spec = json!({
        "source": source, "dockerfile": "Dockerfile", "build_args": {}, "target": null, "platforms": ["linux/amd64"],
        "labels": {}, "images": [], "push": false, "builder": "buildkit",
        "resources": {"cpu": "1", "memory": "1Gi", "disk": "1Gi"},
        "timeout_seconds": 600, "priority": 0, "annotations": {},
    });
    Assignment {
        attempt: AttemptId {
            build: BuildId::new(),
            number: 1,
        },
        project: "default".parse().expect("valid"),
        spec: serde_json::from_value(spec).expect("valid"),
        commit: None,
        credentials: Credentials::default(),
    }
}

fn inline(dockerfile: &str) -> Assignment {
    assignment(
        &json!({"type": "inline", "files": {"Dockerfile": dockerfile, "hello.txt": "hello\n", "sub/b.txt": "b\n"}}),
    )
}

fn from_git(url: &str) -> Assignment {
    assignment(&json!({
        "type": "git", "url": url, "ref": null, "commit": null, "subdir": "", "submodules": false,
    }))
}

async fn until(
    observed: &mut watch::Receiver<Observation>,
    what: &str,
    is: impl Fn(&Observation) -> bool,
) -> Observation {
    if let Ok(seen) = timeout(LIMIT, observed.wait_for(is)).await {
        return seen.expect("the runner lives").clone();
    }
    panic!("never observed: {what}; now {:?}", observed.borrow())
}

async fn finished(runner: &LocalRunner, attempt: AttemptId) -> (Vec<kiln::runner::StepObservation>, Outcome) {
    let mut observed = runner.observe(attempt);
    let seen = until(&mut observed, "the end", |seen| {
        matches!(seen, Observation::Finished { .. })
    })
    .await;
    let Observation::Finished { steps, outcome, .. } = seen else {
        unreachable!("waited for")
    };
    (steps, outcome)
}

fn failure(outcome: Outcome) -> (FailureCode, String) {
    match outcome {
        Outcome::Failed(failure) => (failure.code, failure.message),
        Outcome::Succeeded => panic!("succeeded"),
    }
}

/// The step's lines after `after`, whose numbers must have no gap.
async fn log(runner: &LocalRunner, attempt: AttemptId, step: StepName, after: u64) -> Vec<String> {
    let position = LogPosition { line: after, at_ms: 0 };
    let mut reader = runner.read_log(attempt, step, position);
    let (mut lines, mut last) = (Vec::new(), after);
    let read = async {
        while let Some(chunk) = reader.chunks.recv().await {
            for line in chunk.split_inclusive(|&byte| byte == b'\n') {
                let line = line.strip_suffix(b"\n").expect("whole lines");
                let frame = Frame::parse(line).expect("a frame");
                assert_eq!(frame.number, last + 1, "no gap, no repetition");
                last = frame.number;
                lines.push(String::from_utf8_lossy(frame.text).into_owned());
            }
        }
        reader.end.await.expect("doesn't panic")
    };
    assert_eq!(timeout(LIMIT, read).await.expect("ends"), LogEnd::Complete);
    lines
}

/// Waits until the build step has printed the line.
async fn until_logged(runner: &LocalRunner, attempt: AttemptId, wanted: &str) {
    let mut reader = runner.read_log(attempt, StepName::Build, LogPosition::default());
    let read = async {
        let mut all = Vec::new();
        while let Some(chunk) = reader.chunks.recv().await {
            all.extend_from_slice(&chunk);
            if String::from_utf8_lossy(&all).lines().any(|line| line.ends_with(wanted)) {
                return;
            }
        }
        panic!("the log ended without `{wanted}`: {}", String::from_utf8_lossy(&all));
    };
    timeout(LIMIT, read).await.expect("printed in time");
}

/// The processes that belong to an attempt, seen from outside.
fn processes(data: &TempDir, attempt: AttemptId) -> BTreeMap<i32, String> {
    let folder = folder(data, attempt);
    let mark = format!("KILN_ATTEMPT={attempt}");
    let processes = fs::read_dir("/proc").expect("mounted").flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        let inside = fs::read_link(entry.path().join("root")).is_ok_and(|root| root.starts_with(&folder));
        let belongs = inside
            || environment
                .split(|&byte| byte == 0)
                .any(|variable| variable == mark.as_bytes());
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        belongs.then(|| (pid, String::from_utf8_lossy(&line).replace('\0', " ")))
    });
    processes.collect()
}

fn folder(data: &TempDir, attempt: AttemptId) -> PathBuf {
    data.path()
        .canonicalize()
        .expect("exists")
        .join("builds")
        .join(attempt.to_string())
}

fn agent_pid(data: &TempDir, attempt: AttemptId, step: StepName) -> Pid {
    let file = folder(data, attempt).join(format!("{}.pid", step.as_str()));
    let text = fs::read_to_string(file).expect("recorded");
    Pid::from_raw(text.split(' ').next().expect("a number").parse().expect("a number"))
}

async fn remove(runner: &LocalRunner, data: &TempDir, attempt: AttemptId) {
    runner.remove(attempt).await.expect("removed");
    assert_eq!(processes(data, attempt), BTreeMap::new());
    assert!(
        fs::read_dir(data.path().join("builds"))
            .expect("listed")
            .next()
            .is_none(),
        "nothing is left"
    );
}

/// Ends the runner and all that runs.
async fn close(runner: LocalRunner) {
    timeout(LIMIT, runner.wind_down()).await.expect("everything ends");
    runner.shut_down().await;
}

#[tokio::test]
async fn credentials_are_files_of_the_attempt_that_nobody_else_reads() {
    let data = tempfile::tempdir().expect("a folder");
    let runner = runner(&data);
    let mut assignment = inline("FROM scratch\nCOPY hello.txt /\n");
    let value = "hunter2hunter2";
    assignment.credentials.source = Some(GitCredentials::Token(SecretText::new(value)));
    let mount = "npm".parse().expect("an id");
    assignment.credentials.secrets = [(mount, SecretBytes::new(value))].into();
    let attempt = assignment.attempt;
    runner.launch(&assignment).await.expect("launches");
    let (_, outcome) = finished(&runner, attempt).await;
    assert_eq!(outcome, Outcome::Succeeded);
    let folder = folder(&data, attempt);
    for file in ["source/git-password", "build/secret-0"] {
        let file = folder.join("credentials").join(file);
        assert_eq!(fs::read_to_string(&file).expect("a file"), value);
        let permissions = fs::metadata(&file).expect("a file").permissions();
        assert_eq!(permissions.mode() & 0o777, 0o600);
    }
    let plan = fs::read_to_string(folder.join("plan.json")).expect("the plan");
    assert!(plan.contains("secret-0") && !plan.contains(value), "{plan}");
    for step in [StepName::Source, StepName::Build] {
        let log = log(&runner, attempt, step, 0).await;
        assert!(log.iter().all(|line| !line.contains(value)), "{log:?}");
    }
    remove(&runner, &data, attempt).await;
    close(runner).await;
}

#[tokio::test]
async fn builds_from_nothing_but_the_request() {
    let data = tempfile::tempdir().expect("folder");
    let runner = runner(&data);
    assert_eq!(*runner.readiness().borrow(), Readiness::Ready);
    let assignment = inline("FROM scratch\nCOPY . /srv/\n");
    let launched = runner.launch(&assignment).await.expect("launched");
    assert_eq!(
        (launched.name, launched.adopted),
        (assignment.attempt.to_string(), false)
    );

    let (steps, outcome) = finished(&runner, assignment.attempt).await;
    assert_eq!(outcome, Outcome::Succeeded);
    assert_eq!(steps.iter().map(|step| step.step).collect::<Vec<_>>(), StepName::ALL);
    for step in &steps {
        let end = step.end.as_ref().expect("ended");
        assert!(end.succeeded && end.at >= step.started_at, "{step:?}");
        let lines = log(&runner, assignment.attempt, step.step, 0).await;
        assert_eq!(end.report.as_ref().expect("reported").lines, lines.len() as u64);
    }
    let lines = log(&runner, assignment.attempt, StepName::Build, 0).await;
    assert!(lines.iter().any(|line| line.ends_with("COPY . /srv/")), "{lines:?}");

    assert_eq!(runner.list().await.expect("listed"), [assignment.attempt]);
    let mut observed = runner.observe(assignment.attempt);
    remove(&runner, &data, assignment.attempt).await;
    until(
        &mut observed,
        "its removal",
        |seen| matches!(seen, Observation::Gone { steps } if steps.len() == 2),
    )
    .await;
    runner.remove(assignment.attempt).await.expect("nothing to do");
    close(runner).await;
}

#[tokio::test]
async fn builds_from_git_and_runs_commands() {
    let server =
        GitServer::start("FROM scratch\nCOPY p /p\nRUN [\"/p\", \"lines\", \"30000\"]\nRUN [\"/p\", \"give-away\"]\n")
            .await;
    let data = tempfile::tempdir().expect("folder");
    let runner = runner(&data);
    let assignment = from_git(&server.url("app.git"));
    runner.launch(&assignment).await.expect("launched");
    // Read while it runs.
    let lines = log(&runner, assignment.attempt, StepName::Build, 0).await;
    let numbered: Vec<_> = lines
        .iter()
        .filter_map(|line| line.strip_prefix("line ")?.parse::<u32>().ok())
        .collect();
    let first_wrong = numbered.iter().zip(1..).find(|(number, place)| **number != *place);
    assert!(
        numbered.len() == 30_000 && first_wrong.is_none(),
        "{} lines, first wrong {first_wrong:?}, last {:?}",
        numbered.len(),
        &lines[lines.len().saturating_sub(5)..]
    );

    let (steps, outcome) = finished(&runner, assignment.attempt).await;
    assert_eq!(outcome, Outcome::Succeeded);
    let report = steps[0]
        .end
        .as_ref()
        .and_then(|end| end.report.as_ref())
        .expect("reported");
    assert_eq!(report.commit.as_deref(), Some(server.commit().as_str()));
    let rest = log(&runner, assignment.attempt, StepName::Build, 29_000).await;
    assert_eq!(rest, lines[29_000..]);
    remove(&runner, &data, assignment.attempt).await;
    close(runner).await;
}

#[tokio::test]
async fn failures_are_told_apart() {
    let server = GitServer::start("FROM scratch\nCOPY p /p\nRUN [\"/p\", \"exit\", \"3\"]\n").await;
    let data = tempfile::tempdir().expect("folder");
    let runner = runner(&data);
    let mut no_dockerfile = inline("FROM scratch\n");
    no_dockerfile.spec.dockerfile = "elsewhere/Dockerfile".parse().expect("valid");
    let cases = [
        (
            from_git(&server.url("app.git")),
            FailureCode::BuildFailed,
            "exit code 3",
            2,
        ),
        (
            from_git(&server.url("other.git")),
            FailureCode::SourceFailed,
            "other.git",
            1,
        ),
        (no_dockerfile, FailureCode::DockerfileInvalid, "elsewhere/Dockerfile", 1),
        (
            inline("FROM scratch\nFRON x\n"),
            FailureCode::DockerfileInvalid,
            "FRON",
            2,
        ),
        (
            inline("FROM scratch\nCOPY nothing /\n"),
            FailureCode::BuildFailed,
            "nothing",
            2,
        ),
    ];
    for (assignment, code, words, step_count) in cases {
        runner.launch(&assignment).await.expect("launched");
        let (steps, outcome) = finished(&runner, assignment.attempt).await;
        let (found, message) = failure(outcome);
        assert_eq!(found, code, "{message}");
        assert!(message.contains(words), "{message}");
        assert_eq!(steps.len(), step_count, "{steps:?}");
        assert!(
            !steps
                .last()
                .and_then(|step| step.end.as_ref())
                .expect("ended")
                .succeeded
        );
        remove(&runner, &data, assignment.attempt).await;
    }
    close(runner).await;
}

const WAITS: &str = "FROM scratch\nCOPY p /p\nRUN [\"/p\", \"wait\"]\n";

#[tokio::test]
async fn a_stopped_build_leaves_no_process() {
    let server = GitServer::start(WAITS).await;
    let data = tempfile::tempdir().expect("folder");
    let runner = runner(&data);
    let assignment = from_git(&server.url("app.git"));
    runner.launch(&assignment).await.expect("launched");
    until_logged(&runner, assignment.attempt, "waiting").await;
    assert!(!processes(&data, assignment.attempt).is_empty());

    runner.stop(assignment.attempt).await.expect("stopped");
    let (steps, outcome) = finished(&runner, assignment.attempt).await;
    assert_eq!(failure(outcome).0, FailureCode::Internal);
    let end = steps[1].end.as_ref().expect("ended");
    assert_eq!(end.report.as_ref().expect("reported").exit, Exit::Stopped);
    assert_eq!(processes(&data, assignment.attempt), BTreeMap::new());
    assert!(
        log(&runner, assignment.attempt, StepName::Build, 0)
            .await
            .contains(&"waiting".to_owned())
    );
    runner.stop(assignment.attempt).await.expect("nothing to do");
    remove(&runner, &data, assignment.attempt).await;
    runner.stop(assignment.attempt).await.expect("nothing to do");
    close(runner).await;
}

#[tokio::test]
async fn a_running_build_can_be_removed() {
    let server = GitServer::start(WAITS).await;
    let data = tempfile::tempdir().expect("folder");
    let runner = runner(&data);
    let assignment = from_git(&server.url("app.git"));
    runner.launch(&assignment).await.expect("launched");
    until_logged(&runner, assignment.attempt, "waiting").await;
    remove(&runner, &data, assignment.attempt).await;
    close(runner).await;
}

#[tokio::test]
async fn a_killed_agent_takes_its_build_along() {
    let server = GitServer::start(WAITS).await;
    let data = tempfile::tempdir().expect("folder");
    let runner = runner(&data);
    let assignment = from_git(&server.url("app.git"));
    runner.launch(&assignment).await.expect("launched");
    until_logged(&runner, assignment.attempt, "waiting").await;
    kill(agent_pid(&data, assignment.attempt, StepName::Build), Signal::SIGKILL).expect("killed");

    let (steps, outcome) = finished(&runner, assignment.attempt).await;
    let (code, message) = failure(outcome);
    assert_eq!(code, FailureCode::Internal);
    assert!(message.contains("killed"), "{message}");
    assert_eq!(steps[1].end.as_ref().expect("ended").report, None);
    assert_eq!(processes(&data, assignment.attempt), BTreeMap::new());
    remove(&runner, &data, assignment.attempt).await;
    close(runner).await;
}

#[tokio::test]
async fn the_next_runner_goes_on_with_what_runs() {
    let server = GitServer::start(WAITS).await;
    let data = tempfile::tempdir().expect("folder");
    let first = runner(&data);
    let assignment = from_git(&server.url("app.git"));
    let attempt = assignment.attempt;
    first.launch(&assignment).await.expect("launched");
    until_logged(&first, attempt, "waiting").await;
    let before = processes(&data, attempt);
    first.shut_down().await;
    assert_eq!(processes(&data, attempt), before, "nothing ended, nothing began");

    let second = runner(&data);
    let launched = second.launch(&assignment).await.expect("launched");
    assert!(launched.adopted);
    let mut observed = second.observe(attempt);
    let seen = until(&mut observed, "both steps", |seen| seen.steps().len() == 2).await;
    assert!(
        seen.steps()[0].end.as_ref().is_some_and(|end| end.succeeded),
        "{seen:?}"
    );
    assert_eq!(processes(&data, attempt), before);
    until_logged(&second, attempt, "waiting").await;

    second.stop(attempt).await.expect("stopped");
    assert_eq!(failure(finished(&second, attempt).await.1).0, FailureCode::Internal);
    assert_eq!(processes(&data, attempt), BTreeMap::new());
    remove(&second, &data, attempt).await;
    close(second).await;
}

#[tokio::test]
async fn the_next_runner_takes_the_next_step() {
    let server = GitServer::start("FROM scratch\nCOPY p /p\n").await;
    server.set_open(false);
    let data = tempfile::tempdir().expect("folder");
    let first = runner(&data);
    let assignment = from_git(&server.url("app.git"));
    let attempt = assignment.attempt;
    first.launch(&assignment).await.expect("launched");
    until(&mut first.observe(attempt), "the first step", |seen| {
        seen.steps().len() == 1
    })
    .await;
    timeout(LIMIT, server.asked()).await.expect("the agent is at work");
    let agent = agent_pid(&data, attempt, StepName::Source);
    first.shut_down().await;
    // As if kiln had been killed between starting the agent and noting its number.
    fs::remove_file(folder(&data, attempt).join("source.pid")).expect("removed");

    let second = runner(&data);
    until(&mut second.observe(attempt), "the first step", |seen| {
        seen.steps().len() == 1
    })
    .await;
    assert_eq!(
        agent_pid(&data, attempt, StepName::Source),
        agent,
        "found again, not started again"
    );
    server.set_open(true);
    let (steps, outcome) = finished(&second, attempt).await;
    assert_eq!(outcome, Outcome::Succeeded);
    assert_eq!(steps.len(), 2);
    close(second).await;

    // What has ended is observed the same by whoever comes later.
    let third = runner(&data);
    assert_eq!(finished(&third, attempt).await, (steps, outcome));
    remove(&third, &data, attempt).await;
    close(third).await;
}

#[tokio::test]
async fn a_shutdown_that_stops_builds_says_so_later() {
    let server = GitServer::start(WAITS).await;
    let data = tempfile::tempdir().expect("folder");
    let first = runner(&data);
    let assignment = from_git(&server.url("app.git"));
    let attempt = assignment.attempt;
    first.launch(&assignment).await.expect("launched");
    until_logged(&first, attempt, "waiting").await;
    timeout(LIMIT, first.wind_down()).await.expect("everything ends");
    let (_, outcome) = finished(&first, attempt).await;
    assert!(
        failure(outcome.clone()).1.contains("service was stopped"),
        "{outcome:?}"
    );
    assert_eq!(processes(&data, attempt), BTreeMap::new());
    let error = first.launch(&inline("FROM scratch\n")).await.expect_err("too late");
    assert!(matches!(error, LaunchError::NotReady(_)), "{error}");
    first.shut_down().await;

    let second = runner(&data);
    assert_eq!(finished(&second, attempt).await.1, outcome);
    remove(&second, &data, attempt).await;
    close(second).await;
}

#[tokio::test]
async fn without_an_agent_nothing_is_launched() {
    let data = tempfile::tempdir().expect("folder");
    let mut config = config(&data);
    config.agent = Some("/nowhere/kiln-agent".into());
    let runner = LocalRunner::start(&config, Vec::new()).expect("starts");
    let error = runner.launch(&inline("FROM scratch\n")).await.expect_err("no agent");
    assert!(
        matches!(&error, LaunchError::NotReady(why) if why.contains("/nowhere/kiln-agent")),
        "{error}"
    );
    assert_eq!(runner.list().await.expect("listed"), []);
    close(runner).await;
}
