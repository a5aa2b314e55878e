//! `kiln-agent install`.

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use crate::support::Bench;

#[test]
fn it_copies_itself_over_what_was_there() {
    let bench = Bench::new();
    let folder = bench.path("deep/folder");
    for _ in 0..2 {
        assert!(bench.agent().arg("install").arg(&folder).status().unwrap().success());
    }
    let names: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["kiln-agent"]);
    let copy = folder.join("kiln-agent");
    assert_eq!(fs::metadata(&copy).unwrap().permissions().mode() & 0o7777, 0o755);
    assert_eq!(
        fs::read(&copy).unwrap(),
        fs::read(env!("CARGO_BIN_EXE_kiln-agent")).unwrap()
    );
    assert!(Command::new(&copy).arg("--version").output().unwrap().status.success());
}

#[test]
fn where_it_cannot_it_fails_and_says_so() {
    let bench = Bench::new();
    fs::write(bench.path("file"), "").unwrap();
    let output = bench.agent().arg("install").arg(bench.path("file")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(bench.agent().arg("instal").output().unwrap().status.code(), Some(2));
}
