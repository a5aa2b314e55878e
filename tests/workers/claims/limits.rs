//! Limits hold however many claim at the same time.

use kiln::domain::{id::ReplicaId, queue::ProjectLimits};
use sqlx::PgPool;
use tokio::task::JoinSet;

use super::{ClaimLimits, add, clear, project, take, worker};

const WORKERS: usize = 8;
const LIMITS: ClaimLimits = ClaimLimits {
    batch: 3,
    live: 14,
    project: ProjectLimits::NONE,
};

/// Claims until there is nothing to be had for a while; ends what was claimed of the project `fast` at once.
async fn work(pool: PgPool, owner: ReplicaId) -> usize {
    let (mut fast, mut empty) = (0, 0);
    while empty < 5 {
        let claimed = take(&pool, owner, LIMITS).await;
        empty = if claimed.is_empty() { empty + 1 } else { 0 };
        let done: Vec<_> = claimed
            .iter()
            .filter(|claimed| claimed.assignment.project.as_str() == "fast")
            .map(|claimed| claimed.lease.attempt.build.0)
            .collect();
        fast += done.len();
        sqlx::query("UPDATE builds SET state = 'cancelled', finished_at = now(), owner = NULL WHERE id = ANY($1)")
            .bind(done)
            .execute(&pool)
            .await
            .expect("ends");
    }
    fast
}

/// Asks for builds that go before all that wait, so that everybody who looks sees others in front.
async fn ask(pool: PgPool) {
    for age in 0..30 {
        let names = ["fast", "few", "default"].map(str::to_owned);
        add(&pool, "queued", &names, &[1000.0 + f64::from(age); 3]).await;
    }
}

async fn live(pool: &PgPool) -> Vec<(String, i64)> {
    sqlx::query_as("SELECT project, count(*) FROM builds WHERE state = 'starting' GROUP BY project ORDER BY project")
        .fetch_all(pool)
        .await
        .expect("counts")
}

#[sqlx::test]
async fn nobody_gets_more_than_the_limits_however_many_claim_at_once(pool: PgPool) {
    let mut workers = Vec::new();
    for _ in 0..WORKERS {
        workers.push(worker(&pool).await);
    }
    for round in 0..10 {
        clear(&pool).await;
        project(&pool, "fast", 100, None, Some(7)).await;
        project(&pool, "few", 100, Some(5), None).await;
        let names = ["fast", "few", "default"].repeat(20);
        let names: Vec<_> = names.into_iter().map(str::to_owned).collect();
        let ages: Vec<_> = (0..60).map(f64::from).collect();
        add(&pool, "queued", &names, &ages).await;
        let asking = tokio::spawn(ask(pool.clone()));
        let mut claims = JoinSet::new();
        for &owner in &workers {
            claims.spawn(work(pool.clone(), owner));
        }
        let fast: usize = claims.join_all().await.into_iter().sum();
        asking.await.expect("asks");
        assert_eq!(fast, 7, "round {round}");
        // All that the installation allows, and of that what the project allows.
        let expected = [("default".to_owned(), 9), ("few".to_owned(), 5)];
        assert_eq!(live(&pool).await, expected, "round {round}");
    }
}

#[sqlx::test]
async fn a_start_counts_for_a_minute_unless_it_was_undone(pool: PgPool) {
    let owner = worker(&pool).await;
    project(&pool, "default", 100, None, Some(2)).await;
    add(
        &pool,
        "queued",
        &vec!["default".to_owned(); 5],
        &[5.0, 4.0, 3.0, 2.0, 1.0],
    )
    .await;
    let started = take(&pool, owner, LIMITS).await;
    assert_eq!(started.len(), 2);
    assert!(take(&pool, owner, LIMITS).await.is_empty());

    let now = chrono::Utc::now();
    kiln::store::transitions::release(&pool, &started[0].lease, now, now)
        .await
        .expect("releases");
    assert_eq!(take(&pool, owner, LIMITS).await.len(), 1);
    assert!(take(&pool, owner, LIMITS).await.is_empty());

    sqlx::query("UPDATE attempts SET counted_at = counted_at - interval '1 minute' WHERE build_id = $1")
        .bind(started[1].lease.attempt.build.0)
        .execute(&pool)
        .await
        .expect("updates");
    assert_eq!(take(&pool, owner, LIMITS).await.len(), 1);
    assert!(take(&pool, owner, LIMITS).await.is_empty());
}

#[sqlx::test]
async fn projects_without_limits_have_those_of_the_installation(pool: PgPool) {
    let owner = worker(&pool).await;
    project(&pool, "own", 100, Some(4), Some(3)).await;
    project(&pool, "none", 100, None, None).await;
    let names: Vec<_> = ["own", "none"]
        .iter()
        .flat_map(|name| vec![(*name).to_owned(); 6])
        .collect();
    add(&pool, "queued", &names, &[1.0; 12]).await;
    let limits = |concurrency, starts_per_minute| ClaimLimits {
        batch: 64,
        live: 100,
        project: ProjectLimits {
            concurrency,
            starts_per_minute,
            queued: None,
        },
    };
    let started = take(&pool, owner, limits(Some(2), None)).await;
    let of = |name: &str| {
        let its = started
            .iter()
            .filter(|claimed| claimed.assignment.project.as_str() == name);
        its.count()
    };
    assert_eq!((of("own"), of("none")), (3, 2));
    assert_eq!(take(&pool, owner, limits(None, Some(1))).await.len(), 1);
    assert!(take(&pool, owner, limits(None, Some(1))).await.is_empty());
    // Nothing limits it now; the other has its own limits still.
    assert_eq!(take(&pool, owner, limits(None, None)).await.len(), 3);
}
