//! The runner against an API server that fails in every way it can.

use std::sync::Arc;

use tokio::{sync::Semaphore, time::Instant};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    domain::{build::Assignment, id::AttemptId, spec::Builder},
    runner::{
        LaunchError, Observation, Outcome,
        builder::tests::assignment,
        kubernetes::{Inner, config::Config, connection::Connection, end, index::Index, launch, pod, watch},
    },
};

/// A runner that watches the fake. Time is the test's, so it waits as long as it likes.
struct Runner {
    inner: Arc<Inner>,
    shutdown: CancellationToken,
    watch: tokio::task::JoinHandle<()>,
}

impl Runner {
    fn start(fake: &Fake) -> Self {
        let shutdown = CancellationToken::new();
        let inner = Arc::new(Inner {
            config: Config::default(),
            registries: Vec::new(),
            connection: Connection::to(fake.client()),
            index: Arc::new(Index::default()),
            launches: Semaphore::new(64),
            logs: Semaphore::new(8),
            shutdown: shutdown.clone(),
        });
        let watch = tokio::spawn(watch::run(
            Arc::clone(&inner.connection),
            Arc::clone(&inner.index),
            "default".to_owned(),
            shutdown.clone(),
        ));
        Self { inner, shutdown, watch }
    }

    async fn launch(&self, number: u32) -> Result<String, LaunchError> {
        let launched = launch::launch(&self.inner, &numbered(number)).await?;
        Ok(launched.name)
    }

    async fn wait_for(&self, number: u32, what: &str, wanted: impl Fn(&Observation) -> bool) {
        let mut observed = self.inner.index.observe(attempt(number));
        let found = tokio::time::timeout(Duration::from_mins(10), observed.wait_for(|seen| wanted(seen)));
        let found = found.await.map(|found| found.map(drop));
        assert!(
            matches!(found, Ok(Ok(()))),
            "never {what}: {:?}",
            self.inner.index.observe(attempt(number))
        );
    }

    /// Until nothing is known of the attempt's pod any more.
    async fn forgotten(&self, number: u32) {
        let forgotten = async {
            while self.inner.index.pod(attempt(number)).is_some() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_mins(10), forgotten).await.unwrap();
    }

    /// Until all pods were listed.
    async fn listed(&self) {
        let listed = async {
            while self.inner.index.list().is_none() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_mins(10), listed).await.unwrap();
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.watch.await.unwrap();
    }
}

fn attempt(number: u32) -> AttemptId {
    AttemptId {
        number,
        ..assignment(Builder::Buildkit).attempt
    }
}

fn numbered(number: u32) -> Assignment {
    Assignment {
        attempt: attempt(number),
        ..assignment(Builder::Buildkit)
    }
}

fn phase(phase: &str) -> impl Fn(&mut Value) {
    let phase = phase.to_owned();
    move |pod| {
        pod["spec"]["nodeName"] = json!("node1");
        pod["status"] = json!({"phase": phase});
        if phase == "Failed" {
            pod["status"]["reason"] = json!("Evicted");
        }
    }
}

fn failed(seen: &Observation) -> bool {
    matches!(
        seen,
        Observation::Finished {
            outcome: Outcome::FailedByNode(_),
            ..
        }
    )
}

#[tokio::test]
async fn it_keeps_the_contract() {
    contract::check(Fake::new().client(), "builds", "contract").await;
}

