//! Runners that follow one another over the same folder.

use std::{collections::BTreeMap, fs};

use kiln::{
    domain::{event::StepName, failure::FailureCode},
    runner::{LaunchError, Outcome, Runner},
};
use tokio::time::timeout;

use crate::{
    git::GitServer,
    support::{
        LIMIT, WAITS, agent_pid, close, failure, finished, folder, from_git, inline, processes, remove, runner, until,
        until_logged,
    },
};

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
