//! Steps that are told to stop.

use std::{
    fs,
    time::{Duration, Instant},
};

use kiln_agent::wire::{frame::Stream, plan::RunPlan, report::Exit};
use nix::sys::signal::Signal;

use crate::support::{Bench, exists, scripts};

#[test]
fn the_command_is_told_and_may_finish_what_it_does() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let bench = Bench::new();
        let mut running = bench.start(scripts(&[
            "trap 'echo told; touch told; exit 0' TERM; echo ready; while :; do sleep 0.01; done",
            "touch second",
        ]));
        running.read_until("ready");
        running.signal(signal);
        let finished = running.finish();
        assert!(!finished.succeeded);
        assert_eq!(finished.report.exit, Exit::Stopped);
        assert_eq!(finished.text_of(Stream::Stdout), b"ready\ntold\n");
        assert!(
            finished.text().ends_with("\nStopped as requested\n"),
            "{}",
            finished.text()
        );
        assert!(bench.path("told").exists() && !bench.path("second").exists());
    }
}

#[test]
fn who_ignores_it_is_killed_after_the_grace_with_the_whole_group() {
    let bench = Bench::new();
    let mut running = bench.start(RunPlan {
        grace_seconds: 1,
        ..scripts(&["trap '' TERM; echo $$ > main; sleep 1000 & echo $! > child; echo ready; wait"])
    });
    running.read_until("ready");
    let told = Instant::now();
    running.signal(Signal::SIGTERM);
    running.signal(Signal::SIGTERM);
    let finished = running.finish();
    assert_eq!(finished.report.exit, Exit::Stopped);
    assert!(told.elapsed() >= Duration::from_secs(1), "{:?}", told.elapsed());
    assert!(!exists(bench.pid("main")) && !exists(bench.pid("child")));
}

#[test]
fn output_that_nobody_takes_does_not_keep_it() {
    let bench = Bench::new();
    let mut running = bench.start(RunPlan {
        grace_seconds: 1,
        ..scripts(&["echo $$ > main; exec yes"])
    });
    running.read_until("y\n");
    running.signal(Signal::SIGTERM);
    let report = running.finish_unread();
    assert_eq!(report.exit, Exit::Stopped);
    assert!(report.lines > 0);
    assert!(!exists(bench.pid("main")));
}

#[test]
fn a_detached_agent_is_its_own_session() {
    let bench = Bench::new();
    bench.write_plan(scripts(&["cut -d' ' -f6 /proc/$PPID/stat"]));
    let child = bench.step("run").arg("--log").arg(bench.path("log")).spawn().unwrap();
    let pid = child.id();
    assert!(child.wait_with_output().unwrap().status.success());
    let log = fs::read_to_string(bench.path("log")).unwrap();
    assert!(log.ends_with(&format!(" o. {pid}\n")), "{log}");
}
