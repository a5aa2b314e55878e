//! The claim: that it takes what the model of the order says, keeps limits whoever claims at the same time, and looks at
//! no more of the queue than it needs.

mod limits;
mod model;
mod plan;

use std::time::Duration;

use chrono::Utc;
use kiln::{
    domain::id::ReplicaId,
    store::{
        leases,
        queue::{ClaimLimits, Claimed, claim},
    },
};
use sqlx::PgPool;

async fn worker(pool: &PgPool) -> ReplicaId {
    let replica = ReplicaId::new();
    leases::register(pool, replica, "test", Duration::from_mins(1))
        .await
        .expect("registers");
    replica
}

async fn take(pool: &PgPool, owner: ReplicaId, limits: ClaimLimits) -> Vec<Claimed> {
    claim(pool, owner, limits, "pod-", Utc::now()).await.expect("claims")
}

/// Adds builds in some state straight to the tables: of projects, with ranks so many seconds ago.
async fn add(pool: &PgPool, state: &str, projects: &[String], ages: &[f64]) -> Vec<uuid::Uuid> {
    let spec = serde_json::to_value(super::support::spec(0)).expect("serialises");
    sqlx::query_scalar(
        "INSERT INTO builds (id, project, state, spec, priority, available_at, attempts, created_at, journal_head, rank)
         SELECT gen_random_uuid(), project, $1, $2, 0, CASE WHEN $1 = 'queued' THEN now() END, ($1 <> 'queued')::integer,
                now(), 1, now() - make_interval(secs => age)
         FROM unnest($3::text[], $4::float8[]) AS asked (project, age)
         RETURNING id",
    )
    .bind(state)
    .bind(spec)
    .bind(projects)
    .bind(ages)
    .fetch_all(pool)
    .await
    .expect("inserts")
}

/// Sets what a project may have; makes it if it isn't there.
async fn project(pool: &PgPool, name: &str, weight: i32, concurrency: Option<i32>, starts: Option<i32>) {
    sqlx::query(
        "INSERT INTO projects (name, weight, concurrency_limit, starts_limit) VALUES ($1, $2, $3, $4)
         ON CONFLICT (name) DO UPDATE SET weight = $2, concurrency_limit = $3, starts_limit = $4",
    )
    .bind(name)
    .bind(weight)
    .bind(concurrency)
    .bind(starts)
    .execute(pool)
    .await
    .expect("sets");
}

async fn clear(pool: &PgPool) {
    sqlx::raw_sql("DELETE FROM journal; DELETE FROM builds; DELETE FROM projects WHERE name <> 'default'")
        .execute(pool)
        .await
        .expect("deletes");
}
