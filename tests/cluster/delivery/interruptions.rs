//! What is away for a while, and what is taken away: the database, the Kubernetes API, the network, the pod, the service.

use std::{process::Command, time::Duration};

use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    super::{
        outages::changed_kubeconfig,
        support::{
            DEADLINE, Entrance, Installation, Postgres, Stop, Transcript, eventually, inline, kiln_lines, printing,
            run, run_on, set, text, variable,
        },
    },
    expect_carried, expect_numbers, expect_whole,
};

const LINES: u32 = 600;
/// Lines that are waited for before something happens.
const SOME: usize = 100;

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_restarted() {
    let mut postgres = Postgres::start().await;
    let url = postgres.url();
    run_on(
        &url,
        1,
        |_| {},
        async |kiln: &Installation| {
            let replica = kiln.start().await;
            let id = replica.api.create(&inline(&printing(LINES, "0.05"))).await;
            let mut transcript = Transcript::new(&id);
            let mut connection = transcript.connect(&replica.api).await;
            transcript.read_lines(&mut connection, SOME).await;
            // As a crash: no connection ends in order.
            postgres.crash().await;
            tokio::time::sleep(Duration::from_secs(5)).await;
            postgres.resume().await;
            // Whoever reads goes on by the number of the last event, on the same connection or on another.
            while transcript.read(&mut connection, |_| false).await == Stop::Broken {
                connection = transcript.connect(&replica.api).await;
            }
            expect_whole(&replica.api, &mut transcript, &id, LINES).await;
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubernetes_api_that_is_restarted() {
    // The tests of this cluster share one API server: what is restarted is the way to it. It lasts until the replica
    // has ended, which clears up by it.
    let way = Entrance::open().await;
    run(
        1,
        |_| {},
        async |kiln: &Installation| {
            let kubeconfig = changed_kubeconfig(kiln.folder(), |document| {
                let server = &mut document["clusters"][0]["cluster"]["server"];
                let url: url::Url = server.as_str().expect("a server").parse().expect("a URL");
                way.add(&format!(
                    "{}:{}",
                    url.host_str().expect("a host"),
                    url.port().expect("a port")
                ));
                *server = json!(way.url().replace("http:", "https:"));
            });
            let replica = kiln.start_on(&kubeconfig).await;
            replica.wait_until_ready().await;
            let id = replica.api.create(&inline(&printing(LINES, "0.05"))).await;
            let mut transcript = Transcript::new(&id);
            let mut connection = transcript.connect(&replica.api).await;
            transcript.read_lines(&mut connection, SOME).await;
            way.close();
            // The log doesn't come by it.
            transcript.read_lines(&mut connection, 2 * SOME).await;
            way.reopen();
            expect_whole(&replica.api, &mut transcript, &id, LINES).await;
            assert_eq!(kiln.pods.of(&id), 1);
        },
    )
    .await;
}

/// Packets of pods to a port of this machine are dropped as long as this is there.
struct Cut(Vec<String>);

impl Cut {
    fn make(port: u16) -> Self {
        let rule = format!(
            "INPUT -s 10.88.0.0/16 -d {} -p tcp --dport {port} -j DROP",
            variable("KILN_TEST_HOST_IP")
        );
        let rule: Vec<String> = rule.split(' ').map(str::to_owned).collect();
        iptables("-I", &rule);
        Self(rule)
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        iptables("-D", &self.0);
    }
}

fn iptables(action: &str, rule: &[String]) {
    let status = Command::new("iptables").arg("-w").arg(action).args(rule).status();
    assert!(status.expect("iptables runs").success(), "iptables {action}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_is_cut_for_a_minute() {
    const LINES: u32 = 1800;
    run(
        1,
        |_| {},
        async |kiln: &Installation| {
            let replica = kiln.start().await;
            let id = replica.api.create(&inline(&printing(LINES, "0.05"))).await;
            let mut transcript = Transcript::new(&id);
            let mut connection = transcript.connect(&replica.api).await;
            transcript.read_lines(&mut connection, SOME).await;
            let cut = Cut::make(kiln.entrance.port());
            let begun = Instant::now();
            tokio::time::sleep(Duration::from_mins(1)).await;
            drop(cut);
            let held = kiln_lines(&transcript.text()).len();
            assert!(held < usize::try_from(LINES).expect("fits"));
            transcript.read_lines(&mut connection, held + SOME).await;
            eprintln!(
                "cut for {:.1?}: {held} lines before, the next {SOME} after it",
                begun.elapsed()
            );
            expect_whole(&replica.api, &mut transcript, &id, LINES).await;
        },
    )
    .await;
}

/// Containers outlive their pod by a few seconds. However long these become, there is time for the last of the log.
fn patient(config: &mut toml::Table) {
    set(config, "engine.max_attempts", 1);
    set(config, "engine.log_push_patience_seconds", 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_deleted_in_the_middle_of_a_line() {
    for force in [false, true] {
        // Half a line, and no end of it.
        let print = "i=1; while [ $i -le 300 ]; do echo \"kiln line $i\"; i=$((i+1)); done; printf 'kiln line 301 is cut'; sleep 600";
        run(1, patient, async |kiln: &Installation| {
            let replica = kiln.start().await;
            let id = replica
                .api
                .create(&inline(&format!("FROM busybox\nRUN {print}\n")))
                .await;
            let mut transcript = Transcript::new(&id);
            let mut connection = transcript.connect(&replica.api).await;
            transcript.read_lines(&mut connection, 300).await;
            kiln.pods.delete(&format!("kiln-{id}-1"), force).await;
            let end = transcript.read_to_end(&replica.api).await;
            assert_eq!(end["state"], "failed", "{end}");
            let build = replica.api.get(&id).await;
            let lines = kiln_lines(&transcript.text());
            expect_numbers(&lines[..300], 300);
            assert!(lines.len() <= 301, "{lines:?}");
            let gaps = transcript.of_kind("gap");
            let log = &build["attempts"][0]["log"];
            eprintln!("deleted, force: {force}: {log}, {gaps:?}, {} lines", lines.len());
            // Whole, or with a gap that says that it may not be. What is whole has no gap.
            assert_eq!(log["sealed"] == true, gaps.is_empty(), "{build:#}");
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_deleted_pod_still_had_is_counted() {
    const LINES: u32 = 200_000;
    /// Bytes a second on the way to the service: all of the log takes at least half a minute.
    const SLOW: u32 = 300_000;
    // Digits that hardly compress, and then nothing more.
    let print = format!(
        "awk 'BEGIN {{ for (i = 1; i <= {LINES}; i++) {{ s = \"kiln line \" i \" \"; for (k = 0; k < 12; k++) s = s int(rand() * 1000000); print s }} }}'; sleep 600"
    );
    run(
        4,
        |config| {
            patient(config);
            set(config, "engine.log_push_patience_seconds", 5);
        },
        async |kiln: &Installation| {
            let replica = kiln.start().await;
            kiln.entrance.slow_down(SLOW);
            let id = replica
                .api
                .create(&inline(&format!("FROM busybox\nRUN {print}\n")))
                .await;
            eventually("all is printed, and told", DEADLINE, || async {
                let cursor = kiln.log_cursor(&id).await;
                let printed = cursor.pointer("/printed/lines").and_then(Value::as_u64);
                printed.filter(|&lines| lines >= LINES.into())
            })
            .await;
            kiln.entrance.halt();
            kiln.pods.delete(&format!("kiln-{id}-1"), true).await;
            let mut transcript = Transcript::new(&id);
            let end = transcript.read_to_end(&replica.api).await;
            assert_eq!(end["state"], "failed", "{end}");
            let held = kiln_lines(&transcript.text());
            let last = *held.last().expect("lines");
            expect_numbers(&held, last);
            assert!(last < LINES, "nothing was missing");
            // What was printed is counted; nobody can say whether it was all.
            let gaps: Vec<_> = transcript.of_kind("gap").into_iter().map(|gap| &gap["lines"]).collect();
            eprintln!("{last} of {LINES} lines held, gaps: {gaps:?}");
            assert_eq!(gaps, [&json!(LINES - last), &Value::Null]);
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_pods_cannot_reach() {
    // Nobody listens on port 9, "discard".
    let nowhere = format!("http://{}:9", variable("KILN_TEST_HOST_IP"));
    run(
        1,
        |config| set(config, "agent_url", nowhere),
        async |kiln: &Installation| {
            let replica = kiln.start().await;
            let begun = Instant::now();
            let id = replica.api.create(&inline(&printing(LINES, "0.01"))).await;
            let mut transcript = Transcript::new(&id);
            let end = transcript.read_to_end(&replica.api).await;
            assert_eq!(end["state"], "succeeded", "{end}");
            let build = replica.api.get(&id).await;
            expect_carried(&build, "kubernetes", false);
            expect_numbers(&kiln_lines(&transcript.text()), LINES);
            assert_eq!(transcript.of_kind("gap"), [] as [&Value; 0]);
            assert_eq!(text(&build, "/state"), "succeeded");
            assert!(begun.elapsed() < DEADLINE, "{:?}", begun.elapsed());
        },
    )
    .await;
}
