//! What a command prints, and what arrives.

use std::fs;

use kiln_agent::wire::{
    frame::{MAX_TEXT, Stream},
    report::{Exit, MAX_TAIL},
};

use crate::support::{Bench, Line, parse, scripts};

fn line(stream: Stream, text: &[u8]) -> Line {
    Line {
        stream,
        partial: false,
        text: text.to_vec(),
    }
}

#[test]
fn both_streams_line_by_line() {
    let finished = Bench::new().script("echo out; read x; echo err >&2; printf 'no newline'");
    assert!(finished.succeeded);
    assert_eq!(finished.text_of(Stream::Stdout), b"out\nno newline\n");
    assert_eq!(finished.text_of(Stream::Stderr), b"err\n");
    assert_eq!((finished.report.lines, finished.report.bytes), (3, 4 + 4 + 11));
    assert_eq!(finished.report.tail, "");
}

#[test]
fn invalid_utf8_and_carriage_returns_stay_as_they_are() {
    let finished = Bench::new().script(r"printf '\377\376\n10%%\r20%%\r\n\n\0\n'");
    let expected: [&[u8]; 4] = [b"\xff\xfe", b"10%\r20%\r", b"", b"\0"];
    assert_eq!(finished.lines, expected.map(|text| line(Stream::Stdout, text)));
}

#[test]
fn a_line_of_a_mebibyte_comes_in_pieces() {
    let bench = Bench::new();
    let text = "€uro ".repeat(1024 * 1024 / 7) + "\nnext\n";
    fs::write(bench.path("text"), &text).unwrap();
    let finished = bench.script("cat text");
    assert_eq!(finished.text_of(Stream::Stdout), text.as_bytes());
    let (last, pieces) = finished.lines[..finished.lines.len() - 1].split_last().unwrap();
    assert!(pieces.len() >= 15 && pieces.iter().all(|piece| piece.partial) && !last.partial);
    for piece in &finished.lines {
        assert!(piece.text.len() <= MAX_TEXT && std::str::from_utf8(&piece.text).is_ok());
    }
}

#[test]
fn two_hundred_thousand_lines_arrive_once_and_in_order() {
    let bench = Bench::new();
    let finished = bench.script("seq 1 100000 & seq 100001 200000 >&2; wait");
    let expected =
        |from: u32, to: u32| -> Vec<u8> { (from..=to).flat_map(|n| format!("{n}\n").into_bytes()).collect() };
    assert!(finished.text_of(Stream::Stdout) == expected(1, 100_000));
    assert!(finished.text_of(Stream::Stderr) == expected(100_001, 200_000));
    assert_eq!(finished.report.lines, 200_000);
}

#[test]
fn a_line_shows_while_its_command_goes_on() {
    let bench = Bench::new();
    let mut running = bench.start(scripts(&[
        "echo first; until test -e go; do sleep 0.01; done; echo second",
    ]));
    running.read_until("first\n");
    fs::write(bench.path("go"), "").unwrap();
    assert_eq!(running.finish().text(), "first\nsecond\n");
}

#[test]
fn a_reader_that_takes_its_time_loses_nothing() {
    let bench = Bench::new();
    let mut running = bench.start(scripts(&["seq 1 300000; touch done"]));
    // What pipes and buffers hold is a fraction of what is printed, so the command can't be through.
    running.read_until(" 1\n");
    assert!(!bench.path("done").exists());
    let finished = running.finish();
    assert_eq!(finished.report.lines, 300_000);
    assert!(bench.path("done").exists());
}

#[test]
fn the_tail_is_the_last_lines() {
    let finished = Bench::new().script("seq 1 10000; printf 'last \\033[31mwords\\377'; exit 1");
    let tail = &finished.report.tail;
    assert!(tail.len() <= MAX_TAIL && tail.len() > MAX_TAIL - 20, "{}", tail.len());
    assert!(tail.ends_with("9999\n10000\nlast \u{1b}[31mwords\u{fffd}\n"), "{tail}");
    assert!(finished.text().contains(&format!("\n{tail}")));
    let noise = "x".repeat(100);
    let finished = Bench::new().script(&format!(
        "for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do echo {noise}; done; exit 1"
    ));
    assert_eq!(finished.report.tail, format!("{noise}\n").repeat(MAX_TAIL / 101));
}

#[test]
fn a_log_file_is_appended_to() {
    let bench = Bench::new();
    bench.write_plan(scripts(&["echo one"]));
    fs::write(bench.path("log"), "7 1 o. before\n").unwrap();
    let output = bench.step("run").arg("--log").arg(bench.path("log")).output().unwrap();
    assert!(output.status.success() && output.stdout.is_empty());
    let log = fs::read_to_string(bench.path("log")).unwrap();
    let after = log.strip_prefix("7 1 o. before\n").unwrap();
    assert_eq!(parse(after.as_bytes()), [line(Stream::Stdout, b"one")]);
}

#[test]
fn a_log_that_cannot_be_written_ends_the_step() {
    let bench = Bench::new();
    bench.write_plan(scripts(&["echo x; sleep 1000"]));
    for (log, named) in [("/dev/full", "can't be written"), ("/nowhere/log", "can't be opened")] {
        assert_eq!(bench.step("run").args(["--log", log]).status().unwrap().code(), Some(1));
        assert_eq!(bench.report().exit, Exit::Code(1));
        let message = bench.report().problem.unwrap().message;
        assert!(message.contains(named), "{message}");
    }
}
