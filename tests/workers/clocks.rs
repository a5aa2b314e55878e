//! Workers on machines whose clocks are an hour off: what they decide and write down goes by the database's.

use std::sync::Arc;

use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};
use kiln::{
    domain::{clock::Clock, event::Event, failure::FailureCode, state::StateName},
    store::{self, clock::DatabaseClock},
};
use sqlx::PgPool;

use super::{
    sim::{Script, SimRunner},
    support::{Worker, assert_idle, create, eventually, journal, wait_for_state},
};

/// A clock that is this much ahead, or behind.
struct Off(TimeDelta);

impl Clock for Off {
    fn now(&self) -> DateTime<Utc> {
        (Utc::now() + self.0).trunc_subsecs(6)
    }
}

fn ahead() -> Arc<dyn Clock> {
    Arc::new(Off(TimeDelta::hours(1)))
}

fn behind() -> Arc<dyn Clock> {
    Arc::new(Off(TimeDelta::hours(-1)))
}

async fn database_time(pool: &PgPool) -> DateTime<Utc> {
    sqlx::query_scalar("SELECT clock_timestamp()")
        .fetch_one(pool)
        .await
        .expect("reads")
}

#[sqlx::test]
async fn the_databases_time_is_told_once_it_was_read(pool: PgPool) {
    for off in [ahead(), behind()] {
        let clock = DatabaseClock::new(Arc::clone(&off));
        assert!((clock.now() - off.now()).abs() < TimeDelta::minutes(10));
        let before = database_time(&pool).await;
        clock.read(&pool).await.expect("reads");
        let told = clock.now();
        assert!(told > before - TimeDelta::minutes(10) && told < before + TimeDelta::minutes(10));
    }
}

#[sqlx::test]
async fn what_is_tried_again_waits_for_its_pause_and_no_hour(pool: PgPool) {
    for clock in [ahead(), behind()] {
        let runner = SimRunner::new(Script::Each(vec![
            Script::Fail(FailureCode::Evicted),
            Script::Succeed(5),
        ]));
        let worker = Worker::start_at(&pool, &runner, clock, |config| config.retry_backoff_seconds = 1);
        let begun = database_time(&pool).await;
        let build = create(&pool).await;
        wait_for_state(&pool, build, StateName::Succeeded).await;
        let ended = database_time(&pool).await;
        for (_, event) in journal(&pool, build).await {
            // The first entry is the test's.
            if let Event::Status(status) = event
                && status.state != StateName::Queued
            {
                let near = TimeDelta::minutes(10);
                assert!(status.at > begun - near && status.at < ended + near, "{status:?}");
            }
        }
        assert_idle(&pool, &runner).await;
        worker.drain().await;
    }
}

#[sqlx::test]
async fn a_build_that_is_taken_over_has_its_own_time(pool: PgPool) {
    let runner = SimRunner::new(Script::Hang(5));
    let first = Worker::start_at(&pool, &runner, behind(), |_| {});
    let build = create(&pool).await;
    wait_for_state(&pool, build, StateName::Running).await;
    first.drain().await;
    // Two hours later by the machine's clocks, which is more than the build may take.
    let second = Worker::start_at(&pool, &runner, ahead(), |_| {});
    let owned = || async {
        let expiry = "SELECT r.expires_at FROM builds b JOIN replicas r ON r.id = b.owner WHERE b.id = $1";
        sqlx::query_scalar::<_, DateTime<Utc>>(expiry)
            .bind(build.0)
            .fetch_optional(&pool)
            .await
            .expect("reads")
    };
    let taken = eventually("taken over", owned).await;
    // Time enough to find that it is too late, if it were.
    eventually("a renewed lease", || async {
        owned().await.filter(|expiry| *expiry > taken)
    })
    .await;
    runner.finish_all();
    wait_for_state(&pool, build, StateName::Succeeded).await;
    let stored = store::builds::get(&pool, build).await.expect("reads").expect("exists");
    assert_eq!(stored.attempts.len(), 1);
    let (started, finished) = (stored.attempts[0].started_at, stored.attempts[0].finished_at);
    let ran = finished.expect("ended") - started.expect("began");
    assert!(ran >= TimeDelta::zero() && ran < TimeDelta::minutes(10), "{ran}");
    assert_idle(&pool, &runner).await;
    second.drain().await;
}
