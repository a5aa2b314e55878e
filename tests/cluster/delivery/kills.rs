//! Processes that are killed: the service's, the build's, the agent's, the sidecar's.

use std::{fs, sync::Arc};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

use super::{
    super::support::{
        Api, DEADLINE, Installation, Replica, Stop, Transcript, eventually, inline, kiln_lines, printing, run, set,
        text,
    },
    expect_carried, expect_numbers, expect_whole,
};

const ROUNDS: u32 = 10;
/// Printed between two kills, at least.
const EACH: u32 = 100;

/// Reads until this many lines are there, from a replica that lives.
async fn read_lines(transcript: &mut Transcript, api: &Api, count: u32) {
    let mut connection = transcript.connect(api).await;
    transcript
        .read_lines(&mut connection, usize::try_from(count).expect("fits"))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_replica_killed_in_turn() {
    const LINES: u32 = EACH * (ROUNDS + 4);
    run(
        1,
        |_| {},
        async |kiln: &Installation| {
            let mut replicas: [Arc<Replica>; 2] = [kiln.start().await, kiln.start().await];
            let id = replicas[0].api.create(&inline(&printing(LINES, "0.05"))).await;
            let mut transcript = Transcript::new(&id);
            for round in 1..=ROUNDS {
                let victim = usize::try_from(round % 2).expect("fits");
                read_lines(&mut transcript, &replicas[1 - victim].api, round * EACH).await;
                replicas[victim].kill().await;
                replicas[victim] = kiln.start().await;
            }
            assert!(
                kiln_lines(&transcript.text()).len() < LINES as usize,
                "it was over before the last kill"
            );
            expect_whole(&replicas[0].api, &mut transcript, &id, LINES).await;
            assert_eq!(kiln.pods.of(&id), 1);
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_line_before_memory_runs_out_is_there() {
    const LINES: u32 = 1000;
    // `tail` keeps what it reads until a line ends, and none does.
    let print = format!("i=1; while [ $i -le {LINES} ]; do echo \"kiln line $i\"; i=$((i+1)); done; tail /dev/zero");
    run(
        1,
        |_| {},
        async |kiln: &Installation| {
            let replica = kiln.start().await;
            let mut request = inline(&format!("FROM busybox\nRUN {print}\n"));
            request["resources"] = json!({"cpu": "500m", "memory": "128Mi", "disk": "1Gi"});
            let id = replica.api.create(&request).await;
            let mut transcript = Transcript::new(&id);
            assert_eq!(transcript.read_to_end(&replica.api).await["state"], "failed");
            let build = replica.api.get(&id).await;
            assert_eq!(text(&build, "/failure/code"), "out_of_memory", "{build:#}");
            // It was tried again with more memory, which did not last either.
            for log in ["/attempts/0/log", "/attempts/1/log"] {
                assert_eq!(
                    build.pointer(log),
                    Some(&json!({"via": "push", "sealed": true})),
                    "{build:#}"
                );
            }
            assert_eq!(transcript.of_kind("gap"), [] as [&Value; 0]);
            let lines = kiln_lines(&transcript.text());
            for attempt in lines.chunks(lines.len().div_ceil(2)) {
                expect_numbers(attempt, LINES);
            }
        },
    )
    .await;
}

/// The agents that run with this word in the pod.
fn agents(uid: &str, verb: &str) -> Vec<Pid> {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let belongs = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = line.split(|&byte| byte == 0);
        let is_agent = words.next().is_some_and(|program| program.ends_with(b"/kiln-agent"));
        let groups = || fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        is_agent && words.next() == Some(verb.as_bytes()) && groups().contains(uid)
    };
    numbers.filter(belongs).map(Pid::from_raw).collect()
}

/// Kills the agent in a container of the build's pod, as the kernel does when memory runs out.
async fn kill_agent(kiln: &Installation, id: &str, verb: &str) {
    let pod = kiln.pods.get(&format!("kiln-{id}-1")).await;
    let uid = pod.metadata.uid.expect("a UID");
    let found = agents(&uid, verb);
    assert!(!found.is_empty(), "no agent runs `{verb}` in {uid}");
    for pid in found {
        kill(pid, Signal::SIGKILL).expect("it runs");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_agent_has_printed_is_there() {
    const LINES: u32 = 2000;
    let print = format!("awk 'BEGIN {{ for (i = 1; i <= {LINES}; i++) print \"kiln line \" i }}'; sleep 600");
    run(
        1,
        |config| set(config, "engine.max_attempts", 1),
        async |kiln: &Installation| {
            let replica = kiln.start().await;
            let id = replica
                .api
                .create(&inline(&format!("FROM busybox\nRUN {print}\n")))
                .await;
            let mut transcript = Transcript::new(&id);
            read_lines(&mut transcript, &replica.api, LINES).await;
            kill_agent(kiln, &id, "run").await;
            assert_eq!(transcript.read_to_end(&replica.api).await["state"], "failed");
            // Nobody could say that this was all, so the log says that it may not be.
            expect_carried(&replica.api.get(&id).await, "push", false);
            expect_numbers(&kiln_lines(&transcript.text()), LINES);
            let gaps = transcript.of_kind("gap");
            assert_eq!(gaps.len(), 1, "{gaps:?}");
            assert_eq!(gaps[0]["lines"], Value::Null, "{gaps:?}");
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_sidecar_goes_on_where_it_was() {
    const LINES: u32 = 800;
    run(
        1,
        |_| {},
        async |kiln: &Installation| {
            let replica = kiln.start().await;
            let id = replica.api.create(&inline(&printing(LINES, "0.02"))).await;
            let mut transcript = Transcript::new(&id);
            let mut connection = transcript.connect(&replica.api).await;
            transcript.read_lines(&mut connection, 150).await;
            kill_agent(kiln, &id, "ship").await;
            eventually("the sidecar was restarted", DEADLINE, || async {
                let status = kiln.pods.find(&format!("kiln-{id}-1")).await?.status?;
                let ship = status
                    .init_container_statuses?
                    .into_iter()
                    .find(|status| status.name == "ship")?;
                (ship.restart_count > 0 && ship.state?.running.is_some()).then_some(())
            })
            .await;
            assert_eq!(transcript.read(&mut connection, |_| false).await, Stop::Closed);
            expect_whole(&replica.api, &mut transcript, &id, LINES).await;
        },
    )
    .await;
}
