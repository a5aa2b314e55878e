//! Claims, leases and fences.

use std::{collections::HashSet, time::Duration};

use chrono::Utc;
use kiln::{
    domain::{
        failure::{Failure, FailureCode},
        id::ReplicaId,
        queue::ProjectLimits,
        state::{BuildState, StateName},
    },
    store::{
        self, Error,
        builds::{CancelOutcome, CreateOutcome, IdempotencyKey},
        leases,
        queue::{ClaimLimits, Claimed, claim, take_over},
        transitions::{self, AttemptFacts},
    },
};
use sqlx::PgPool;

use super::support::{DEADLINE, create, create_with, new_build, state};

const ALL: ClaimLimits = ClaimLimits {
    batch: 64,
    live: 1000,
    project: ProjectLimits::NONE,
};

async fn worker(pool: &PgPool) -> ReplicaId {
    let replica = ReplicaId::new();
    leases::register(pool, replica, "test", Duration::from_mins(1))
        .await
        .expect("registers");
    replica
}

async fn claim_all(pool: &PgPool, owner: ReplicaId) -> Vec<Claimed> {
    claim(pool, owner, ALL, "pod-", Utc::now()).await.expect("claims")
}

#[sqlx::test]
async fn concurrent_workers_never_get_the_same_build(pool: PgPool) {
    for _ in 0..50 {
        create(&pool).await;
    }
    let workers = [worker(&pool).await, worker(&pool).await, worker(&pool).await];
    let some = ClaimLimits {
        batch: 7,
        live: 1000,
        project: ProjectLimits::NONE,
    };
    let mut claims = tokio::task::JoinSet::new();
    for owner in workers.into_iter().cycle().take(12) {
        let pool = pool.clone();
        claims.spawn(async move { claim(&pool, owner, some, "pod-", Utc::now()).await.expect("claims") });
    }
    let claimed: Vec<_> = claims.join_all().await.into_iter().flatten().collect();
    let distinct: HashSet<_> = claimed.iter().map(|claimed| claimed.lease.attempt).collect();
    assert_eq!((claimed.len(), distinct.len()), (50, 50));
}

#[sqlx::test]
async fn the_queue_is_served_by_priority_and_then_by_age_within_the_limit(pool: PgPool) {
    let first = create_with(&pool, 0).await;
    let second = create_with(&pool, 0).await;
    let urgent = create_with(&pool, 5).await;
    let owner = worker(&pool).await;
    let two = ClaimLimits {
        batch: 64,
        live: 2,
        project: ProjectLimits::NONE,
    };
    let order: Vec<_> = claim(&pool, owner, two, "pod-", Utc::now())
        .await
        .expect("claims")
        .into_iter()
        .map(|claimed| claimed.lease.attempt.build)
        .collect();
    assert_eq!(order, [urgent, first]);
    assert!(
        claim(&pool, owner, two, "pod-", Utc::now())
            .await
            .expect("claims")
            .is_empty()
    );
    assert_eq!(state(&pool, second).await, StateName::Queued);
}

#[sqlx::test]
async fn a_worker_that_stops_within_a_transaction_keeps_nobody_from_its_builds(pool: PgPool) {
    let build = create(&pool).await;
    let stopped = worker(&pool).await;
    claim_all(&pool, stopped).await;
    let url = sqlx::ConnectOptions::to_url_lossy(&*pool.connect_options());
    let its_pool = store::pool(url.as_str(), 1, Duration::from_secs(5)).expect("a URL");
    let mut transaction = its_pool.begin().await.expect("begins");
    sqlx::query("SELECT id FROM builds FOR NO KEY UPDATE")
        .execute(&mut *transaction)
        .await
        .expect("locks the build");

    // Waits for the lock, because the builds lose their owner with it.
    let unregistered = tokio::time::timeout(DEADLINE, leases::unregister(&pool, stopped)).await;
    unregistered.expect("the lock is given up").expect("unregisters");
    let alive = worker(&pool).await;
    let taken = take_over(&pool, alive, 10).await.expect("takes over");
    assert_eq!(taken[0].lease.attempt.build, build);
}

