//! What every test here starts from.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use kiln::{
    domain::{
        build::Assignment,
        event::StepName,
        failure::FailureCode,
        id::{AttemptId, BuildId},
        node::AvoidedNodes,
        secret::Credentials,
    },
    runner::{
        LogEnd, LogPosition, Observation, Outcome, Runner,
        local::{LocalConfig, LocalRunner},
    },
};
use kiln_agent::wire::frame::Frame;
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{sync::watch, time::timeout};

/// Nothing here takes longer, even on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_mins(4);

pub(crate) fn config(data: &TempDir) -> LocalConfig {
    let agent = Path::new(env!("CARGO_BIN_EXE_kiln")).with_file_name("kiln-agent");
    assert!(agent.exists(), "first build the agent: cargo build --workspace --bins");
    LocalConfig {
        data_dir: data.path().to_owned(),
        agent: Some(agent),
        stop_grace_seconds: 1,
    }
}

pub(crate) fn runner(data: &TempDir) -> LocalRunner {
    LocalRunner::start(&config(data), Vec::new()).expect("starts")
}

pub(crate) fn assignment(source: &Value) -> Assignment {
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
        avoid: AvoidedNodes::default(),
    }
}

pub(crate) fn inline(dockerfile: &str) -> Assignment {
    assignment(
        &json!({"type": "inline", "files": {"Dockerfile": dockerfile, "hello.txt": "hello\n", "sub/b.txt": "b\n"}}),
    )
}

pub(crate) fn from_git(url: &str) -> Assignment {
    assignment(&json!({
        "type": "git", "url": url, "ref": null, "commit": null, "subdir": "", "submodules": false,
    }))
}

pub(crate) async fn until(
    observed: &mut watch::Receiver<Observation>,
    what: &str,
    is: impl Fn(&Observation) -> bool,
) -> Observation {
    if let Ok(seen) = timeout(LIMIT, observed.wait_for(is)).await {
        return seen.expect("the runner lives").clone();
    }
    panic!("never observed: {what}; now {:?}", observed.borrow())
}

pub(crate) async fn finished(
    runner: &LocalRunner,
    attempt: AttemptId,
) -> (Vec<kiln::runner::StepObservation>, Outcome) {
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

pub(crate) fn failure(outcome: Outcome) -> (FailureCode, String) {
    match outcome {
        Outcome::Failed(failure) | Outcome::FailedByNode(failure) => (failure.code, failure.message),
        Outcome::Succeeded => panic!("succeeded"),
    }
}

/// The step's lines after `after`, whose numbers must have no gap.
pub(crate) async fn log(runner: &LocalRunner, attempt: AttemptId, step: StepName, after: u64) -> Vec<String> {
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
pub(crate) async fn until_logged(runner: &LocalRunner, attempt: AttemptId, wanted: &str) {
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

/// Processes with their command lines, by their numbers.
pub(crate) type Agents = BTreeMap<i32, String>;

/// The agents at work on attempts of the folder, and what sends their logs.
pub(crate) fn agents(data: &Path) -> Agents {
    let data = data.canonicalize().expect("exists").display().to_string();
    let processes = fs::read_dir("/proc").expect("mounted").flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let line = command_line(&entry.path());
        (line.contains("kiln-agent") && line.contains(&data)).then_some((pid, line))
    });
    processes.collect()
}

/// What sends the attempts' logs.
pub(crate) fn shippers(data: &Path) -> Agents {
    let mut agents = agents(data);
    agents.retain(|_, line| line.contains("kiln-agent ship "));
    agents
}

fn command_line(process: &Path) -> String {
    let line = fs::read(process.join("cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).replace('\0', " ")
}

/// The processes that belong to an attempt, seen from outside.
pub(crate) fn processes(data: &TempDir, attempt: AttemptId) -> BTreeMap<i32, String> {
    let folder = folder(data, attempt);
    let marks = ["KILN_ATTEMPT", "KILN_ATTEMPT_LOG"].map(|name| format!("{name}={attempt}"));
    let processes = fs::read_dir("/proc").expect("mounted").flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        let inside = fs::read_link(entry.path().join("root")).is_ok_and(|root| root.starts_with(&folder));
        let belongs = inside
            || environment
                .split(|&byte| byte == 0)
                .any(|variable| marks.iter().any(|mark| mark.as_bytes() == variable));
        belongs.then(|| (pid, command_line(&entry.path())))
    });
    processes.collect()
}

pub(crate) fn folder(data: &TempDir, attempt: AttemptId) -> PathBuf {
    data.path()
        .canonicalize()
        .expect("exists")
        .join("builds")
        .join(attempt.to_string())
}

pub(crate) fn agent_pid(data: &TempDir, attempt: AttemptId, step: StepName) -> Pid {
    let file = folder(data, attempt).join(format!("{}.pid", step.as_str()));
    let text = fs::read_to_string(file).expect("recorded");
    Pid::from_raw(text.split(' ').next().expect("a number").parse().expect("a number"))
}

pub(crate) async fn remove(runner: &LocalRunner, data: &TempDir, attempt: AttemptId) {
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
pub(crate) async fn close(runner: LocalRunner) {
    timeout(LIMIT, runner.wind_down()).await.expect("everything ends");
    runner.shut_down().await;
}

/// A Dockerfile whose command waits for ever.
pub(crate) const WAITS: &str = "FROM scratch\nCOPY p /p\nRUN [\"/p\", \"wait\"]\n";
