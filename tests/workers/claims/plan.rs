//! How Postgres carries the claim out: what it looks at doesn't grow with the queue or with history.

use kiln::domain::queue::ProjectLimits;
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool, postgres::PgPoolOptions};

use super::{ClaimLimits, take, worker};

const PROJECTS: usize = 30;
const QUEUED: usize = 20_000;
const LIVE: usize = 300;
const BATCH: u32 = 16;

/// Builds that are over, that wait and that are live, of many projects, some with limits.
const FILL: &str = "
    SET session_replication_role = replica;
    INSERT INTO projects (name, concurrency_limit, starts_limit)
    SELECT 'p' || i, CASE WHEN i % 3 = 0 THEN 1000 END, CASE WHEN i % 4 = 0 THEN 1000 END
    FROM generate_series(1, $PROJECTS) AS i;
    INSERT INTO builds (id, project, state, spec, priority, attempts, available_at, created_at, finished_at, journal_head, rank)
    SELECT gen_random_uuid(), 'p' || 1 + i % $PROJECTS, state, jsonb_build_object('resources', '{}'::jsonb, 'padding', repeat('x', 400)), 0, 1,
           CASE WHEN state = 'queued' THEN now() END, now(), CASE WHEN state = 'cancelled' THEN now() END, 4,
           now() - i * interval '1 second'
    FROM (
        SELECT 'queued' AS state, i FROM generate_series(1, $QUEUED) AS i
        UNION ALL SELECT 'starting', i FROM generate_series(1, $LIVE) AS i
        UNION ALL SELECT 'cancelled', i FROM generate_series(1, $QUEUED) AS i
    ) AS made;
    INSERT INTO attempts (build_id, number, state, pod, resources, created_at, finished_at, project, counted_at)
    SELECT id, 1, 'cancelled', 'pod', '{}', now(), now(), project, now() - interval '1 hour' FROM builds WHERE state = 'cancelled';
    ANALYZE;
    SET session_replication_role = DEFAULT";

/// Rows of the tables that a plan looks at, and the tables that it reads in full.
fn visit(node: &Value, rows: &mut f64, full: &mut Vec<String>) {
    let number = |name: &str| node[name].as_f64().unwrap_or(0.0);
    if let Some(table) = node["Relation Name"].as_str() {
        let removed = number("Rows Removed by Filter") + number("Rows Removed by Index Recheck");
        *rows += (number("Actual Rows") + removed) * number("Actual Loops");
        if node["Node Type"] == "Seq Scan" {
            full.push(table.to_owned());
        }
    }
    for below in node["Plans"].as_array().into_iter().flatten() {
        visit(below, rows, full);
    }
}

#[sqlx::test]
async fn a_claim_looks_at_few_builds_however_many_wait(pool: PgPool) {
    let one = PgPoolOptions::new()
        .max_connections(1)
        .connect_with(pool.connect_options().as_ref().clone())
        .await
        .expect("connects");
    let fill = FILL
        .replace("$PROJECTS", &PROJECTS.to_string())
        .replace("$QUEUED", &QUEUED.to_string())
        .replace("$LIVE", &LIVE.to_string());
    sqlx::raw_sql(AssertSqlSafe(fill)).execute(&one).await.expect("fills");
    let owner = worker(&pool).await;
    // Prepares the statement as the service does, and finds no room.
    let full = ClaimLimits {
        batch: BATCH,
        live: 1,
        project: ProjectLimits::NONE,
    };
    assert!(take(&one, owner, full).await.is_empty());

    let mut connection = one.acquire().await.expect("a connection");
    let name: String = sqlx::query_scalar("SELECT name FROM pg_prepared_statements WHERE strpos(statement, $1) > 0")
        .bind("WITH RECURSIVE live AS MATERIALIZED")
        .fetch_one(&mut *connection)
        .await
        .expect("it was prepared");
    // Postgres may plan for the arguments, or once for all.
    for mode in ["force_custom_plan", "force_generic_plan"] {
        let explain = format!(
            "SET plan_cache_mode = {mode};
             BEGIN;
             EXPLAIN (ANALYZE, FORMAT JSON)
             EXECUTE {name} ('{owner}', {BATCH}, 100000, 'pod-', now(), 'null', null, null, '{{}}')"
        );
        let plan: Value = sqlx::raw_sql(AssertSqlSafe(explain))
            .fetch_one(&mut *connection)
            .await
            .and_then(|row| sqlx::Row::try_get(&row, 0))
            .expect("explains");
        sqlx::raw_sql("ROLLBACK")
            .execute(&mut *connection)
            .await
            .expect("undoes");
        let plan = &plan[0]["Plan"];
        assert_eq!(plan["Actual Rows"].as_f64(), Some(f64::from(BATCH)), "{plan:#}");
        let (mut rows, mut full) = (0.0, Vec::new());
        visit(plan, &mut rows, &mut full);
        full.retain(|table| ["builds", "attempts"].contains(&table.as_str()));
        assert!(full.is_empty(), "{mode} reads all of {full:?}: {plan:#}");
        // Of each project the first one a few times; of as many projects as fit the batch a batch; each live build; what
        // is claimed several times.
        let batch = BATCH as usize;
        let most = 5 * PROJECTS + 2 * batch * batch + LIVE + 8 * batch;
        #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
        let most = most as f64;
        assert!(rows <= most, "{mode} looks at {rows} rows: {plan:#}");
        // Compiling the plan would take longer than carrying it out.
        assert!(
            plan["Total Cost"].as_f64().is_some_and(|cost| cost < 50_000.0),
            "{plan:#}"
        );
    }
    drop(connection);
    one.close().await;
}