#[sqlx::test]
async fn a_worker_that_was_taken_for_dead_can_write_nothing(pool: PgPool) {
    let build = create(&pool).await;
    let dead = worker(&pool).await;
    let old = claim_all(&pool, dead).await.remove(0);
    leases::unregister(&pool, dead).await.expect("unregisters");
    assert!(!leases::renew(&pool, dead, Duration::from_secs(1)).await.expect("asks"));

    let alive = worker(&pool).await;
    let new = take_over(&pool, alive, 10).await.expect("takes over").remove(0);
    assert_eq!(new.lease.attempt, old.lease.attempt);
    assert!(new.lease.epoch > old.lease.epoch);

    let now = Utc::now();
    let running = BuildState::Running {
        attempt: 1,
        started_at: now,
    };
    let facts = AttemptFacts::default();
    let write = |lease| {
        let (pool, running, facts) = (&pool, &running, &facts);
        async move { transitions::apply(pool, &lease, StateName::Starting, running, facts, now).await }
    };
    assert!(matches!(write(old.lease).await, Err(Error::Conflict)));
    assert!(matches!(
        transitions::release(&pool, &old.lease, now, now).await,
        Err(Error::Conflict)
    ));
    assert_eq!(leases::held(&pool, &old.lease).await.expect("asks"), None);
    assert_eq!(state(&pool, build).await, StateName::Starting);
    write(new.lease).await.expect("the holder writes");
    // Its claims are refused by the foreign key, too.
    create(&pool).await;
    assert!(claim(&pool, dead, ALL, "pod-", now).await.is_err());
}

#[sqlx::test]
async fn only_expired_workers_lose_their_builds(pool: PgPool) {
    create(&pool).await;
    let owner = ReplicaId::new();
    leases::register(&pool, owner, "test", Duration::ZERO)
        .await
        .expect("registers");
    claim_all(&pool, owner).await;
    assert!(
        leases::renew(&pool, owner, Duration::from_mins(1))
            .await
            .expect("renews")
    );
    assert_eq!(leases::expire(&pool).await.expect("expires"), 0);
    assert!(leases::renew(&pool, owner, Duration::ZERO).await.expect("renews"));
    assert_eq!(leases::expire(&pool).await.expect("expires"), 1);
    let other = worker(&pool).await;
    assert_eq!(take_over(&pool, other, 10).await.expect("takes over").len(), 1);
    assert_eq!(take_over(&pool, other, 10).await.expect("takes over").len(), 0);
}

#[sqlx::test]
async fn a_released_claim_leaves_no_attempt(pool: PgPool) {
    let build = create(&pool).await;
    let owner = worker(&pool).await;
    let claimed = claim_all(&pool, owner).await.remove(0);
    transitions::release(&pool, &claimed.lease, Utc::now(), Utc::now())
        .await
        .expect("releases");
    let stored = store::builds::get(&pool, build).await.expect("reads").expect("exists");
    assert_eq!((stored.state.name(), stored.attempts.len()), (StateName::Queued, 0));
    let again = claim_all(&pool, owner).await.remove(0);
    assert_eq!(again.lease.attempt, claimed.lease.attempt);
    assert!(again.lease.epoch > claimed.lease.epoch);
}

#[sqlx::test]
async fn a_failed_attempt_stays_visible_when_its_build_goes_on(pool: PgPool) {
    let build = create(&pool).await;
    let owner = worker(&pool).await;
    let claimed = claim_all(&pool, owner).await.remove(0);
    let failure = Failure::new(FailureCode::NodeLost, "gone");
    let queued = BuildState::Queued {
        attempts: 1,
        available_at: Utc::now(),
    };
    let facts = AttemptFacts {
        failure: Some(failure.clone()),
        node: Some("n1".to_owned()),
        ..AttemptFacts::default()
    };
    transitions::apply(&pool, &claimed.lease, StateName::Starting, &queued, &facts, Utc::now())
        .await
        .expect("writes");
    let stored = store::builds::get(&pool, build).await.expect("reads").expect("exists");
    assert_eq!(stored.state.name(), StateName::Queued);
    assert_eq!(stored.attempts[0].failure, Some(failure));
    assert_eq!(stored.attempts[0].pod, format!("pod-{build}-1"));
    assert_eq!(stored.attempts[0].node.as_deref(), Some("n1"));
    assert_eq!(claim_all(&pool, owner).await[0].lease.attempt.number, 2);
}

