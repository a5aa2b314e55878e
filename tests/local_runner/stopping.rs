//! Builds that are ended before their time.

use kiln::{
    domain::{event::StepName, failure::FailureCode},
    runner::Runner,
};
use kiln_agent::wire::report::Exit;
use nix::sys::signal::{Signal, kill};
use std::collections::BTreeMap;

use crate::{
    git::GitServer,
    support::{WAITS, agent_pid, close, failure, finished, from_git, log, processes, remove, runner, until_logged},
};

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
