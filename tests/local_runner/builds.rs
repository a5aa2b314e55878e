//! Builds from their launch to their end.

use std::{fs, os::unix::fs::PermissionsExt as _};

use kiln::{
    domain::{
        event::StepName,
        failure::FailureCode,
        secret::{GitCredentials, SecretBytes, SecretText},
    },
    runner::{LaunchError, Observation, Outcome, Readiness, Runner, local::LocalRunner},
};

use crate::{
    git::GitServer,
    support::{close, config, failure, finished, folder, from_git, inline, log, remove, runner, until},
};

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
