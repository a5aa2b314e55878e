//! What is tried again: elsewhere after the infrastructure's failures, with more memory after a lack of it.

use kiln::{
    domain::{
        build::Build,
        failure::FailureCode,
        id::BuildId,
        node::{AvoidPolicy, AvoidedNodes},
        spec::MemoryBytes,
        state::StateName,
    },
    store,
};
use sqlx::PgPool;

use super::{
    sim::{Script, SimRunner},
    support::{Worker, assert_idle, create, wait_for_state},
};

const GIB: u64 = 1 << 30;

async fn stored(pool: &PgPool, build: BuildId) -> Build {
    store::builds::get(pool, build).await.expect("reads").expect("exists")
}

/// What each attempt was given, in GiB, and how it ended.
fn memory(build: &Build) -> Vec<(u64, Option<FailureCode>)> {
    let attempts = build.attempts.iter();
    attempts
        .map(|attempt| {
            let code = attempt.failure.as_ref().map(|failure| failure.code);
            (attempt.resources.memory.0 / GIB, code)
        })
        .collect()
}

fn node() -> Vec<String> {
    vec!["node".to_owned()]
}

#[sqlx::test]
async fn a_build_that_ran_out_of_memory_gets_twice_as_much_once(pool: PgPool) {
    const OOM: FailureCode = FailureCode::OutOfMemory;
    let lost = FailureCode::NodeLost;
    let cases = [
        // The infrastructure's failures are counted apart, and what was raised stays raised.
        (
            vec![Script::Fail(OOM), Script::Fail(lost), Script::Succeed(1)],
            vec![(1, Some(OOM)), (2, Some(lost)), (2, None)],
            StateName::Succeeded,
        ),
        (
            vec![Script::Fail(lost), Script::Fail(OOM)],
            vec![(1, Some(lost)), (1, Some(OOM)), (2, Some(OOM))],
            StateName::Failed,
        ),
    ];
    for (scripts, expected, end) in cases {
        let runner = SimRunner::new(Script::Each(scripts));
        let worker = Worker::start_with(&pool, &runner, |config| config.max_attempts = 2);
        let build = create(&pool).await;
        wait_for_state(&pool, build, end).await;
        let build = stored(&pool, build).await;
        assert_eq!(memory(&build), expected);
        assert_eq!(
            build.spec.resources.memory,
            MemoryBytes(GIB),
            "what was asked for stays"
        );
        let told = expected.iter().position(|(_, code)| *code == Some(OOM)).expect("one");
        let message = &build.attempts[told].failure.as_ref().expect("a failure").message;
        assert!(message.contains("The next attempt gets 2Gi"), "{message}");
        assert_idle(&pool, &runner).await;
        worker.drain().await;
    }
}

#[sqlx::test]
async fn nobody_gets_more_memory_than_the_installation_allows(pool: PgPool) {
    for (limit, attempts) in [
        (GIB, vec![GIB]),
        (GIB / 2, vec![GIB]),
        (3 * GIB / 2, vec![GIB, 3 * GIB / 2]),
    ] {
        let runner = SimRunner::new(Script::Fail(FailureCode::OutOfMemory));
        let worker = Worker::start_with(&pool, &runner, |config| config.max_memory = MemoryBytes(limit));
        let build = create(&pool).await;
        wait_for_state(&pool, build, StateName::Failed).await;
        let build = stored(&pool, build).await;
        let given: Vec<_> = build
            .attempts
            .iter()
            .map(|attempt| attempt.resources.memory.0)
            .collect();
        assert_eq!(given, attempts);
        worker.drain().await;
    }
}

#[sqlx::test]
async fn infrastructure_failures_are_tried_three_times_more_and_elsewhere(pool: PgPool) {
    let runner = SimRunner::new(Script::Fail(FailureCode::Evicted));
    let worker = Worker::start(&pool, &runner);
    let build = create(&pool).await;
    wait_for_state(&pool, build, StateName::Failed).await;
    assert_eq!(stored(&pool, build).await.attempts.len(), 4);
    let never: Vec<_> = runner.avoided().into_iter().map(|nodes| nodes.never).collect();
    assert_eq!(never, [vec![], node(), node(), node()]);
    // Nobody was to blame.
    assert_eq!(store::nodes::list(&pool).await.expect("reads"), []);
    assert_idle(&pool, &runner).await;
    worker.drain().await;
}

