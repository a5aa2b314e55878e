//! Builds that fail because something was done to their pod, their node or their builder: each is tried again, and
//! fails for good only when all its attempts have.

use serde_json::Value;

use super::{BUILDERS, Case, Installation, by, inline, run, set, text};
use crate::cluster::support::{ENDLESS, Replica, Transcript};

/// How the pod of a build in the middle of its work is disturbed.
#[derive(Clone, Copy, Debug)]
enum Disturbance {
    /// `kubectl delete pod`.
    Delete,
    /// `kubectl delete pod --grace-period=0 --force`.
    ForceDelete,
    /// What `kubectl drain` does to it.
    Evict,
}

/// Disturbs each attempt of an endless build until it fails for good.
async fn disturb(kiln: &Installation, replica: &Replica, builder: &str, how: Disturbance, case: Case) {
    let api = &replica.api;
    let id = api.create(&by(builder, inline(ENDLESS))).await;
    for attempt in 0..case.attempts {
        // Its own line, so that a new attempt isn't taken for the last one.
        let mut transcript = Transcript::new(&id);
        let mut connection = transcript.connect(api).await;
        let mut begun = 0;
        transcript
            .read(&mut connection, |event| {
                if event.kind == "log" && text(&event.data, "/text").contains("kiln line 1\n") {
                    begun += 1;
                }
                begun > attempt
            })
            .await;
        let build = api.get(&id).await;
        let pod = text(&build, &format!("/attempts/{attempt}/pod"));
        match how {
            Disturbance::Delete => kiln.pods.delete(pod, false).await,
            Disturbance::ForceDelete => kiln.pods.delete(pod, true).await,
            Disturbance::Evict => kiln.pods.evict(pod).await,
        }
    }
    case.check(api, &api.finished(&id).await).await;
    assert_eq!(kiln.pods.of(&id), case.attempts);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_to_a_pod_is_nobodys_build_failure() {
    run(
        2,
        |config| set(config, "engine.max_attempts", 2),
        async |kiln: &Installation| {
            let replica = kiln.start().await;
            let case = |code, words: &[&str]| Case::new(Value::Null, code, words).attempts(2);
            for builder in BUILDERS {
                let deleted = case("node_lost", &["deleted"]);
                let forced = case("node_lost", &["deleted by something other than Kiln"]);
                let evicted = case("evicted", &["evicted", "Kubernetes says"]);
                tokio::join!(
                    disturb(kiln, &replica, builder, Disturbance::Delete, deleted),
                    disturb(kiln, &replica, builder, Disturbance::ForceDelete, forced),
                    disturb(kiln, &replica, builder, Disturbance::Evict, evicted),
                );
            }
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_builder_that_dies_is_not_the_owners_fault() {
    // Rootless BuildKit shares its process namespace with what it runs.
    const KILLS: &str = "FROM busybox\nRUN echo killing; for p in /proc/[0-9]*; do grep -qs ^buildkitd $p/cmdline && kill -9 ${p#/proc/}; done; sleep 60\n";
    run(
        1,
        |config| set(config, "engine.max_attempts", 2),
        async |kiln: &Installation| {
            let case = Case::new(inline(KILLS), "internal", &["died during the build"])
                .logged(&["killing"])
                .attempts(2);
            super::expect_failures(kiln, vec![case]).await;
        },
    )
    .await;
}
