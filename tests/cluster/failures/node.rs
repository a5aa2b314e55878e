//! A node that goes away with a build on it.
//!
//! Ends the kubelet of `node2`, which only the cluster of `scripts/cluster/up.sh` lets one do; its containers run on, as
//! on a node that the API server can't reach. Nothing else of this suite runs meanwhile: it takes all the room there is.

use std::process::Command;

use serde_json::Value;

use super::{Installation, inline, run, set, text};
use crate::cluster::support::{DEADLINE, Transcript, eventually, variable};

const NODE: &str = "node2";

/// The kubelet comes back, however the test ends.
struct Kubelet;

impl Kubelet {
    fn lose() -> Self {
        assert_eq!(
            variable("KILN_TEST_CLUSTER"),
            "own",
            "leave this test out on other clusters: scripts/test-cluster.sh --skip a_node_that_goes_away"
        );
        node("lose");
        Self
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        node("kubelet");
    }
}

/// `scripts/cluster/node.sh` for the node; it needs no network namespace of its own to be in.
fn node(what: &str) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/cluster/node.sh");
    let status = Command::new(script)
        .args([what, "2"])
        .status()
        .expect("the script runs");
    assert!(status.success(), "node.sh {what}: {status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_goes_away_costs_an_attempt_and_no_build() {
    let there = |config: &mut toml::Table| {
        let preferred: toml::Table = r#"
            weight = 100
            [preference]
            matchExpressions = [{ key = "kubernetes.io/hostname", operator = "In", values = ["node2"] }]
        "#
        .parse()
        .expect("TOML");
        set(
            config,
            "kubernetes.pod_template.spec.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution",
            vec![toml::Value::from(preferred)],
        );
        // Other pods stay, for the node is soon back.
        set(config, "kubernetes.node_lost_seconds", 1);
        set(config, "engine.max_attempts", 2);
    };
    run(u32::MAX, there, async |kiln: &Installation| {
        let replica = kiln.start().await;
        let api = &replica.api;
        let id = api
            .create(&inline(
                "FROM busybox\nRUN for i in $(seq 40); do echo \"kiln line $i\"; sleep 1; done\n",
            ))
            .await;
        let mut transcript = Transcript::new(&id);
        let mut connection = transcript.connect(api).await;
        transcript.read_lines(&mut connection, 2).await;
        assert_eq!(api.get(&id).await["attempts"][0]["node"], NODE);

        let kubelet = Kubelet::lose();
        let retried = eventually("the attempt is given up", DEADLINE, || async {
            let build = api.get(&id).await;
            (build["attempts"].as_array().map(Vec::len) == Some(2)).then_some(build)
        })
        .await;
        let failure = &retried["attempts"][0]["failure"];
        assert_eq!(failure["code"], "node_lost", "{retried:#}");
        let message = text(failure, "/message");
        assert!(message.contains("stopped answering"), "{message}");
        let second = eventually("the second attempt has a node", DEADLINE, || async {
            let build = api.get(&id).await;
            build
                .pointer("/attempts/1/node")
                .filter(|node| !node.is_null())
                .cloned()
        })
        .await;
        assert_ne!(second, NODE);
        drop(kubelet);

        let build = api.finished(&id).await;
        assert_eq!(build["state"], "succeeded", "{build:#}");
        assert_eq!(build["failure"], Value::Null);
        assert_eq!(kiln.pods.of(&id), 2);
        // Its containers ran on and pushed what they printed. Where they had not come to their end, that is said.
        transcript.read_to_end(api).await;
        let log = &build["attempts"][0]["log"];
        assert_eq!(log["via"], "push", "{build:#}");
        let whole = log["sealed"] == true;
        assert_eq!(transcript.of_kind("gap").is_empty(), whole, "{build:#}");
    })
    .await;
}
