//! Logs on their way from the host's attempts to the service, which, with what sends them, may die at any time.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use kiln::{
    domain::{
        attempt_token::{AttemptKey, Purpose},
        build::Assignment,
        secret::LogAccess,
    },
    runner::{Observation, Runner as _, Shipping},
};
use kiln_agent::wire::report::{Exit, Report};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::time::timeout;

use crate::{
    git::GitServer,
    program::Program,
    service::Kiln,
    support::{
        Agents, LIMIT, WAITS, agents, close, folder, from_git, processes, remove, runner, shippers, until, until_logged,
    },
};

/// Prints for some seconds.
const LINES: usize = 4000;

/// A server with a build that prints [`LINES`] lines.
async fn printing() -> GitServer {
    GitServer::start(&format!(
        "FROM scratch\nCOPY p /p\nRUN [\"/p\", \"slowly\", \"{LINES}\"]\n"
    ))
    .await
}

fn request(server: &GitServer) -> Value {
    json!({"source": {"type": "git", "url": server.url("app.git")}, "push": false, "builder": "buildah"})
}

/// Every line is there once, in order, and arrived this way.
fn is_whole(build: &Value, log: &str, via: &str) {
    assert_eq!(build["state"], "succeeded", "{build:#}\n{log}");
    let numbers = log.lines().filter_map(|line| line.strip_prefix("line ")?.parse().ok());
    let numbers: Vec<usize> = numbers.collect();
    let first_wrong = numbers.iter().zip(1..).find(|(number, place)| **number != *place);
    assert!(
        numbers.len() == LINES && first_wrong.is_none(),
        "{} lines, first wrong {first_wrong:?}",
        numbers.len()
    );
    let attempts = build["attempts"].as_array().expect("attempts");
    let ways: Vec<_> = attempts.iter().map(|attempt| &attempt["log"]["via"]).collect();
    assert_eq!(ways, [via], "{build:#}");
    assert_eq!(attempts[0]["log"]["sealed"], via == "push", "{build:#}");
}

/// Looks until there is what is looked for.
async fn eventually<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let found: Result<T, _> = timeout(LIMIT, found).await;
    found.unwrap_or_else(|_| panic!("never: {what}"))
}

/// The shipper, if there is exactly one that isn't `other`.
fn shipper(data: &Path, other: Option<i32>) -> Option<i32> {
    let mut all = shippers(data).into_keys();
    let one = all.next().filter(|pid| Some(*pid) != other)?;
    all.next().is_none().then_some(one)
}

fn kill_now(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it lives");
}

#[sqlx::test]
async fn a_shipper_that_is_killed_is_started_again(pool: PgPool) {
    let server = printing().await;
    let kiln = Kiln::start(&pool).await;
    let path = kiln.create(&request(&server)).await;
    let mut last = None;
    for seen in [1, 100, 500] {
        let printed = format!("line {seen}\n");
        eventually("the line", async || {
            kiln.log(&path).await.contains(&printed).then_some(())
        })
        .await;
        let pid = eventually("a shipper", async || shipper(kiln.data(), last)).await;
        kill_now(pid);
        last = Some(pid);
    }
    let build = kiln.finished(&path).await;
    is_whole(&build, &kiln.log(&path).await, "push");
    kiln.stop().await;
}

#[sqlx::test]
async fn what_is_not_sent_is_read(pool: PgPool) {
    let server = printing().await;
    let kiln = Kiln::start_with(&pool, |config| {
        config.agent_url = Some("http://127.0.0.1:9".parse().expect("a URL"));
        // Only the death of what sends the log says that nothing will come.
        config.engine.log_push_patience_seconds = 600;
    })
    .await;
    let path = kiln.create(&request(&server)).await;
    let ended = eventually("the attempt's end", async || {
        let builds = fs::read_dir(kiln.data().join("builds")).ok()?.flatten();
        let mut spools = builds.map(|entry| entry.path().join("spool"));
        spools.any(|spool| spool.join("over").exists()).then_some(())
    });
    ended.await;
    kill_now(eventually("the shipper", async || shipper(kiln.data(), None)).await);
    let build = kiln.finished(&path).await;
    is_whole(&build, &kiln.log(&path).await, "host");
    kiln.stop().await;
}

