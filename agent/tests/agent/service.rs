//! The daemon beside the commands. The test itself listens at the daemon's socket, so it decides when that is ready.

use std::{
    fs,
    os::unix::net::UnixListener,
    time::{Duration, Instant},
};

use kiln_agent::wire::{
    frame::Stream,
    plan::{RunPlan, Service},
    report::{Exit, ProblemKind},
};
use nix::sys::signal::Signal;

use crate::support::{Bench, eventually, exists, scripts};

fn with_service(bench: &Bench, service: &str, commands: &[&str]) -> RunPlan {
    RunPlan {
        service: Some(Service {
            argv: vec!["sh".to_owned(), "-c".to_owned(), service.to_owned()],
            socket: bench.path("socket"),
            ready_seconds: 30,
        }),
        ..scripts(commands)
    }
}

#[test]
fn commands_wait_for_it_and_it_ends_after_them() {
    let bench = Bench::new();
    let plan = with_service(
        &bench,
        "echo noise; echo $$ > daemon; exec sleep 1000",
        &["test -e ready && echo built", "kill -0 $(cat daemon)"],
    );
    let running = bench.start(plan);
    let daemon = bench.pid("daemon");
    fs::write(bench.path("ready"), "").unwrap();
    let _listener = UnixListener::bind(bench.path("socket")).unwrap();
    let finished = running.finish();
    assert!(finished.succeeded, "{:?}", finished.report);
    assert_eq!(finished.text(), "built\n");
    assert!(!exists(daemon));
}

#[test]
fn what_it_said_is_shown_when_it_does_not_come_up() {
    let bench = Bench::new();
    let finished = bench.run(with_service(
        &bench,
        "{ echo first; echo 'no such flag'; } >&2",
        &["echo built"],
    ));
    assert_eq!(finished.report.exit, Exit::Code(1));
    assert_eq!(finished.report.problem.as_ref().unwrap().kind, ProblemKind::Internal);
    assert_eq!(
        finished.message(),
        "`sh` ended before it was ready (exit status 0); its last words: no such flag"
    );
    let text = finished.text();
    assert!(
        text.starts_with("Log of sh:\n") && text.contains("first\n") && !text.contains("built"),
        "{text}"
    );
}

#[test]
fn it_may_not_take_for_ever() {
    let bench = Bench::new();
    let mut plan = with_service(&bench, "echo $$ > daemon; exec sleep 1000", &["echo built"]);
    plan.service.as_mut().unwrap().ready_seconds = 0;
    let finished = bench.run(plan);
    assert_eq!(finished.report.exit, Exit::Code(1));
    assert!(
        finished.message().starts_with("`sh` was not ready after 0 seconds"),
        "{}",
        finished.message()
    );
}

#[test]
fn its_death_is_what_failed_the_build() {
    let bench = Bench::new();
    let plan = with_service(
        &bench,
        "echo $$ > daemon; until test -e go; do sleep 0.01; done; echo 'out of luck'; kill -KILL $$",
        &["touch go; while kill -0 $(cat daemon) 2>/dev/null; do sleep 0.01; done; echo 'connection lost'; exit 1"],
    );
    let _listener = UnixListener::bind(bench.path("socket")).unwrap();
    let finished = bench.run(plan);
    assert_eq!(finished.report.exit, Exit::Signal(9));
    assert_eq!(
        finished.message(),
        "`sh` died during the build (killed by signal 9); its last words: out of luck"
    );
    assert!(
        finished
            .text()
            .starts_with("connection lost\nLog of sh:\nout of luck\n"),
        "{}",
        finished.text()
    );
}

#[test]
fn a_build_that_fails_beside_a_healthy_one_is_just_that() {
    let bench = Bench::new();
    let plan = with_service(&bench, "echo noise; exec sleep 1000", &["echo broken; exit 4"]);
    let _listener = UnixListener::bind(bench.path("socket")).unwrap();
    let finished = bench.run(plan);
    assert_eq!((finished.report.exit, &finished.report.problem), (Exit::Code(4), &None));
    assert_eq!(finished.text(), "broken\n");
}

#[test]
fn a_stop_ends_the_command_and_then_the_daemon() {
    let bench = Bench::new();
    let plan = with_service(
        &bench,
        "echo $$ > daemon; exec sleep 1000",
        &["trap 'kill -0 $(cat daemon) && echo daemon lives; exit' TERM; echo ready; while :; do sleep 0.01; done"],
    );
    let _listener = UnixListener::bind(bench.path("socket")).unwrap();
    let mut running = bench.start(plan);
    running.read_until("ready");
    running.signal(Signal::SIGTERM);
    let finished = running.finish();
    assert_eq!(finished.report.exit, Exit::Stopped);
    assert_eq!(finished.text_of(Stream::Stdout), b"ready\ndaemon lives\n");
    assert!(!exists(bench.pid("daemon")));
}

#[test]
fn a_stop_before_it_is_ready_is_obeyed() {
    let bench = Bench::new();
    let running = bench.start(with_service(
        &bench,
        "echo $$ > daemon; exec sleep 1000",
        &["echo built"],
    ));
    let daemon = bench.pid("daemon");
    running.signal(Signal::SIGTERM);
    let finished = running.finish();
    assert_eq!(finished.report.exit, Exit::Stopped);
    assert!(!exists(daemon));
}

#[test]
fn a_stop_does_not_wait_for_strays() {
    let bench = Bench::new();
    let stray = "trap '' TERM; echo $$ > stray; while echo chatter; do sleep 0.1; done";
    let command = format!(
        "setsid sh -c \"{}\" & until test -s stray; do sleep 0.01; done; echo ready; wait",
        stray.replace('$', "\\$")
    );
    let plan = with_service(&bench, "exec sleep 1000", &[&command]);
    let _listener = UnixListener::bind(bench.path("socket")).unwrap();
    let mut running = bench.start(plan);
    running.read_until("ready");
    let told = Instant::now();
    running.signal(Signal::SIGTERM);
    assert_eq!(running.finish().report.exit, Exit::Stopped);
    assert!(told.elapsed() < Duration::from_secs(4), "{:?}", told.elapsed());
    assert!(!exists(bench.pid("stray")));
}

#[test]
fn a_stray_that_keeps_the_output_open_holds_the_step_up_only_so_long() {
    let bench = Bench::new();
    let plan = with_service(
        &bench,
        "exec sleep 1000",
        &[
            "setsid sh -c 'echo $$ > stray; while echo chatter; do sleep 0.1; done' & until test -s stray; do sleep 0.01; done; echo main",
        ],
    );
    let _listener = UnixListener::bind(bench.path("socket")).unwrap();
    let started = Instant::now();
    let finished = bench.run(plan);
    assert!(finished.succeeded);
    assert!(finished.text().contains("main\n"));
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    let stray = bench.pid("stray");
    eventually("the stray's end", || (!exists(stray)).then_some(()));
}
