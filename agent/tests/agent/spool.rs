//! What a step leaves in its spool.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use kiln_agent::wire::{
    frame::{Frame, Stream},
    plan::SourceKind,
    push::{Seal, crc32},
    report::Exit,
};

use crate::support::{Bench, eventually, parse, scripts};

/// The bytes of a step's spool and what seals it.
fn spooled(folder: &Path) -> (Vec<u8>, Seal) {
    let mut segments: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .collect();
    segments.sort();
    let mut bytes = Vec::new();
    for segment in segments {
        let name = segment.file_stem().unwrap().to_str().unwrap().to_owned();
        assert_eq!(name, format!("{:020}", bytes.len()));
        bytes.extend(fs::read(&segment).unwrap());
    }
    let seal: Seal = serde_json::from_slice(&fs::read(folder.join("end.json")).unwrap()).unwrap();
    assert_eq!(seal.bytes, bytes.len() as u64);
    assert_eq!(seal.crc32, crc32(0, &bytes));
    (bytes, seal)
}

#[test]
fn both_steps_have_their_own_and_standard_output_says_the_same() {
    let bench = Bench::new();
    let files = [("Dockerfile".to_owned(), "RlJPTSB4Cg==".to_owned())].into();
    bench.write_source(bench.source(SourceKind::Inline { files }));
    let source = bench
        .step("source")
        .arg("--spool")
        .arg(bench.path("spool"))
        .output()
        .unwrap();
    assert!(source.status.success());
    bench.write_plan(scripts(&["echo out; echo err >&2; seq 1 100000; printf 'no newline'"]));
    let build = bench
        .step("run")
        .arg("--spool")
        .arg(bench.path("spool"))
        .output()
        .unwrap();
    assert!(build.status.success());
    for (step, stdout) in [("source", source.stdout), ("build", build.stdout)] {
        let (bytes, seal) = spooled(&bench.path("spool").join(step));
        assert!(seal.complete && bytes == stdout, "{step}");
        assert_eq!(seal.lines, parse(&bytes).len() as u64);
        // The container that ships may have another user.
        let mode = fs::metadata(bench.path("spool").join(step))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o777);
    }
}

#[test]
fn a_reader_that_goes_away_costs_nothing() {
    let bench = Bench::new();
    bench.write_plan(scripts(&[
        "echo first; until test -e go; do sleep 0.01; done; seq 1 1000",
    ]));
    let mut child = bench
        .step("run")
        .arg("--spool")
        .arg(bench.path("spool"))
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    fs::write(bench.path("go"), "").unwrap();
    assert!(child.wait().unwrap().success());
    let (bytes, seal) = spooled(&bench.path("spool/build"));
    assert_eq!(seal.lines, 1001);
    assert_eq!(parse(&bytes).len(), 1001);
    assert_eq!(bench.report().lines, 1001);
}

#[test]
fn the_file_cancel_ends_a_step() {
    let bench = Bench::new();
    bench.write_plan(scripts(&[
        "trap 'echo told; exit 0' TERM; touch ready; while :; do sleep 0.01; done",
    ]));
    let child = bench
        .step("run")
        .arg("--spool")
        .arg(bench.path("spool"))
        .spawn()
        .unwrap();
    eventually("the command", || bench.path("ready").exists().then_some(()));
    fs::write(bench.path("spool/cancel"), "").unwrap();
    assert!(!child.wait_with_output().unwrap().status.success());
    assert_eq!(bench.report().exit, Exit::Stopped);
    let (bytes, _) = spooled(&bench.path("spool/build"));
    let text = String::from_utf8(bytes).unwrap();
    assert!(
        text.contains(" o. told\n") && text.ends_with(" e. Stopped as requested\n"),
        "{text}"
    );
}

#[test]
fn what_does_not_fit_is_counted_while_standard_output_has_it_all() {
    let bench = Bench::new();
    // The disk is smaller than the limit, and full at once: nobody ships.
    bench.write_plan(scripts(&["seq 1 200000"]));
    fs::create_dir(bench.path("spool")).unwrap();
    let step = bench.step("run");
    let mounted = "mount -t tmpfs -o size=1m spool \"$1\" && shift && \"$@\"; status=$?; cat spool/build/*.log >kept; cp spool/build/end.json end.json; exit $status";
    let status = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", mounted, "sh"])
        .arg(bench.path("spool"))
        .arg(step.get_program())
        .args(step.get_args())
        .arg("--spool")
        .arg(bench.path("spool"))
        .args(["--spool-patience", "0"])
        .current_dir(bench.path(""))
        .stdout(Stdio::piped())
        .output()
        .unwrap();
    assert!(status.status.success());
    assert_eq!(parse(&status.stdout).len(), 200_000);
    assert_eq!(bench.report().lines, 200_000);
    let seal: Seal = serde_json::from_slice(&fs::read(bench.path("end.json")).unwrap()).unwrap();
    let kept = fs::read(bench.path("kept")).unwrap();
    assert_eq!(
        (seal.lines, seal.bytes, seal.crc32),
        (200_000, kept.len() as u64, crc32(0, &kept))
    );
    let (mut held, mut lines, mut dropped) = (0, 0, 0);
    for line in kept.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        let frame = Frame::parse(line).unwrap();
        if frame.stream == Stream::Truncated {
            dropped += frame.number - held;
            assert!(frame.text.ends_with(b"the disk that the log waits on is full"));
        } else {
            assert_eq!(frame.number, held + 1);
            lines += 1;
        }
        held = frame.number;
    }
    assert_eq!((held, lines + dropped), (200_000, 200_000));
    assert!(lines > 1000 && dropped > 1000, "{lines} {dropped}");
}
