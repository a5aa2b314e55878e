//! A step's spool on its way to a service that does all that services do.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Stdio},
};

use kiln_agent::wire::{
    frame::{Frame, Stream},
    push::{Printed, Seal, crc32},
    report::Exit,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    log_server::{LogServer, TOKEN, Turn},
    support::{Bench, eventually, parse, scripts},
};

/// `kiln-agent ship` in haste.
fn ship(bench: &Bench, server: &LogServer, pace: &[&str]) -> Child {
    fs::create_dir_all(bench.path("spool")).unwrap();
    fs::write(bench.path("token"), format!("{TOKEN}\n")).unwrap();
    bench
        .agent()
        .arg("ship")
        .arg("--spool")
        .arg(bench.path("spool"))
        .args(["--url", &server.url(), "--steps", "source,build"])
        .arg("--token")
        .arg(bench.path("token"))
        .args(["--gather", "1", "--heartbeat", "20", "--retry", "20"])
        .args(pace)
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Signals a shipper that is ready for it.
fn signal(child: &Child, signal: Signal) {
    eventually("the handler of SIGTERM", || {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        let caught = u64::from_str_radix(caught.trim(), 16).unwrap();
        (caught >> (Signal::SIGTERM as i32 - 1) & 1 == 1).then_some(())
    });
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

/// `kiln-agent run` with a spool that is so small that it waits for the shipper.
fn run(bench: &Bench, script: &str) -> Child {
    bench.write_plan(scripts(&[script]));
    let mut step = bench.step("run");
    step.arg("--spool").arg(bench.path("spool"));
    step.args(["--spool-limit", "1048576", "--spool-patience", "60"]);
    step.stdout(fs::File::create(bench.path("stdout")).unwrap());
    step.spawn().unwrap()
}

fn ended(bench: &Bench, mut shipper: Child) {
    signal(&shipper, Signal::SIGTERM);
    assert!(shipper.wait().unwrap().success());
    let mut left: Vec<_> = fs::read_dir(bench.path("spool/build"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    left.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    assert_eq!(left, [] as [PathBuf; 0]);
}

/// What the step printed is what the service holds, and is sealed as such.
fn arrived(bench: &Bench, server: &LogServer) {
    let printed = fs::read(bench.path("stdout")).unwrap();
    assert!(server.log("build") == printed);
    let seal = Seal {
        lines: parse(&printed).len() as u64,
        bytes: printed.len() as u64,
        crc32: crc32(0, &printed),
        complete: true,
    };
    assert_eq!(server.seal("build"), Some(seal));
}

#[test]
fn every_byte_arrives_once_whatever_the_service_does() {
    let bench = Bench::new();
    let server = LogServer::start();
    let bad = [
        Turn::CutBefore,
        Turn::CutAfter,
        Turn::Busy,
        Turn::Some,
        Turn::Late,
        Turn::CutAfter,
        Turn::Some,
        Turn::TooLarge,
        Turn::Well,
    ];
    server.state().turns = bad.into_iter().cycle().take(150).collect();
    let shipper = ship(&bench, &server, &[]);
    assert!(
        run(&bench, "seq 1 200000; printf 'no newline'")
            .wait()
            .unwrap()
            .success()
    );
    ended(&bench, shipper);
    arrived(&bench, &server);
    assert!(server.state().turns.is_empty());
}

#[test]
fn a_shipper_that_is_killed_again_and_again_goes_on() {
    let bench = Bench::new();
    let server = LogServer::start();
    let mut step = run(&bench, "seq 1 400000");
    let mut kills = 0;
    while step.try_wait().unwrap().is_none() {
        let mut shipper = ship(&bench, &server, &[]);
        let before = server.log("build").len();
        eventually("progress", || {
            (server.log("build").len() > before || step.try_wait().unwrap().is_some()).then_some(())
        });
        shipper.kill().unwrap();
        shipper.wait().unwrap();
        kills += 1;
    }
    assert!(kills > 2, "{kills}");
    ended(&bench, ship(&bench, &server, &[]));
    arrived(&bench, &server);
}

#[test]
fn a_step_that_was_killed_is_sealed_by_what_it_left() {
    let bench = Bench::new();
    let server = LogServer::start();
    let shipper = ship(&bench, &server, &[]);
    let mut step = run(&bench, "echo $$ > script; yes 'on and on'");
    eventually("some output", || (server.log("build").len() > 2_000_000).then_some(()));
    step.kill().unwrap();
    step.wait().unwrap();
    // An agent that isn't PID 1 leaves its command behind.
    kill(bench.pid("script"), Signal::SIGKILL).unwrap();
    ended(&bench, shipper);
    let log = server.log("build");
    let seal = Seal {
        lines: parse(&log).len() as u64,
        bytes: log.len() as u64,
        crc32: crc32(0, &log),
        complete: false,
    };
    assert_eq!(server.seal("build"), Some(seal));
}

#[test]
fn steps_are_sealed_one_after_the_other() {
    let bench = Bench::new();
    let server = LogServer::start();
    let shipper = ship(&bench, &server, &[]);
    let files = [("Dockerfile".to_owned(), "RlJPTSB4Cg==".to_owned())].into();
    bench.write_source(bench.source(kiln_agent::wire::plan::SourceKind::Inline { files }));
    let mut source = bench.step("source");
    let source = source.arg("--spool").arg(bench.path("spool")).output().unwrap();
    eventually("the seal of the source step", || server.seal("source"));
    assert!(server.log("source") == source.stdout);
    assert_eq!(server.seal("build"), None);
    // It is told to end while the step runs, and stays until that is over.
    let mut step = run(&bench, "touch ready; until test -e go; do sleep 0.01; done; echo last");
    eventually("the step", || bench.path("ready").exists().then_some(()));
    signal(&shipper, Signal::SIGTERM);
    fs::write(bench.path("go"), "").unwrap();
    assert!(step.wait().unwrap().success());
    assert!(shipper.wait_with_output().unwrap().status.success());
    arrived(&bench, &server);
}

#[test]
fn signs_of_life_come_while_nothing_is_printed() {
    let bench = Bench::new();
    let server = LogServer::start();
    let shipper = ship(&bench, &server, &[]);
    eventually("a sign of life before the first step", || {
        server
            .state()
            .heartbeats
            .contains(&("source".to_owned(), 0))
            .then_some(())
    });
    let step = run(&bench, "echo first; until test -e go; do sleep 0.01; done");
    eventually("the line", || (!server.log("build").is_empty()).then_some(()));
    fs::write(bench.path("go"), "").unwrap();
    assert!(step.wait_with_output().unwrap().status.success());
    ended(&bench, shipper);
    arrived(&bench, &server);
}

#[test]
fn the_answer_to_a_push_can_end_the_step() {
    let bench = Bench::new();
    let server = LogServer::start();
    let shipper = ship(&bench, &server, &[]);
    let mut step = run(
        &bench,
        "trap 'echo told; exit 0' TERM; touch ready; while :; do sleep 0.01; done",
    );
    eventually("the step", || bench.path("ready").exists().then_some(()));
    server.state().cancel = true;
    assert!(!step.wait().unwrap().success());
    assert_eq!(bench.report().exit, Exit::Stopped);
    ended(&bench, shipper);
    arrived(&bench, &server);
}

#[test]
fn who_is_not_wanted_any_more_waits_for_the_end_in_silence() {
    let bench = Bench::new();
    let server = LogServer::start();
    server.state().otherwise = Some(Turn::Over);
    let mut shipper = ship(&bench, &server, &[]);
    assert!(run(&bench, "echo unheard").wait().unwrap().success());
    assert!(shipper.try_wait().unwrap().is_none());
    signal(&shipper, Signal::SIGTERM);
    assert!(shipper.wait().unwrap().success());
    assert_eq!(server.state().requests, 1);
}

#[test]
fn pushes_say_how_much_there_is() {
    let bench = Bench::new();
    let server = LogServer::start();
    let mut step = run(&bench, "seq 1 10000; until test -e go; do sleep 0.01; done");
    eventually("the lines", || {
        let printed = fs::read(bench.path("stdout")).unwrap();
        printed.ends_with(b" 10000\n").then_some(())
    });
    // One push, of which little is taken, and nothing after it.
    server.state().turns.push_back(Turn::Some);
    server.state().otherwise = Some(Turn::CutBefore);
    let shipper = ship(&bench, &server, &[]);
    let printed = |server: &LogServer| server.state().printed.get("build").copied();
    let told = |lines, all| Some(Printed { lines, all });
    eventually("a push", || printed(&server));
    assert_eq!(printed(&server), told(10_000, false));
    assert_eq!(parse(&server.log("build")).len(), 1);
    fs::write(bench.path("go"), "").unwrap();
    assert!(step.wait().unwrap().success());
    server.state().otherwise = None;
    ended(&bench, shipper);
    assert_eq!(printed(&server), told(10_000, true));
    arrived(&bench, &server);
}

#[test]
fn it_gives_up_in_the_end() {
    // Never reached, and reached before.
    for (first, pace) in [
        (None, ["--unreached", "50", "--give-up", "100000"]),
        (Some(Turn::Well), ["--unreached", "1", "--give-up", "50"]),
    ] {
        let bench = Bench::new();
        let server = LogServer::start();
        server.state().turns.extend(first);
        server.state().otherwise = Some(Turn::CutBefore);
        let shipper = ship(&bench, &server, &pace);
        assert!(run(&bench, "seq 1 100").wait().unwrap().success());
        eventually("requests", || (server.state().requests > 3).then_some(()));
        signal(&shipper, Signal::SIGTERM);
        let ended = shipper.wait_with_output().unwrap().status;
        assert_eq!(ended.code(), Some(1));
    }
}

#[test]
fn a_file_says_that_it_is_over() {
    let bench = Bench::new();
    let server = LogServer::start();
    let mut shipper = ship(&bench, &server, &[]);
    assert!(run(&bench, "seq 1 20000").wait().unwrap().success());
    fs::write(bench.path("spool/over"), "").unwrap();
    assert!(shipper.wait().unwrap().success());
    arrived(&bench, &server);
    // Whoever is started after that has nothing to do.
    let requests = server.state().requests;
    assert!(ship(&bench, &server, &[]).wait().unwrap().success());
    assert_eq!(server.state().requests, requests);
}

#[test]
fn who_is_left_alone_ends_by_itself() {
    let bench = Bench::new();
    let server = LogServer::start();
    server.state().otherwise = Some(Turn::CutBefore);
    let mut step = run(
        &bench,
        &format!("until [ -e {} ]; do sleep 0.01; done", bench.path("go").display()),
    );
    eventually("the step", || bench.path("spool/build/lock").exists().then_some(()));
    let mut shipper = ship(&bench, &server, &["--alone", "20"]);
    eventually("tries", || (server.state().requests > 10).then_some(()));
    assert!(shipper.try_wait().unwrap().is_none(), "the step still runs");
    fs::write(bench.path("go"), "").unwrap();
    assert!(step.wait().unwrap().success());
    assert_eq!(shipper.wait().unwrap().code(), Some(1));
}

#[test]
fn a_service_that_was_away_for_long_gets_it_all() {
    let bench = Bench::new();
    let server = LogServer::start();
    server.state().otherwise = Some(Turn::CutBefore);
    let shipper = ship(&bench, &server, &[]);
    let mut step = run(&bench, "seq 1 20000");
    assert!(step.wait().unwrap().success());
    signal(&shipper, Signal::SIGTERM);
    let tried = server.state().requests;
    eventually("further tries", || (server.state().requests > tried + 3).then_some(()));
    server.state().otherwise = None;
    assert!(shipper.wait_with_output().unwrap().status.success());
    arrived(&bench, &server);
}

#[test]
fn what_was_dropped_is_told_to_the_service() {
    let bench = Bench::new();
    let server = LogServer::start();
    bench.write_plan(scripts(&["seq 1 200000"]));
    let mut step = bench.step("run");
    step.arg("--spool").arg(bench.path("spool"));
    step.args(["--spool-limit", "1048576", "--spool-patience", "0"]);
    assert!(step.output().unwrap().status.success());
    ended(&bench, ship(&bench, &server, &[]));
    let log = server.log("build");
    let last = log
        .strip_suffix(b"\n")
        .unwrap()
        .rsplit(|&byte| byte == b'\n')
        .next()
        .unwrap();
    let frame = Frame::parse(last).unwrap();
    assert_eq!((frame.stream, frame.number), (Stream::Truncated, 200_000));
    assert_eq!(server.seal("build").unwrap().lines, 200_000);
    let text = std::str::from_utf8(frame.text).unwrap();
    assert!(
        text.ends_with("dropped: the service did not take the log, and no more than 1 MiB of it may wait in the pod"),
        "{text}"
    );
}

#[test]
fn a_spool_with_a_hole_is_sealed_as_far_as_it_goes() {
    let bench = Bench::new();
    let server = LogServer::start();
    assert!(run(&bench, "seq 1 20000").wait().unwrap().success());
    let mut segments: Vec<_> = fs::read_dir(bench.path("spool/build"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .collect();
    segments.sort();
    assert!(segments.len() > 2, "{segments:?}");
    let first = fs::read(&segments[0]).unwrap();
    fs::remove_file(&segments[1]).unwrap();
    ended(&bench, ship(&bench, &server, &[]));
    assert!(server.log("build") == first);
    let seal = server.seal("build").unwrap();
    assert_eq!(
        (seal.lines, seal.bytes, seal.complete),
        (20_000, first.len() as u64, false)
    );
}
