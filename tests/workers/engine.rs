//! Whole lives of builds, and workers that come and go under them.

use kiln::{
    domain::{
        event::Event,
        failure::FailureCode,
        state::{BuildState, StateName},
    },
    runner::Readiness,
    store,
};
use sqlx::PgPool;

use super::{
    sim::{Script, SimRunner},
    support::{Worker, assert_idle, create, eventually, journal, new_build, state, wait_for_state},
};

fn states(entries: &[(i64, Event)]) -> Vec<StateName> {
    entries
        .iter()
        .filter_map(|(_, event)| match event {
            Event::Status(status) => Some(status.state),
            _ => None,
        })
        .collect()
}

fn text(entries: &[(i64, Event)]) -> String {
    entries
        .iter()
        .filter_map(|(_, event)| match event {
            Event::Log(log) => Some(log.text.as_str()),
            _ => None,
        })
        .collect()
}

fn lines(count: u64) -> String {
    (1..=count).fold(String::new(), |text, line| text + &format!("line {line}\n"))
}

fn gaps(entries: &[(i64, Event)]) -> usize {
    entries
        .iter()
        .filter(|(_, event)| matches!(event, Event::Gap(_)))
        .count()
}

#[sqlx::test]
async fn a_build_lives_and_its_journal_tells_the_whole_story(pool: PgPool) {
    let runner = SimRunner::new(Script::Succeed(1000));
    let worker = Worker::start(&pool, &runner);
    let build = create(&pool).await;
    wait_for_state(&pool, build, StateName::Succeeded).await;
    let entries = journal(&pool, build).await;
    assert_eq!(
        states(&entries),
        [
            StateName::Queued,
            StateName::Starting,
            StateName::Running,
            StateName::Succeeded
        ]
    );
    assert_eq!(text(&entries), lines(1000));
    assert_eq!(gaps(&entries), 0);
    assert!(matches!(entries.last(), Some((_, Event::End(end))) if end.digest.is_some()));
    assert!(entries.iter().zip(1..).all(|((seq, _), expected)| *seq == expected));
    assert_idle(&pool, &runner).await;
    worker.drain().await;
}

#[sqlx::test]
async fn a_user_failure_is_final_and_an_infrastructure_failure_is_tried_again(pool: PgPool) {
    let runner = SimRunner::new(Script::Fail(FailureCode::BuildFailed));
    let worker = Worker::start(&pool, &runner);
    let build = create(&pool).await;
    wait_for_state(&pool, build, StateName::Failed).await;
    assert_eq!(runner.launches().len(), 1);
    worker.drain().await;

    let runner = SimRunner::new(Script::Each(vec![
        Script::Fail(FailureCode::Evicted),
        Script::Fail(FailureCode::NodeLost),
        Script::Succeed(5),
    ]));
    let worker = Worker::start(&pool, &runner);
    let build = create(&pool).await;
    wait_for_state(&pool, build, StateName::Succeeded).await;
    let stored = store::builds::get(&pool, build).await.expect("reads").expect("exists");
    let ends: Vec<_> = stored
        .attempts
        .iter()
        .map(|attempt| attempt.failure.as_ref().map(|f| f.code))
        .collect();
    assert_eq!(ends, [Some(FailureCode::Evicted), Some(FailureCode::NodeLost), None]);
    assert_idle(&pool, &runner).await;
    worker.drain().await;
}

#[sqlx::test]
async fn a_build_whose_secret_is_gone_is_not_launched(pool: PgPool) {
    let runner = SimRunner::new(Script::Succeed(5));
    let worker = Worker::start(&pool, &runner);
    let mut new = new_build(0);
    new.spec.registry_credentials = vec!["hub".parse().expect("a name")];
    let id = new.id;
    store::builds::create(&pool, new, None).await.expect("stores");
    wait_for_state(&pool, id, StateName::Failed).await;
    let stored = store::builds::get(&pool, id).await.expect("reads").expect("exists");
    let failure = stored.attempts[0].failure.as_ref().expect("a failure");
    assert_eq!(failure.code, FailureCode::PushFailed);
    assert!(failure.message.contains("`hub` was deleted"), "{}", failure.message);
    assert_eq!(runner.launches().len(), 0);
    assert_idle(&pool, &runner).await;
    worker.drain().await;
}