fn program_config(data: &Path, more: &str) -> String {
    let agent = Path::new(env!("CARGO_BIN_EXE_kiln")).with_file_name("kiln-agent");
    let (data, agent) = (data.display(), agent.display());
    format!(
        "runner = \"local\"\n{more}[local]\ndata_dir = '{data}'\nagent = '{agent}'\nstop_grace_seconds = 1\n\
         [limits]\nbuilders = [\"buildah\"]\n[engine]\nlease_seconds = 3\n"
    )
}

async fn get(program: &Program, path: &str) -> String {
    let request = program
        .request(Method::GET, path)
        .header("accept", "text/plain, application/json");
    let answer = timeout(LIMIT, request.send()).await.expect("in time");
    answer.expect("an answer").text().await.expect("a body")
}

async fn get_json(program: &Program, path: &str) -> Value {
    serde_json::from_str(&get(program, path).await).expect("JSON")
}

#[sqlx::test]
async fn a_service_that_is_killed_loses_no_line(pool: PgPool) {
    let server = printing().await;
    let data = tempfile::tempdir().expect("a folder");
    let config = program_config(data.path(), "");
    let first = Program::start(&pool, "api,worker", &config).await;
    let created = first.request(Method::POST, "/v1/builds").json(&request(&server));
    let created: Value = created.send().await.expect("an answer").json().await.expect("JSON");
    let path = format!("/v1/builds/{}", created["id"].as_str().expect("an id"));
    let logs = format!("{path}/logs");
    eventually("the log's beginning", async || {
        get(&first, &logs).await.contains("line 10\n").then_some(())
    })
    .await;
    let before = shipper(data.path(), None).expect("it sends");
    // With SIGKILL, and the next one is somewhere else.
    drop(first);
    assert_eq!(shipper(data.path(), None), Some(before), "it stays");
    let second = Program::start(&pool, "api,worker", &config).await;
    let build = eventually("the build's end", async || {
        let build = get_json(&second, &format!("{path}?wait=10")).await;
        build["finished_at"].is_string().then_some(build)
    })
    .await;
    is_whole(&build, &get(&second, &logs).await, "push");
    eventually("the end of all processes", async || {
        agents(data.path()).is_empty().then_some(())
    })
    .await;
    second.end().await;
}

#[sqlx::test]
async fn the_answer_to_a_push_cancels_where_no_worker_is_left(pool: PgPool) {
    let server = GitServer::start(WAITS).await;
    let front = Kiln::start_without_worker(&pool).await;
    let data = tempfile::tempdir().expect("a folder");
    let config = program_config(data.path(), &format!("agent_url = \"{}\"\n", front.base()));
    let worker = Program::start(&pool, "api,worker", &config).await;
    let path = front.create(&request(&server)).await;
    eventually("the line", async || {
        front.log(&path).await.contains("waiting").then_some(())
    })
    .await;
    drop(worker);
    front.cancel(&path).await;
    let reported = eventually("the step's report", async || {
        let builds = fs::read_dir(data.path().join("builds")).ok()?.flatten();
        let mut reports = builds.filter_map(|entry| fs::read(entry.path().join("build.report")).ok());
        serde_json::from_slice::<Report>(&reports.next()?).ok()
    });
    assert_eq!(reported.await.exit, Exit::Stopped);
    let worker = Program::start(&pool, "api,worker", &config).await;
    let build = front.finished(&path).await;
    assert_eq!(build["state"], "cancelled", "{build:#}");
    assert!(front.log(&path).await.contains("Stopped as requested"));
    eventually("the end of all processes", async || {
        agents(data.path()).is_empty().then_some(())
    })
    .await;
    worker.end().await;
    front.stop().await;
}