#[sqlx::test]
async fn where_there_is_no_other_node_the_build_runs_where_it_failed(pool: PgPool) {
    let runner = SimRunner::new(Script::Each(vec![Script::Fail(FailureCode::Evicted), Script::Choosy]));
    let worker = Worker::start_with(&pool, &runner, |config| config.other_node_timeout_seconds = 1);
    let build = create(&pool).await;
    wait_for_state(&pool, build, StateName::Succeeded).await;
    assert_eq!(stored(&pool, build).await.attempts.len(), 2);
    let anywhere = AvoidedNodes {
        never: Vec::new(),
        rather_not: node(),
    };
    let launches = runner.avoided();
    assert_eq!(launches.len(), 3, "the second attempt twice: {launches:?}");
    assert_eq!((&launches[1].never, &launches[2]), (&node(), &anywhere));
    assert_idle(&pool, &runner).await;
    worker.drain().await;
}

#[sqlx::test]
async fn a_node_that_fails_two_builds_is_avoided_by_every_worker(pool: PgPool) {
    let runner = SimRunner::new(Script::Each(vec![
        Script::FailByNode(FailureCode::NodeLost),
        Script::Succeed(1),
    ]));
    let worker = Worker::start(&pool, &runner);
    for failures in 1..=2 {
        let build = create(&pool).await;
        wait_for_state(&pool, build, StateName::Succeeded).await;
        let nodes = store::nodes::list(&pool).await.expect("reads");
        let [node] = nodes.as_slice() else {
            panic!("one node, not {nodes:?}")
        };
        assert_eq!((node.name.as_str(), node.failures.len()), ("node", failures));
        assert_eq!(node.avoided_until.is_some(), failures == 2);
        let last = node.failures.last().expect("a failure");
        assert_eq!(
            (last.build, last.attempt, last.code),
            (build.0, 1, FailureCode::NodeLost)
        );
    }
    worker.drain().await;

    // Another worker, and a build that has failed nowhere.
    let runner = SimRunner::new(Script::Succeed(1));
    let worker = Worker::start(&pool, &runner);
    for rather_not in [node(), Vec::new()] {
        let build = create(&pool).await;
        wait_for_state(&pool, build, StateName::Succeeded).await;
        let last = runner.avoided().pop().expect("a launch");
        assert_eq!((last.never, last.rather_not), (Vec::new(), rather_not));
        let forgotten = store::nodes::forget(&pool, &"node".parse().expect("a name")).await;
        forgotten.expect("forgets");
    }
    worker.drain().await;
}

#[sqlx::test]
async fn failures_long_ago_do_not_count_and_are_forgotten(pool: PgPool) {
    const POLICY: AvoidPolicy = AvoidPolicy {
        failures: 2,
        within: chrono::TimeDelta::minutes(10),
        lasts: chrono::TimeDelta::minutes(30),
    };
    async fn age(pool: &PgPool, minutes: i32) {
        sqlx::query(
            "UPDATE nodes SET last_failed_at = last_failed_at - make_interval(mins => $1),
                 avoided_until = avoided_until - make_interval(mins => $1),
                 failures = (SELECT jsonb_agg(jsonb_set(f, '{at}', to_jsonb((f ->> 'at')::timestamptz - make_interval(mins => $1))))
                             FROM jsonb_array_elements(failures) AS f)",
        )
        .bind(minutes)
        .execute(pool)
        .await
        .expect("ages");
    }
    let runner = SimRunner::new(Script::Each(vec![
        Script::FailByNode(FailureCode::NodeLost),
        Script::Succeed(1),
    ]));
    let worker = Worker::start(&pool, &runner);
    let mut avoided = Vec::new();
    for minutes in [11, 9, 29] {
        let build = create(&pool).await;
        wait_for_state(&pool, build, StateName::Succeeded).await;
        let nodes = store::nodes::list(&pool).await.expect("reads");
        avoided.push(nodes[0].avoided_until.is_some());
        age(&pool, minutes).await;
    }
    // The second came after more than ten minutes, the third after less.
    assert_eq!(avoided, [false, false, true]);
    worker.drain().await;
    let until = |nodes: Vec<kiln::domain::node::FaultyNode>| nodes[0].avoided_until;
    assert!(until(store::nodes::list(&pool).await.expect("reads")).is_some());
    assert_eq!(store::nodes::sweep(&pool, POLICY).await.expect("sweeps"), 0);
    age(&pool, 2).await;
    assert!(until(store::nodes::list(&pool).await.expect("reads")).is_none());
    assert_eq!(store::nodes::sweep(&pool, POLICY).await.expect("sweeps"), 1);
    assert_eq!(store::nodes::list(&pool).await.expect("reads"), []);
}