#[sqlx::test]
async fn infrastructure_failures_end_after_the_last_attempt(pool: PgPool) {
    let runner = SimRunner::new(Script::Fail(FailureCode::NodeLost));
    let worker = Worker::start_with(&pool, &runner, |config| config.max_attempts = 3);
    let build = create(&pool).await;
    wait_for_state(&pool, build, StateName::Failed).await;
    assert_eq!(runner.launches().len(), 3);
    assert_idle(&pool, &runner).await;
    worker.drain().await;
}

#[sqlx::test]
async fn running_and_waiting_builds_can_be_cancelled(pool: PgPool) {
    for script in [Script::Hang(10), Script::Pending] {
        let runner = SimRunner::new(script);
        let worker = Worker::start_with(&pool, &runner, |config| config.stop_timeout_seconds = 1);
        let build = create(&pool).await;
        eventually("a pod", || async { (!runner.attempts().is_empty()).then_some(()) }).await;
        store::builds::cancel(&pool, build, chrono::Utc::now())
            .await
            .expect("cancels");
        wait_for_state(&pool, build, StateName::Cancelled).await;
        assert_idle(&pool, &runner).await;
        worker.drain().await;
    }
}

#[sqlx::test]
async fn a_build_that_takes_too_long_fails_with_its_log(pool: PgPool) {
    let runner = SimRunner::new(Script::Hang(10));
    let mut new = new_build(0);
    new.spec.timeout_seconds = 1;
    let build = new.id;
    store::builds::create(&pool, new, None).await.expect("stores");
    let worker = Worker::start(&pool, &runner);
    wait_for_state(&pool, build, StateName::Failed).await;
    let stored = store::builds::get(&pool, build).await.expect("reads").expect("exists");
    assert!(matches!(stored.state, BuildState::Failed { failure, .. } if failure.code == FailureCode::Timeout));
    assert_eq!(text(&journal(&pool, build).await), lines(10));
    assert_idle(&pool, &runner).await;
    worker.drain().await;
}

#[sqlx::test]
async fn a_pod_that_gets_no_node_fails_with_the_schedulers_words(pool: PgPool) {
    let runner = SimRunner::new(Script::Pending);
    let worker = Worker::start_with(&pool, &runner, |config| config.unscheduled_timeout_seconds = 1);
    let build = create(&pool).await;
    wait_for_state(&pool, build, StateName::Failed).await;
    let stored = store::builds::get(&pool, build).await.expect("reads").expect("exists");
    let BuildState::Failed { failure, .. } = stored.state else {
        panic!("not failed")
    };
    assert_eq!(failure.code, FailureCode::Unschedulable);
    assert!(
        failure.message.contains("0/2 nodes are available"),
        "{}",
        failure.message
    );
    assert_idle(&pool, &runner).await;
    worker.drain().await;
}

#[sqlx::test]
async fn a_drained_workers_builds_go_on_elsewhere_without_a_second_pod_or_a_lost_line(pool: PgPool) {
    let runner = SimRunner::new(Script::Hang(500));
    let first = Worker::start(&pool, &runner);
    let build = create(&pool).await;
    wait_for_state(&pool, build, StateName::Running).await;
    first.drain().await;
    assert_eq!(state(&pool, build).await, StateName::Running);

    let second = Worker::start(&pool, &runner);
    eventually("taken over", || async {
        let claimed = sqlx::query_scalar::<_, bool>("SELECT owner IS NOT NULL FROM builds WHERE id = $1")
            .bind(build.0)
            .fetch_one(&pool)
            .await
            .expect("reads");
        claimed.then_some(())
    })
    .await;
    runner.finish_all();
    wait_for_state(&pool, build, StateName::Succeeded).await;
    let entries = journal(&pool, build).await;
    assert_eq!(text(&entries), lines(500));
    assert_eq!(gaps(&entries), 0);
    assert!(runner.launches().values().all(|&count| count == 1));
    assert_idle(&pool, &runner).await;
    second.drain().await;
}

#[sqlx::test]
async fn a_pod_deleted_by_somebody_else_leaves_a_gap_and_is_tried_again(pool: PgPool) {
    let runner = SimRunner::new(Script::Each(vec![Script::Hang(10), Script::Succeed(10)]));
    let worker = Worker::start(&pool, &runner);
    let build = create(&pool).await;
    eventually("the log", || async {
        let page = store::journal::read(&pool, build, 0).await.expect("reads");
        (text(&page) == lines(10)).then_some(())
    })
    .await;
    runner.vanish_all();
    wait_for_state(&pool, build, StateName::Succeeded).await;
    let entries = journal(&pool, build).await;
    assert_eq!(gaps(&entries), 1);
    assert_eq!(text(&entries), lines(10).repeat(2));
    assert_idle(&pool, &runner).await;
    worker.drain().await;
}