#[sqlx::test]
async fn cancelling_says_what_happened(pool: PgPool) {
    let queued = create(&pool).await;
    let outcome = store::builds::cancel(&pool, queued, Utc::now()).await.expect("cancels");
    assert!(
        matches!(outcome, CancelOutcome::Accepted { changed: true, ref build } if build.state.name() == StateName::Cancelled)
    );
    let outcome = store::builds::cancel(&pool, queued, Utc::now()).await.expect("cancels");
    assert!(matches!(outcome, CancelOutcome::Refused(_)));

    let live = create(&pool).await;
    let owner = worker(&pool).await;
    claim_all(&pool, owner).await;
    for changed in [true, false] {
        let outcome = store::builds::cancel(&pool, live, Utc::now()).await.expect("cancels");
        let CancelOutcome::Accepted { build, changed: did } = outcome else {
            panic!("refused")
        };
        assert_eq!((build.state.name(), did), (StateName::Cancelling, changed));
    }
    assert_eq!(leases::cancelling(&pool, owner).await.expect("reads"), [live]);
    let nobody = kiln::domain::id::BuildId::new();
    assert!(matches!(
        store::builds::cancel(&pool, nobody, Utc::now()).await.expect("asks"),
        CancelOutcome::NotFound
    ));
}

#[sqlx::test]
async fn one_key_makes_one_build_whoever_asks_at_once(pool: PgPool) {
    let key = |body: u8| {
        Some(IdempotencyKey {
            key: "k".to_owned(),
            body_hash: [body; 32],
        })
    };
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let pool = pool.clone();
        requests.spawn(async move {
            store::builds::create(&pool, new_build(0), key(1))
                .await
                .expect("answers")
        });
    }
    let outcomes = requests.join_all().await;
    let created = outcomes
        .iter()
        .filter(|outcome| matches!(outcome, CreateOutcome::Created { .. }))
        .count();
    assert_eq!(created, 1, "{outcomes:?}");
    assert!(outcomes.iter().all(|outcome| matches!(
        outcome,
        CreateOutcome::Created { .. } | CreateOutcome::Replayed { .. } | CreateOutcome::InFlight
    )));
    let again = store::builds::create(&pool, new_build(0), key(1))
        .await
        .expect("answers");
    assert!(matches!(again, CreateOutcome::Replayed { .. }));
    let other = store::builds::create(&pool, new_build(0), key(2))
        .await
        .expect("answers");
    assert!(matches!(other, CreateOutcome::KeyReused));
    let all = store::listing::list(&pool, &store::listing::Filter::default(), None, 100)
        .await
        .expect("lists");
    assert_eq!(all.len(), 1);
}

#[sqlx::test]
async fn serialized_builds_of_a_group_run_one_after_the_other(pool: PgPool) {
    let mut builds = Vec::new();
    for (priority, serialize) in [(0, true), (5, true), (0, true), (0, false)] {
        let mut new = new_build(priority);
        let group = serde_json::json!({"key": "k", "supersede": "no", "serialize": serialize});
        new.spec.group = Some(serde_json::from_value(group).expect("a group"));
        builds.push(new.id);
        store::builds::create(&pool, new, None).await.expect("stores");
    }
    let owners = [worker(&pool).await, worker(&pool).await, worker(&pool).await];
    let claim_at_once = async || {
        let mut claims = tokio::task::JoinSet::new();
        for owner in owners.into_iter().cycle().take(9) {
            let pool = pool.clone();
            claims.spawn(async move { claim_all(&pool, owner).await });
        }
        claims.join_all().await.into_iter().flatten().collect::<Vec<_>>()
    };
    let finish = async |claimed: &Claimed| {
        let now = Utc::now();
        let failed = BuildState::Failed {
            started_at: None,
            finished_at: now,
            failure: Failure::new(FailureCode::BuildFailed, "x"),
        };
        let facts = AttemptFacts::default();
        transitions::apply(&pool, &claimed.lease, StateName::Starting, &failed, &facts, now)
            .await
            .expect("writes");
    };
    let ids = |live: &[Claimed]| {
        let mut ids: Vec<_> = live.iter().map(|claimed| claimed.lease.attempt.build).collect();
        ids.sort_unstable();
        ids
    };
    // The one that waits for nobody, and the first of the others.
    let live = claim_at_once().await;
    assert_eq!(ids(&live), [builds[0], builds[3]]);
    assert_eq!(ids(&claim_at_once().await), []);
    let (serialized, other): (Vec<_>, Vec<_>) = live
        .iter()
        .partition(|claimed| claimed.lease.attempt.build == builds[0]);
    // Those that are serialized wait for what isn't, too.
    finish(serialized[0]).await;
    assert_eq!(ids(&claim_at_once().await), []);
    finish(other[0]).await;
    for expected in &builds[1..3] {
        let live = claim_at_once().await;
        assert_eq!(ids(&live), [*expected]);
        assert_eq!(ids(&claim_at_once().await), []);
        finish(&live[0]).await;
    }
}