#[tokio::test(start_paused = true)]
async fn what_was_done_but_not_said_is_found_and_not_done_twice() {
    for code in [500, 503, 504] {
        let fake = Fake::new();
        let runner = Runner::start(&fake);
        fake.break_next("POST pods", Fault::DoneBut(code));
        let name = runner.launch(1).await.unwrap();
        assert_eq!(fake.pods(), std::slice::from_ref(&name));
        fake.break_next("DELETE pods", Fault::DoneBut(code));
        end::remove(&runner.inner, attempt(1)).await.unwrap();
        runner.forgotten(1).await;
        assert_eq!(fake.pods(), [""; 0]);
        runner.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_asks_while_the_server_wants_a_pause() {
    let fake = Fake::new();
    let runner = Runner::start(&fake);
    runner.listed().await;
    let others: Vec<_> = (2..20).map(numbered).collect();
    fake.break_next("POST pods", Fault::Refused(429, Some(9)));
    let begun = Instant::now();
    let first = async {
        runner.launch(1).await.unwrap();
        begun.elapsed()
    };
    let rest = async {
        // The refusal has come.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let asked = fake.count("POST");
        let launches = others.iter().map(|other| launch::launch(&runner.inner, other));
        let all = futures::future::join_all(launches).await;
        assert!(all.iter().all(Result::is_ok));
        (asked, begun.elapsed())
    };
    let (first, (asked, rest)) = tokio::join!(first, rest);
    assert_eq!(asked, 1);
    assert!(first.as_secs() >= 9 && rest.as_secs() >= 9, "{first:?} {rest:?}");
    assert_eq!(fake.pods().len(), 19);
    runner.stop().await;
}

#[tokio::test(start_paused = true)]
async fn so_many_requests_at_a_time_and_one_watch() {
    let fake = Fake::new();
    let runner = Runner::start(&fake);
    runner.listed().await;
    let assignments: Vec<_> = (1..=200).map(numbered).collect();
    let launches = assignments.iter().map(|each| launch::launch(&runner.inner, each));
    assert!(futures::future::join_all(launches).await.iter().all(Result::is_ok));
    fake.trouble(Trouble::Drop);
    let removals = assignments.iter().map(|each| end::remove(&runner.inner, each.attempt));
    assert!(futures::future::join_all(removals).await.iter().all(Result::is_ok));
    for number in [1, 100, 200] {
        runner.forgotten(number).await;
    }
    let (watches, requests) = fake.most();
    assert_eq!(watches, 1);
    // The connection of tests has eight places; a listing is on its own.
    assert!((2..=9).contains(&requests), "{requests} at a time");
    runner.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_forgets_again_and_again_is_not_stormed() {
    let fake = Fake::new();
    for _ in 0..1000 {
        fake.break_next("WATCH", Fault::Forgotten);
    }
    let runner = Runner::start(&fake);
    tokio::time::sleep(Duration::from_mins(10)).await;
    let lists = fake.count("GET pods");
    // Two a minute at the end, and a few more in the beginning.
    assert!((10..=40).contains(&lists), "{lists} listings in ten minutes");
    runner.stop().await;
}

#[tokio::test(start_paused = true)]
async fn news_that_is_lost_repeated_or_out_of_order_comes_to_the_same() {
    for trouble in [Trouble::Drop, Trouble::Repeat, Trouble::Swap] {
        let fake = Fake::new();
        let runner = Runner::start(&fake);
        runner.listed().await;
        let name = runner.launch(1).await.unwrap();
        runner
            .wait_for(1, "pending", |seen| matches!(seen, Observation::Pending { .. }))
            .await;
        fake.trouble(trouble);
        fake.change(&name, phase("Running"));
        fake.change(&name, phase("Failed"));
        runner.wait_for(1, "failed", failed).await;
        // Whatever is still on its way.
        tokio::time::sleep(Duration::from_mins(1)).await;
        runner.wait_for(1, "failed for good", failed).await;
        runner.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_stale_listing_proves_nothing() {
    let fake = Fake::new();
    let runner = Runner::start(&fake);
    runner.listed().await;
    let names = [runner.launch(1).await.unwrap(), runner.launch(2).await.unwrap()];
    runner
        .wait_for(2, "pending", |seen| matches!(seen, Observation::Pending { .. }))
        .await;
    // The watch breaks off, its version is forgotten, one pod goes, and the listing knows of neither.
    fake.break_next("WATCH", Fault::Forgotten);
    fake.break_next("GET pods", Fault::Stale);
    fake.trouble(Trouble::Drop);
    fake.remove(&names[1]);
    runner.forgotten(2).await;
    tokio::time::sleep(Duration::from_mins(1)).await;
    runner
        .wait_for(1, "still pending", |seen| matches!(seen, Observation::Pending { .. }))
        .await;
    fake.change(&names[0], phase("Failed"));
    runner.wait_for(1, "failed", failed).await;
    runner.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_fails_for_a_while_is_waited_for() {
    let fake = Fake::new();
    for code in [500, 429, 503, 504] {
        fake.break_next("GET pods", Fault::Refused(code, Some(2)));
        fake.break_next("WATCH", Fault::Refused(code, None));
    }
    let runner = Runner::start(&fake);
    runner.listed().await;
    fake.break_next("POST pods", Fault::Slow(Duration::from_secs(15)));
    let name = runner.launch(1).await.unwrap();
    fake.change(&name, phase("Failed"));
    runner.wait_for(1, "failed", failed).await;
    assert_eq!(fake.pods(), [pod::name(attempt(1))]);
    // Longer than anybody waits: it is asked once more.
    fake.break_next("POST pods", Fault::Slow(Duration::from_mins(1)));
    runner.launch(2).await.unwrap();
    assert_eq!(fake.pods().len(), 2);
    runner.stop().await;
}
