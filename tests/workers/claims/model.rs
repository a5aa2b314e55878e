//! What is claimed, and in which order, is what `domain::queue` says.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use kiln::domain::queue::{ProjectLimits, Share, Waiting, Weight, rank, starts};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use sqlx::PgPool;
use uuid::Uuid;

use super::{ClaimLimits, add, clear, project, take, worker};
use crate::workers::support::create_with;

/// What a project of a case has.
struct Case {
    name: String,
    weight: u16,
    concurrency: Option<u32>,
    starts: Option<u32>,
    live: u32,
    /// Starts within the last minute.
    counted: u32,
}

impl Case {
    fn random(number: usize, random: &mut StdRng) -> Self {
        let mut perhaps = |most: u32| random.random_bool(0.4).then(|| random.random_range(0..most));
        let (concurrency, starts) = (perhaps(6), perhaps(6).map(|starts| starts + 1));
        Self {
            name: format!("p{number}"),
            weight: [1, 1, 2, 3, 100][random.random_range(0..5)],
            concurrency,
            starts,
            live: random.random_range(0..4),
            counted: random.random_range(0..4),
        }
    }

    fn share(&self) -> Share {
        let places = self.concurrency.map(|limit| limit.saturating_sub(self.live));
        let starts = self.starts.map(|limit| limit.saturating_sub(self.counted));
        Share {
            weight: Weight::new(self.weight).expect("a weight"),
            live: self.live,
            room: places.into_iter().chain(starts).min(),
        }
    }

    async fn store(&self, pool: &PgPool) {
        let number = |limit: Option<u32>| limit.map(|limit| i32::try_from(limit).expect("small"));
        let (concurrency, starts) = (number(self.concurrency), number(self.starts));
        project(pool, &self.name, i32::from(self.weight), concurrency, starts).await;
        let live = self.live as usize;
        add(pool, "starting", &vec![self.name.clone(); live], &vec![0.0; live]).await;
        // Starts of builds that are over: as many count as are older than a minute.
        let build = add(pool, "starting", std::slice::from_ref(&self.name), &[0.0]).await[0];
        sqlx::query("UPDATE builds SET state = 'cancelled', finished_at = now() WHERE id = $1")
            .bind(build)
            .execute(pool)
            .await
            .expect("ends");
        sqlx::query(
            "INSERT INTO attempts (build_id, number, state, pod, resources, created_at, finished_at, project, counted_at)
             SELECT $1, n, 'cancelled', 'pod', '{}', now(), now(), $2,
                    now() - CASE WHEN n <= $3 THEN interval '1 second' ELSE interval '61 seconds' END
             FROM generate_series(1, 2 * $3) AS n",
        )
        .bind(build)
        .bind(&self.name)
        .bind(i32::try_from(self.counted).expect("small"))
        .execute(pool)
        .await
        .expect("inserts");
    }
}

/// The queue, as it is stored.
async fn queue(pool: &PgPool) -> Vec<Waiting<Uuid>> {
    let rows: Vec<(Uuid, String, DateTime<Utc>)> =
        sqlx::query_as("SELECT id, project, rank FROM builds WHERE state = 'queued' AND available_at <= now()")
            .fetch_all(pool)
            .await
            .expect("reads");
    rows.into_iter()
        .map(|(build, project, rank)| Waiting {
            project: project.parse().expect("a name"),
            rank,
            build,
        })
        .collect()
}

#[sqlx::test]
async fn what_is_claimed_is_what_the_model_says(pool: PgPool) {
    let owner = worker(&pool).await;
    for seed in 0..40 {
        let mut random = StdRng::seed_from_u64(seed);
        clear(&pool).await;
        let cases: Vec<_> = (0..random.random_range(1..6))
            .map(|number| Case::random(number, &mut random))
            .collect();
        for case in &cases {
            case.store(&pool).await;
        }
        let count = random.random_range(0..40);
        let names: Vec<_> = (0..count)
            .map(|_| cases[random.random_range(0..cases.len())].name.clone())
            .collect();
        // Some have the same rank.
        let ages: Vec<_> = (0..count).map(|_| f64::from(random.random_range(0..15))).collect();
        add(&pool, "queued", &names, &ages).await;
        sqlx::query("UPDATE builds SET available_at = now() + interval '1 hour' WHERE state = 'queued' AND get_byte(uuid_send(id), 0) < 20")
            .execute(&pool)
            .await
            .expect("updates");

        let live: u32 = cases.iter().map(|case| case.live).sum();
        let limits = ClaimLimits {
            batch: random.random_range(1..30),
            live: live + random.random_range(0..30),
            project: ProjectLimits::NONE,
        };
        let shares: BTreeMap<_, _> = cases
            .iter()
            .map(|case| (case.name.parse().expect("a name"), case.share()))
            .collect();
        let room = limits.batch.min(limits.live - live) as usize;
        let expected: Vec<_> = starts(&queue(&pool).await, &shares, room)
            .into_iter()
            .map(|started| started.build)
            .collect();
        let claimed: Vec<_> = take(&pool, owner, limits)
            .await
            .into_iter()
            .map(|claimed| claimed.lease.attempt.build.0)
            .collect();
        assert_eq!(claimed, expected, "seed {seed}");
    }
}

#[sqlx::test]
async fn a_rank_is_stored_as_the_model_says(pool: PgPool) {
    for priority in [0, 7, -7, i16::MAX, i16::MIN] {
        let build = create_with(&pool, priority).await;
        let (stored, accepted_at): (DateTime<Utc>, DateTime<Utc>) =
            sqlx::query_as("SELECT rank, available_at FROM builds WHERE id = $1")
                .bind(build.0)
                .fetch_one(&pool)
                .await
                .expect("reads");
        assert_eq!(stored, rank(accepted_at, priority, chrono::TimeDelta::seconds(60)));
    }
}
