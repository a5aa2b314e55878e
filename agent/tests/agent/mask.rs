//! Secrets that a step prints.

use std::fs;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use kiln_agent::wire::{
    frame::Stream,
    plan::{Progress, RunPlan},
    report::Exit,
};

use crate::support::{Bench, parse, scripts};

const SECRET: &str = "c0rrect horse/battery";

fn plan(bench: &Bench, script: &str) -> RunPlan {
    fs::write(bench.path("secret"), format!("{SECRET}\n")).unwrap();
    RunPlan {
        mask: vec![bench.path("secret")],
        ..scripts(&[script])
    }
}

#[test]
fn no_form_of_it_leaves_the_step() {
    let bench = Bench::new();
    // In parts, too, and where a long line is cut.
    let script = "cat secret; printf 'in c0rrect ho'; sleep 0.05; echo 'rse/battery parts' >&1
        base64 secret; printf 'ann:%s' \"$(cat secret)\" | base64; echo c0rrect%20horse%2Fbattery 'c0rrect horse\\/battery'
        for n in 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
            head -c $((65536 - n)) /dev/zero | tr '\\0' x; cat secret
        done
        cat secret >&2; exit 1";
    bench.write_plan(plan(&bench, script));
    let output = bench
        .step("run")
        .arg("--spool")
        .arg(bench.path("spool"))
        .output()
        .unwrap();
    let spool = fs::read(bench.path("spool/build/00000000000000000000.log")).unwrap();
    assert!(spool == output.stdout);
    let (mut text, mut lines) = (String::new(), Vec::new());
    for line in parse(&spool) {
        text.push_str(std::str::from_utf8(&line.text).unwrap());
        if !line.partial {
            lines.push((line.stream, std::mem::take(&mut text)));
        }
    }
    let shown = |wanted: Stream| -> Vec<_> {
        let lines = lines.iter().filter(|(stream, _)| *stream == wanted);
        lines.map(|(_, text)| text.as_str()).collect()
    };
    assert_eq!(shown(Stream::Stderr), ["***"]);
    let out = shown(Stream::Stdout);
    assert_eq!(out[..2], ["***", "in *** parts"]);
    let encoded = BASE64_STANDARD.encode(format!("ann:{SECRET}"));
    assert!(out[2].starts_with("***") && out[2].len() <= 7, "{}", out[2]);
    assert!(
        out[3].starts_with(&format!("{}***", &encoded[..6])) && out[3].len() <= 13,
        "{}",
        out[3]
    );
    assert_eq!(out[4], "*** ***");
    for (n, line) in out[5..].iter().enumerate() {
        assert_eq!(**line, "x".repeat(65536 - n) + "***");
    }
    assert_eq!(out.len(), 5 + 21);
    let report = bench.report();
    assert!(
        report.tail.ends_with("***\n") && !report.tail.contains("horse"),
        "{}",
        report.tail
    );
}

#[test]
fn nor_what_a_builder_says_about_its_steps() {
    let bench = Bench::new();
    let script = format!("echo 'STEP 1/1: RUN curl -u ann:{SECRET} x'; exit 1");
    let mut build = plan(&bench, &script);
    build.commands[0].progress = Some(Progress::Buildah);
    bench.write_plan(build);
    let stdout = bench.step("run").output().unwrap().stdout;
    let mut records = parse(&stdout).into_iter().filter(|line| line.stream == Stream::Step);
    let records = String::from_utf8(records.next().unwrap().text).unwrap();
    assert!(
        records.contains("[1/1] RUN curl -u ann:*** x") && !records.contains(SECRET),
        "{records}"
    );
}

#[test]
fn nor_what_the_agent_says() {
    let bench = Bench::new();
    let mut build = plan(&bench, "true");
    build.commands[0].argv = vec![SECRET.replace('/', "\u{2215}"), String::new()];
    fs::write(bench.path("secret"), SECRET.replace('/', "\u{2215}")).unwrap();
    let finished = bench.run(build);
    assert_eq!(finished.message(), "`***` is not installed where the build runs");
    assert!(
        finished.text().contains("Error: `***` is not installed"),
        "{}",
        finished.text()
    );
}

#[test]
fn without_its_file_nothing_runs() {
    let bench = Bench::new();
    let mut build = plan(&bench, "touch ran");
    build.mask.push(bench.path("nowhere"));
    let finished = bench.run(build);
    assert_eq!(finished.report.exit, Exit::Code(1));
    assert!(
        finished.message().contains("nowhere can't be read"),
        "{}",
        finished.message()
    );
    assert!(!bench.path("ran").exists());
}