/// A build whose log goes to where nobody takes it.
fn unheard(server: &GitServer) -> Assignment {
    let mut assignment = from_git(&server.url("app.git"));
    assignment.credentials.log = Some(LogAccess {
        url: "http://127.0.0.1:9/here/log".to_owned(),
        token: AttemptKey::from_bytes([7; 32]).token(assignment.attempt, Purpose::Log),
    });
    assignment
}

#[tokio::test]
async fn the_next_runner_goes_on_with_what_sends_the_log() {
    let server = GitServer::start(WAITS).await;
    let data = tempfile::tempdir().expect("a folder");
    let first = runner(&data);
    let mut assignment = unheard(&server);
    let attempt = assignment.attempt;
    first.launch(&assignment).await.expect("launched");
    until_logged(&first, attempt, "waiting").await;
    assert_eq!(first.shipping(attempt), Shipping::Running);
    let token = folder(&data, attempt).join("log-token");
    assert_eq!(
        fs::metadata(&token).expect("a file").permissions().mode() & 0o777,
        0o600
    );
    let token = fs::read_to_string(token).expect("a file");
    let all = processes(&data, attempt);
    assert!(all.values().all(|line| !line.contains(&token)), "{all:?}");
    let before = shippers(data.path());
    assert_eq!(before.len(), 1, "{all:?}");
    first.shut_down().await;

    let second = runner(&data);
    assert!(second.launch(&assignment).await.expect("launched").adopted);
    until(&mut second.observe(attempt), "both steps", |seen| {
        seen.steps().len() == 2
    })
    .await;
    assert_eq!(shippers(data.path()), before, "found again, not started again");
    // The service is somewhere else now.
    let log = assignment.credentials.log.as_mut().expect("set above");
    "http://127.0.0.1:9/there/log".clone_into(&mut log.url);
    second.launch(&assignment).await.expect("launched");
    eventually("another shipper", async || {
        let now = shippers(data.path());
        let moved = now.len() == 1 && now.values().all(|line| line.contains("/there/log"));
        moved.then_some(())
    })
    .await;
    remove(&second, &data, attempt).await;
    assert_eq!(agents(data.path()), Agents::new());
    close(second).await;
}

#[tokio::test]
async fn a_runner_that_winds_down_leaves_nothing_behind() {
    let server = GitServer::start(WAITS).await;
    let data = tempfile::tempdir().expect("a folder");
    let first = runner(&data);
    let assignment = unheard(&server);
    let attempt = assignment.attempt;
    first.launch(&assignment).await.expect("launched");
    until_logged(&first, attempt, "waiting").await;
    // What sends the log would go on trying for a while.
    close(first).await;
    assert_eq!(agents(data.path()), Agents::new());

    let second = runner(&data);
    let is_over = |seen: &Observation| matches!(seen, Observation::Finished { .. });
    until(&mut second.observe(attempt), "the end", is_over).await;
    assert_eq!(
        second.shipping(attempt),
        Shipping::Running,
        "the rest is still to be sent"
    );
    remove(&second, &data, attempt).await;
    close(second).await;
}

#[tokio::test]
async fn without_an_address_logs_are_read() {
    let server = GitServer::start("FROM scratch\nCOPY p /p\n").await;
    let data = tempfile::tempdir().expect("a folder");
    let runner = runner(&data);
    let assignment = from_git(&server.url("app.git"));
    let attempt = assignment.attempt;
    runner.launch(&assignment).await.expect("launched");
    assert_eq!(runner.shipping(attempt), Shipping::Absent);
    let is_over = |seen: &Observation| matches!(seen, Observation::Finished { .. });
    until(&mut runner.observe(attempt), "the end", is_over).await;
    assert_eq!(shippers(data.path()), Agents::new());
    remove(&runner, &data, attempt).await;
    close(runner).await;
}
