//! Commands, files, environment, digest.

use std::{collections::BTreeMap, fs, time::Instant};

use kiln_agent::wire::{
    plan::{Command, DigestFile, File, Otherwise, RunPlan},
    report::{Exit, ProblemKind},
};

use crate::support::{Bench, PATIENCE, eventually, exists, scripts, shell};

#[test]
fn the_first_failure_decides() {
    let bench = Bench::new();
    let finished = bench.run(scripts(&["echo a", "echo b; exit 3", "echo c"]));
    assert!(!finished.succeeded);
    assert_eq!(finished.report.exit, Exit::Code(3));
    assert_eq!(finished.report.problem, None);
    assert_eq!(finished.report.tail, "a\nb\n");
}

#[test]
fn a_signal_is_reported_as_one() {
    let finished = Bench::new().script("kill -SEGV $$");
    assert_eq!(finished.report.exit, Exit::Signal(11));
    assert!(!finished.succeeded);
}

#[test]
fn a_program_that_is_missing_is_named() {
    let bench = Bench::new();
    let finished = bench.run(RunPlan {
        commands: vec![Command {
            progress: None,
            otherwise: None,
            argv: vec!["no-such-program".to_owned()],
        }],
        ..RunPlan::default()
    });
    assert_eq!(finished.report.exit, Exit::Code(127));
    assert_eq!(
        finished.message(),
        "`no-such-program` is not installed where the build runs"
    );
    assert!(finished.text().contains("no-such-program"));
}

#[test]
fn files_and_environment_are_there_first() {
    let bench = Bench::new();
    let finished = bench.run(RunPlan {
        files: vec![File {
            path: bench.path("etc/builder/config.toml"),
            content: "debug = true\n".to_owned(),
        }],
        env: BTreeMap::from([("KILN_TEST".to_owned(), "a b; $HOME".to_owned())]),
        commands: vec![shell(
            "cat etc/builder/config.toml; echo \"$KILN_TEST\"; command -v sh >/dev/null",
        )],
        ..RunPlan::default()
    });
    assert!(finished.succeeded);
    assert_eq!(finished.text(), "debug = true\na b; $HOME\n");
}

#[test]
fn arguments_reach_the_program_as_they_are() {
    let bench = Bench::new();
    let finished = bench.run(RunPlan {
        commands: vec![Command {
            progress: None,
            otherwise: None,
            argv: ["printf", "%s|", "a b", "$(id)", "'", "", "-n"]
                .map(str::to_owned)
                .to_vec(),
        }],
        ..RunPlan::default()
    });
    assert_eq!(finished.text(), "a b|$(id)|'||-n|\n");
}

#[test]
fn what_is_no_reason_to_give_up_is_gone_round() {
    let attempted = |script: &str| {
        let bench = Bench::new();
        let mut command = shell(script);
        command.otherwise = Some(Otherwise {
            said: "Error: the cache".to_owned(),
            remark: "Going on without.".to_owned(),
            argv: shell("echo instead").argv,
        });
        let finished = bench.run(RunPlan {
            commands: vec![command, shell("echo next")],
            ..RunPlan::default()
        });
        (finished.succeeded, finished.text())
    };
    let round = "Error: the cache is full\nGoing on without.\ninstead\nnext\n".to_owned();
    assert_eq!(attempted("echo Error: the cache is full; exit 7"), (true, round));
    assert_eq!(
        attempted("echo Error: the cache is full"),
        (true, "Error: the cache is full\nnext\n".to_owned())
    );
    // Only its last word counts, and only where it is that one.
    for script in [
        "echo Error: the cache; echo more",
        "echo it said Error: the cache",
        "true",
    ] {
        let (succeeded, text) = attempted(&format!("{script}; exit 7"));
        assert!(
            !succeeded && !text.contains("instead") && !text.contains("next"),
            "{text}"
        );
    }
}

fn digesting(bench: &Bench, script: &str) -> RunPlan {
    RunPlan {
        digest: Some(DigestFile::Json {
            path: bench.path("metadata.json"),
            pointer: "/containerimage.digest".to_owned(),
        }),
        ..scripts(&[script])
    }
}

#[test]
fn the_digest_is_reported() {
    let bench = Bench::new();
    let digest = format!("sha256:{}", "5f".repeat(32));
    let script = format!(r#"echo '{{"containerimage.digest":"{digest}"}}' > metadata.json"#);
    let finished = bench.run(digesting(&bench, &script));
    assert_eq!(finished.report.digest, Some(digest));
    assert_eq!(finished.report.exit, Exit::Code(0));
}

#[test]
fn success_without_a_digest_of_its_own_is_a_failure() {
    let bench = Bench::new();
    let old = format!(r#"{{"containerimage.digest":"sha256:{}"}}"#, "5f".repeat(32));
    fs::write(bench.path("metadata.json"), old).unwrap();
    for script in ["true", "echo '{}' > metadata.json"] {
        let finished = bench.run(digesting(&bench, script));
        assert!(!finished.succeeded);
        assert_eq!(finished.report.exit, Exit::Code(1));
        assert_eq!(finished.report.problem.as_ref().unwrap().kind, ProblemKind::Internal);
        assert!(finished.message().contains("digest"), "{}", finished.message());
    }
}

#[test]
fn a_plan_that_cannot_be_read_is_reported() {
    let bench = Bench::new();
    for content in [None, Some("{}"), Some("not json")] {
        if let Some(content) = content {
            fs::write(bench.path("plan.json"), content).unwrap();
        }
        assert_eq!(bench.step("run").status().unwrap().code(), Some(1));
        assert_eq!(bench.report().problem.unwrap().kind, ProblemKind::Internal);
    }
}

#[test]
fn a_report_that_cannot_be_written_is_a_failure() {
    let bench = Bench::new();
    bench.write_plan(scripts(&["true"]));
    let status = bench.step("run").args(["--report", "/nowhere/report"]).status();
    assert_eq!(status.unwrap().code(), Some(1));
}

#[test]
fn what_a_command_leaves_behind_is_killed() {
    let bench = Bench::new();
    let started = Instant::now();
    let finished = bench.script(
        "(trap '' TERM HUP; sleep 1000) & echo $! > in_group
         setsid sh -c 'echo $$ > apart; exec sleep 1000' &
         (setsid sh -c 'setsid sleep 1000 >/dev/null 2>&1 & echo $! > orphan') &
         until test -s in_group -a -s apart -a -s orphan; do sleep 0.01; done",
    );
    assert!(finished.succeeded, "{:?}", finished.report);
    for name in ["in_group", "apart", "orphan"] {
        assert!(!exists(bench.pid(name)), "{name} is still there");
    }
    assert!(started.elapsed() < PATIENCE / 2);
}

#[test]
fn orphans_are_reaped_while_the_command_goes_on() {
    let bench = Bench::new();
    let running = bench.start(scripts(&[
        "for n in 1 2 3 4 5; do (setsid sh -c 'echo $$ >> orphans' &); done
         (setsid sh -c 'echo $$ >> orphans; kill -s 40 $$' &)
         until test -e go; do sleep 0.01; done",
    ]));
    eventually("six orphans without a zombie", || {
        let pids = fs::read_to_string(bench.path("orphans")).ok()?;
        let gone = |line: &str| !exists(nix::unistd::Pid::from_raw(line.parse().unwrap()));
        (pids.ends_with('\n') && pids.lines().count() == 6 && pids.lines().all(gone)).then_some(())
    });
    fs::write(bench.path("go"), "").unwrap();
    assert!(running.finish().succeeded);
}