#[sqlx::test]
async fn while_pods_cannot_be_made_builds_stay_queued(pool: PgPool) {
    let runner = SimRunner::new(Script::Succeed(1));
    runner.set_ready(Readiness::NotReady("no cluster".to_owned()));
    let worker = Worker::start(&pool, &runner);
    let waiting = create(&pool).await;
    let cancelled = create(&pool).await;
    store::builds::cancel(&pool, cancelled, chrono::Utc::now())
        .await
        .expect("cancels");
    assert_eq!(state(&pool, cancelled).await, StateName::Cancelled);
    // The worker has looked at the queue since: its lease has been renewed at least once.
    let look = || async {
        sqlx::query_scalar::<_, i64>("SELECT count(*) FROM replicas WHERE expires_at > now() + interval '2 s'")
            .fetch_one(&pool)
            .await
            .expect("reads")
    };
    eventually("the worker is up", || async { (look().await == 1).then_some(()) }).await;
    assert_eq!(state(&pool, waiting).await, StateName::Queued);
    assert!(runner.launches().is_empty());
    runner.set_ready(Readiness::Ready);
    wait_for_state(&pool, waiting, StateName::Succeeded).await;
    assert_idle(&pool, &runner).await;
    worker.drain().await;
}

#[sqlx::test]
async fn two_workers_share_thirty_builds_and_each_gets_one_pod(pool: PgPool) {
    let runner = SimRunner::new(Script::Succeed(20));
    let workers = [Worker::start(&pool, &runner), Worker::start(&pool, &runner)];
    let mut builds = Vec::new();
    for _ in 0..30 {
        builds.push(create(&pool).await);
    }
    for build in &builds {
        wait_for_state(&pool, *build, StateName::Succeeded).await;
        assert_eq!(text(&journal(&pool, *build).await), lines(20));
    }
    assert_eq!(runner.launches().values().copied().collect::<Vec<_>>(), vec![1; 30]);
    assert_idle(&pool, &runner).await;
    for worker in workers {
        worker.drain().await;
    }
}

#[sqlx::test]
async fn whoever_takes_over_waits_anew(pool: PgPool) {
    let build = create(&pool).await;
    let dead = kiln::domain::id::ReplicaId::new();
    let lease = std::time::Duration::from_mins(1);
    store::leases::register(&pool, dead, "dead", lease)
        .await
        .expect("registers");
    let limits = store::queue::ClaimLimits {
        batch: 1,
        live: 1,
        project: kiln::domain::queue::ProjectLimits::NONE,
    };
    let long_ago = chrono::Utc::now() - chrono::TimeDelta::hours(1);
    store::queue::claim(&pool, dead, limits, "sim-", long_ago)
        .await
        .expect("claims");
    store::leases::unregister(&pool, dead).await.expect("unregisters");

    let runner = SimRunner::new(Script::Pending);
    // An hour is more than a launch may take, but it isn't this worker's hour.
    runner.break_launches(2);
    let worker = Worker::start_with(&pool, &runner, |config| config.stop_timeout_seconds = 1);
    eventually("a pod", || async { (!runner.launches().is_empty()).then_some(()) }).await;
    assert_eq!(runner.broken_launches(), 0);
    store::builds::cancel(&pool, build, chrono::Utc::now())
        .await
        .expect("cancels");
    wait_for_state(&pool, build, StateName::Cancelled).await;
    assert_idle(&pool, &runner).await;
    worker.drain().await;
}

#[sqlx::test]
async fn a_launch_that_never_succeeds_is_given_up(pool: PgPool) {
    let runner = SimRunner::new(Script::Succeed(1));
    runner.break_launches(u32::MAX);
    let worker = Worker::start_with(&pool, &runner, |config| {
        config.pending_timeout_seconds = 1;
        config.max_attempts = 2;
    });
    let build = create(&pool).await;
    wait_for_state(&pool, build, StateName::Failed).await;
    let stored = store::builds::get(&pool, build).await.expect("reads").expect("exists");
    assert!(matches!(stored.state, BuildState::Failed { failure, .. }
        if failure.code == FailureCode::Internal && failure.message.contains("did not take the build's pod in time")));
    assert_eq!(stored.attempts.len(), 2);
    assert_idle(&pool, &runner).await;
    worker.drain().await;
}
